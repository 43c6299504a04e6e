"""Tables 3 and 4: FC3 without labels and with, as published and as recommended."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.plans import minutes_of
from benchmarks.harness.traces import Trace
from benchmarks.paper.runs import planned_source, searched

NAME = "paper_fc3"
DESCRIPTION = "paper, Tables 3 and 4: FC3 by squared distance and by top-1 error"
MINUTES_ONCE = 1.0

GAMMAS = {
    "squared_l2": (0.001, 0.002, 0.005, 0.01, 0.02),
    "top1_error": (0.9, 1.0, 1.1),
}
_RUNS = 10
# Core-minutes of a run, measured.
_MINUTES = {"pac_published": 0.2, "pac": 0.4}
_EVALUATIONS = 100


def settings(loss: str, method: str, gamma: float) -> dict[str, Any]:
    return {
        "network": "fc3",
        "source": "here",
        "loss": loss,
        "method": method,
        "gamma": gamma,
    }


_PLAN = tuple(
    (settings(loss, method, gamma), _RUNS, cost)
    for loss, gammas in GAMMAS.items()
    for method, cost in _MINUTES.items()
    for gamma in gammas
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`, its runs in order of the seed."""
    return planned_source(_PLAN, seeds, changes)


def minutes(job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run."""
    return minutes_of(_PLAN, job)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once, and measure on the 10,000 test images."""
    return searched(
        NAME,
        seed,
        settings,
        loss=settings["loss"],
        encoding="published" if settings["method"] == "pac_published" else "log",
        evaluations=_EVALUATIONS,
    )
