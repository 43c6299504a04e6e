"""Which runs there are: `python -m benchmarks run quality`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from benchmarks.quality.targets import run_default, run_target

NAME = "quality"
DESCRIPTION = "Targets in words: agreement and accuracy on other images"
MINUTES_ONCE = 0.5

GAMMAS = (1.0, 3.0, 10.0, 30.0)
_MINUTES = {"fc3": 0.1, "resnet18": 1.2, "resnet50": 5.0}


def target(network: str, pool: str, name: str, value: float) -> dict[str, Any]:
    """Settings of a target that is met without a search."""
    return {
        **{"part": "target", "network": network, "pool": pool},
        **{"target": name, "value": value},
    }


def weight(network: str, pool: str, gamma: float) -> dict[str, Any]:
    """Settings of a weight of the loss in units of the outputs' size."""
    return {"part": "default", "network": network, "pool": pool, "gamma": gamma}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    *(
        (target(name, "fresh", "agreement_at_least", 0.98), 20, minutes)
        for name, minutes in _MINUTES.items()
    ),
    (target("fc3", "train", "agreement_at_least", 0.98), 20, 0.1),
    (target("resnet18", "train", "agreement_at_least", 0.98), 3, 1.2),
    *(
        (weight(name, "fresh", gamma), 3, minutes)
        for name, minutes in (("fc3", 0.1), ("resnet18", 0.8))
        for gamma in GAMMAS
    ),
    *(
        (target(name, "fresh", "accuracy_drop_at_most", 0.01), 5, _MINUTES[name])
        for name in ("fc3", "resnet18")
    ),
)

_PARTS: dict[str, Callable[[int, dict[str, Any]], dict[str, Any]]] = {
    "target": run_target,
    "default": run_default,
}


plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run one part."""
    return recorded(NAME, settings, seed, _PARTS[settings["part"]](seed, settings))
