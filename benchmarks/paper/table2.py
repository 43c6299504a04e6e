"""Table 2 and Fig. 1: random search, Fabolas and ours on ResNet18, with labels."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.plans import minutes_of
from benchmarks.harness.traces import Trace
from benchmarks.paper.runs import planned_source, searched

NAME = "paper_table2"
DESCRIPTION = "paper, Table 2 and Fig. 1: random, Fabolas and ours on ResNet18"
MINUTES_ONCE = 1.0

# The paper's. They are weights of an error rate: a weight of one for a squared distance
# would leave the network as it is.
GAMMAS = (0.8, 0.9, 1.0, 1.1, 1.2)
# Core-minutes of a run, measured, and the evaluations after which it ends. What ends
# random search and Fabolas in the paper is not said; random search gets as many
# evaluations as ours needs at most.
METHODS = {
    "random": (0.15, 60),
    "fabolas_lean": (0.6, 60),
    "pac_published": (0.3, 60),
    "pac": (0.4, 60),
}
_RUNS = 10


def settings(method: str, source: str, gamma: float) -> dict[str, Any]:
    return {"network": "resnet18", "source": source, "method": method, "gamma": gamma}


_PLAN = tuple(
    (settings(method, source, gamma), _RUNS, factor * cost)
    for source, factor in (("here", 1.0), ("imagenet", 20.0))
    for gamma in GAMMAS
    for method, (cost, _) in METHODS.items()
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`, its runs in order of the seed."""
    return planned_source(_PLAN, seeds, changes)


def minutes(job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run."""
    return minutes_of(_PLAN, job)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once, and measure on all test images."""
    _, evaluations = METHODS[settings["method"]]
    return searched(
        NAME,
        seed,
        settings,
        loss="top1_error",
        encoding="published" if settings["method"] == "pac_published" else "log",
        evaluations=evaluations,
    )
