"""What several tests of the benchmarks need."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.networks.cifar import shared_file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: `make test-benchmarks` runs them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.benchmarks)


@pytest.fixture
def cifar10_here() -> None:
    """Skip where CIFAR-10, which is no part of this repository, is not beside it."""
    try:
        shared_file("data/cifar10_jpeg.npz")
    except FileNotFoundError as error:
        pytest.skip(str(error))  # it says what to set
