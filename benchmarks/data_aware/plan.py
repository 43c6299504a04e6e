"""Which runs there are: `python -m benchmarks run data_aware`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.data_aware.choices import (
    RULES,
    run_path,
    run_predicted,
    run_rule,
    run_search,
    run_taken,
)
from benchmarks.data_aware.factors import run_counts, run_layers, run_time
from benchmarks.data_aware.stages import run_stages
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded

NAME = "data_aware"
DESCRIPTION = "Factors fitted to the data: errors, rules, the price path, searches"
MINUTES_ONCE = 1.0

GAMMAS = {
    "resnet18": (0.02, 0.05, 0.15, 1.0, 2.0),
    "resnet50": (0.005, 0.02, 0.15, 1.0, 2.0, 4.0),
    "fc3": (0.001,),
    "transformer": (0.05,),
}
# The default of `compress`; others, and a share of the objective.
DELTA = 0.02
# Sizes at which a network is taken from the path.
TAKEN = {"resnet18": (0.04, 0.075), "resnet50": (0.12,), "transformer": (0.3, 0.5)}
DELTAS = ((0.05, False), (0.01, False), (0.1, True))
# Coordinates that layers share: the default of `compress`, at every gamma, and others.
COORDINATES = 3
SHARED = (1, 2, COORDINATES, 4)
SHARED_GAMMAS = {
    "resnet18": (0.02, 1.0),
    "resnet50": (0.02, 1.0),
    "transformer": (0.05,),
}
# Core-minutes to measure a network along a rule, and of one search.
_RULE_MINUTES = {"fc3": 0.3, "resnet18": 1.5, "resnet50": 4.0, "transformer": 0.5}
_SEARCH_MINUTES = {"fc3": 0.5, "resnet18": 2.5, "resnet50": 6.0, "transformer": 0.5}
_COUNT_RUNS = {"fc3": 3, "resnet18": 3, "transformer": 3, "vgg16": 1, "resnet50": 1}
_COUNT_MINUTES = {"resnet50": 8.0, "vgg16": 8.0}


def part(name: str, **settings: Any) -> dict[str, Any]:
    """Settings of a run of one part."""
    return {"part": name, **settings}


def rule(network: str, factors: str, method: str) -> dict[str, Any]:
    """Settings of a rule, which has no gamma and no certificate."""
    return part("rules", network=network, factors=factors, method=method)


def on_path(network: str, factors: str, gamma: float) -> dict[str, Any]:
    """Settings of a price that is chosen by evaluations."""
    return part("path", network=network, factors=factors, gamma=gamma)


def predicted(network: str, gamma: float) -> dict[str, Any]:
    """Settings of the network at the price of a gamma."""
    return part("predicted", network=network, factors="data", gamma=gamma)


def taken(network: str, factors: str, ratio: float) -> dict[str, Any]:
    """Settings of a network of the path that is taken by its size."""
    return part("taken", network=network, factors=factors, ratio=ratio)


def search(
    network: str,
    gamma: float,
    factors: str = "data",
    delta: float = DELTA,
    relative: bool = False,
) -> dict[str, Any]:
    """Settings of a search as `compress` makes it."""
    settings = {"network": network, "factors": factors, "gamma": gamma}
    return part("search", **settings, delta=delta, relative=relative)


def shared(
    network: str,
    gamma: float,
    coordinates: int = COORDINATES,
    delta: float = DELTA,
    relative: bool = False,
) -> dict[str, Any]:
    """Settings of a search whose layers share coordinates along the price path."""
    settings = {"network": network, "factors": "data", "gamma": gamma, "delta": delta}
    return part("shared", **settings, relative=relative, coordinates=coordinates)


def unclipped(network: str, gamma: float) -> dict[str, Any]:
    """Settings of the same whose surrogate models all losses as they are."""
    return shared(network, gamma) | {"clip": False}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    *((part("time", network=name), 1, 2.5) for name in ("resnet18", "resnet50")),
    *((part("layers", network=name), 1, 0.7) for name in _COUNT_RUNS),
    *(
        (part("counts", network=name), runs, _COUNT_MINUTES.get(name, 2.0))
        for name, runs in _COUNT_RUNS.items()
    ),
    *(
        (rule(name, factors, method), 1, minutes)
        for name, minutes in _RULE_MINUTES.items()
        # Those on the weights of ResNets are runs of the benchmark `networks`.
        for factors in (("data", "weights") if name == "transformer" else ("data",))
        for method in RULES
    ),
    *(
        (on_path(name, factors, gamma), 3, 0.2)
        for name, gammas in GAMMAS.items()
        for factors in ("data", "weights")
        for gamma in gammas
    ),
    *(
        (predicted(name, gamma), 3, 0.3)
        for name, gammas in GAMMAS.items()
        for gamma in gammas
    ),
    *(
        (taken(name, factors, ratio), 3, _SEARCH_MINUTES[name] / 4)
        for name, ratios in TAKEN.items()
        for factors in ("data", "weights")
        for ratio in ratios
    ),
    (search("resnet18", 0.02), 3, _SEARCH_MINUTES["resnet18"]),
    (search("fc3", 0.001), 10, _SEARCH_MINUTES["fc3"]),
    (search("fc3", 0.001, "weights"), 10, _SEARCH_MINUTES["fc3"]),
    (search("transformer", 0.05), 3, _SEARCH_MINUTES["transformer"]),
    (search("transformer", 0.05, "weights"), 3, _SEARCH_MINUTES["transformer"]),
    # One coordinate a layer, which the default was once.
    *((search("resnet18", g), 3, 1.0) for g in GAMMAS["resnet18"][1:]),
    *((search("resnet50", g), 1, 3.0) for g in GAMMAS["resnet50"]),
    *(
        (search(name, gamma, "data", *delta), runs, _SEARCH_MINUTES[name])
        for name, gamma, runs in (
            ("fc3", 0.001, 5),
            ("resnet18", 0.02, 3),
            ("transformer", 0.05, 3),
        )
        for delta in DELTAS
    ),
    *(
        (shared(name, g), 10 if (name, g) == ("resnet18", 0.02) else 5, 1.0)
        for name in SHARED_GAMMAS
        for g in GAMMAS[name]
    ),
    *((shared("resnet50", 0.02, COORDINATES, *delta), 2, 1.0) for delta in DELTAS),
    *(
        (unclipped(name, gamma), 3, 3.0)
        for name, gammas in SHARED_GAMMAS.items()
        for gamma in gammas
    ),
    *(
        (shared(name, gamma, number), 1, 1.0)
        for name, gammas in SHARED_GAMMAS.items()
        for gamma in gammas
        for number in SHARED
        if number != COORDINATES
    ),
    *((part("stages", trained=trained), 3, 20.0) for trained in (True, False)),
)

_PARTS: dict[str, Callable[[int, dict[str, Any]], dict[str, Any]]] = {
    "time": run_time,
    "layers": run_layers,
    "counts": run_counts,
    "rules": run_rule,
    "path": run_path,
    "predicted": run_predicted,
    "taken": run_taken,
    "search": run_search,
    "shared": run_search,
    "stages": run_stages,
}


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`; a rule is one run.

    Runs on the same factors follow each other, so that these are made once.

    Raises:
        ValueError: When a change names a setting that no part has.
    """
    jobs = [
        (row, seed)
        for row, seed in planned(_PLAN, seeds, **changes)
        if seed == 0 or row["part"] != "rules"
    ]
    places = {name: place for place, name in enumerate(_PARTS)}
    return sorted(
        jobs,
        key=lambda job: (
            places[job[0]["part"]],
            (job[0]["network"], job[0]["factors"], job[1])
            if job[0]["part"] in ("rules", "path", "predicted")
            else ("", "", 0),
        ),
    )


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run one part."""
    result = _PARTS[settings["part"]](seed, settings)
    return recorded(NAME, settings, seed, result)
