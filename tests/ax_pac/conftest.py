"""Searches that several tests only read, made once per session."""

from __future__ import annotations

from typing import Any

import pytest
from ax.api.client import Client

from tests.helpers.ax_loops import new_client, run


@pytest.fixture(scope="session")
def finished() -> tuple[Client, list[dict[str, Any]]]:
    """A search that ended by its certificate, and its proposals; not to be changed."""
    client = new_client()
    return client, run(client)
