"""Which factors and coordinates the benchmarks search on."""

from __future__ import annotations

from typing import Any, Final

WEIGHTS_ALONE: Final[dict[str, Any]] = {"calibrate": 0}
"""Options of `compress` and `compression_problem` for factors of the weights alone.

The paper's way, and that of every benchmark but `data_aware`, which compares both."""


def sharing(coordinates: int | None) -> dict[str, Any]:
    """Options for layers that share so many coordinates; None: each has its own."""
    if coordinates is None:
        return {"tie": lambda layer: layer}
    return {"coordinates": coordinates}
