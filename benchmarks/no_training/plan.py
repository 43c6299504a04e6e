"""Which runs there are: `python -m benchmarks run no_training`."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from benchmarks.no_training.runs import SEARCH, run_rows

NAME = "no_training"
DESCRIPTION = "Low-rank compression without training: a table for any method"
MINUTES_ONCE = 0.5

HERE, IMAGENET = "here", "imagenet"
NETWORKS = ("transformer", "resnet18", "vgg16", "resnet50")
# Core-minutes of one method at all ratios, measured.
_MINUTES = {"transformer": 0.5, "resnet18": 2.0, "vgg16": 6.0, "resnet50": 6.0}
_SEARCHED = {"transformer": 3.0, "resnet18": 8.0}


def cut(network: str, factors: str, method: str, source: str = HERE) -> dict[str, Any]:
    """Settings of a network that a method cuts to every ratio.

    Args:
        network: Its name.
        factors: `"data"`, fitted to inputs, or `"weights"`.
        method: A key of `METHODS`, or a search.
        source: `HERE`, or `IMAGENET` for those who have the data.
    """
    settings = {"network": network, "factors": factors, "method": method}
    return settings | {"source": source}


_IMAGENET = tuple(
    (cut(f"imagenet_{name}", factors, method, IMAGENET), 3, 60.0)
    for name in ("resnet18", "resnet50", "vgg16")
    for factors, method in (("data", "path"), ("weights", "path"))
)
# Each with its number of runs and the core-minutes of one.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    *((cut(name, "data", "path"), 3, _MINUTES[name]) for name in NETWORKS),
    *((cut(name, "data", "fraction"), 3, _MINUTES[name]) for name in NETWORKS),
    # Without calibration inputs a seed changes nothing but the losses of layers.
    *(
        (cut(name, "weights", method), 1, _MINUTES[name])
        for method in ("path", "fraction")
        for name in NETWORKS
    ),
    *(
        (cut(name, "data", method), 1, _MINUTES[name])
        for method in ("energy", "evbmf")
        for name in NETWORKS
    ),
    *((cut(name, "data", SEARCH), 3, cost) for name, cost in _SEARCHED.items()),
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """The runs of a source, by default on what there is here.

    Raises:
        ValueError: When a change names a setting that no run has.
    """
    changes.setdefault("source", HERE)
    return planned((*_PLAN, *_IMAGENET), seeds, **changes)


minutes = partial(minutes_of, (*_PLAN, *_IMAGENET))


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Cut one network by one method."""
    return recorded(NAME, settings, seed, run_rows(seed, settings))
