"""Which runs there are: `python -m benchmarks run speed`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from benchmarks.speed.deploy import run_deploy
from benchmarks.speed.runs import (
    BATCH,
    DELTA,
    MAX_TRIALS,
    NETWORK,
    SPEEDUP,
    WEIGHTS,
    run_prediction,
    run_speedup,
    run_weights,
)
from compression_adapters.options import FEW_COORDINATES

NAME = "speed"
DESCRIPTION = (
    "Time as the size: a speedup as a target, predictions, the same by weights"
)
MINUTES_ONCE = 0.5
BATCHES = (BATCH, 8)
ONE_A_LAYER = "one a layer"


def speedup(
    search: bool,
    coordinates: int | str = FEW_COORDINATES,
    factor: float = SPEEDUP,
    forms: str = "chosen",
) -> dict[str, Any]:
    """Settings of a network that has to be so many times faster.

    Args:
        search: Whether it is searched, or taken from the price path.
        coordinates: How many the layers share, or `ONE_A_LAYER`.
        factor: How many times faster.
        forms: `"chosen"` by hand, or all of each layer, `"best"`.
    """
    settings = {"search": search, "speedup": factor, "batch": BATCH, "delta": DELTA}
    settings |= {"part": "speedup", "coordinates": coordinates}
    if coordinates == ONE_A_LAYER:
        settings["max_trials"] = MAX_TRIALS
    return settings | ({"forms": forms} if forms != "chosen" else {})


def deploy(network: str) -> dict[str, Any]:
    """Settings of a network that is timed as it would be deployed."""
    return {"part": "deploy", "network": network}


def weights(ratio: float = WEIGHTS) -> dict[str, Any]:
    """Settings of a network that has to have a share of the weights."""
    return {"part": "weights", "ratio": ratio, "search": False}


def prediction(batch: int) -> dict[str, Any]:
    """Settings of ten networks whose times are predicted and measured."""
    return {"part": "prediction", "batch": batch}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    (speedup(False), 3, 2.0),
    (speedup(True), 3, 3.0),
    (speedup(True, 2), 3, 2.0),
    (speedup(True, ONE_A_LAYER), 1, 4.0),
    (speedup(False, forms="best"), 3, 4.0),
    (speedup(True, forms="best"), 3, 5.0),
    (weights(), 3, 1.0),
    (deploy(NETWORK), 1, 3.0),
    (deploy("fc3"), 1, 0.5),
    *((prediction(batch), 1, 2.5) for batch in BATCHES),
)

_PARTS: dict[str, Callable[[int, dict[str, Any]], dict[str, Any]]] = {
    "speedup": run_speedup,
    "weights": run_weights,
    "deploy": run_deploy,
    "prediction": run_prediction,
}


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`; what is timed alone is one run.

    Raises:
        ValueError: When a change names a setting that no part has.
    """
    return [
        (row, seed)
        for row, seed in planned(_PLAN, seeds, **changes)
        if seed == 0 or row["part"] not in ("prediction", "deploy")
    ]


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run one part."""
    result = _PARTS[settings["part"]](seed, settings)
    return recorded(NAME, settings, seed, result)
