"""Which rows of a benchmark's plan were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def matching(
    rows: Iterable[dict[str, Any]], changes: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the settings that agree with `changes`, in their order.

    Raises:
        ValueError: When a change names a setting that the rows do not have.
    """
    rows = list(rows)
    if set(changes) - set(rows[0]):
        raise ValueError(f"unknown settings in {[*changes]}, known: {[*rows[0]]}")
    return [
        row
        for row in rows
        if all(row[name] == value for name, value in changes.items())
    ]
