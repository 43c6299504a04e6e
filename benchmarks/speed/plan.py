"""Which runs there are: `python -m benchmarks run speed`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from benchmarks.speed.runs import (
    BATCH,
    DELTA,
    SPEEDUP,
    WEIGHTS,
    run_prediction,
    run_speedup,
    run_weights,
)

NAME = "speed"
DESCRIPTION = (
    "Time as the size: a speedup as a target, predictions, the same by weights"
)
MINUTES_ONCE = 0.5
BATCHES = (BATCH, 8)


def speedup(
    search: bool, tie: str = "stage", factor: float = SPEEDUP
) -> dict[str, Any]:
    """Settings of a network that has to be so many times faster."""
    settings = {"search": search, "speedup": factor, "batch": BATCH}
    return {"part": "speedup", **settings, "tie": tie, "delta": DELTA}


def weights(ratio: float = WEIGHTS) -> dict[str, Any]:
    """Settings of a network that has to have a share of the weights."""
    return {"part": "weights", "ratio": ratio, "search": False}


def prediction(batch: int) -> dict[str, Any]:
    """Settings of ten networks whose times are predicted and measured."""
    return {"part": "prediction", "batch": batch}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    (speedup(True), 3, 3.0),
    (speedup(False, "none"), 3, 2.0),
    (weights(), 3, 1.0),
    *((prediction(batch), 1, 2.5) for batch in BATCHES),
)

_PARTS: dict[str, Callable[[int, dict[str, Any]], dict[str, Any]]] = {
    "speedup": run_speedup,
    "weights": run_weights,
    "prediction": run_prediction,
}


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`; predictions are one run.

    Raises:
        ValueError: When a change names a setting that no part has.
    """
    return [
        (row, seed)
        for row, seed in planned(_PLAN, seeds, **changes)
        if seed == 0 or row["part"] != "prediction"
    ]


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run one part."""
    result = _PARTS[settings["part"]](seed, settings)
    return recorded(NAME, settings, seed, result)
