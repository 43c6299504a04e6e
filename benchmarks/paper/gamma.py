"""Tables 6 and 7, Figs. 4 and 5: what gamma does to ratio, accuracy and time."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.plans import minutes_of
from benchmarks.harness.traces import Trace
from benchmarks.paper.runs import planned_source, searched

NAME = "paper_gamma"
DESCRIPTION = "paper, Tables 6 and 7, Figs. 4 and 5: ResNets at five gammas"
MINUTES_ONCE = 1.0

# The paper's, for a squared distance over 1,000 logits; and those that lead to ratios
# like the paper's for the 10 logits of the networks that are here.
PAPER_GAMMAS = (0.00006, 0.00008, 0.0001, 0.0003, 0.0005)
GAMMAS = (0.01, 0.02, 0.05, 0.15, 0.5)
_RUNS = {"resnet18": 10, "resnet50": 5}
# Core-minutes of a run, measured.
_MINUTES = {"resnet18": 1.2, "resnet50": 4.0}
_IMAGENET_MINUTES = {"resnet18": 30.0, "resnet50": 90.0}
_EVALUATIONS = 150


def settings(network: str, source: str, gamma: float) -> dict[str, Any]:
    return {"network": network, "source": source, "method": "pac", "gamma": gamma}


_PLAN = (
    *(
        (settings(network, "here", gamma), runs, _MINUTES[network])
        for network, runs in _RUNS.items()
        for gamma in GAMMAS
    ),
    *(
        (settings(network, "imagenet", gamma), runs, _IMAGENET_MINUTES[network])
        for network, runs in _RUNS.items()
        for gamma in PAPER_GAMMAS
    ),
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`, its runs in order of the seed."""
    return planned_source(_PLAN, seeds, changes)


def minutes(job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run."""
    return minutes_of(_PLAN, job)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once as we recommend, and measure on all test images."""
    return searched(
        NAME,
        seed,
        settings,
        loss="squared_l2",
        encoding="log",
        evaluations=_EVALUATIONS,
    )
