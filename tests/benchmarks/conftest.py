"""What several tests of the benchmarks need."""

from __future__ import annotations

import pytest

from benchmarks.networks.cifar import shared_file


@pytest.fixture
def cifar10_here() -> None:
    """Skip where CIFAR-10, which is no part of this repository, is not beside it."""
    try:
        shared_file("data/cifar10_jpeg.npz")
    except FileNotFoundError as error:
        pytest.skip(str(error))  # it says what to set
