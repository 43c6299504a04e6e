"""All methods on the same evaluations and the same clocks."""

from __future__ import annotations

from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.comparison.problems import Problem, build_problem
from benchmarks.comparison.run import LEVELS, Budget, search_with
from benchmarks.harness.optimiser import Task
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.streams import streams
from benchmarks.harness.traces import Trace, provenance
from benchmarks.methods.registry import (
    METHODS,
    NEED_NETWORK,
    PAC_METHODS,
    PEERS,
    RULES,
    build_method,
)
from benchmarks.networks.evaluation import TRUE_IMAGES

__all__ = ["LEVELS", "NAME", "TRUE_IMAGES", "minutes", "plan", "run", "settings"]

NAME = "comparison"
DESCRIPTION = "all methods on functions and networks: quality, images and time"
MINUTES_ONCE = 2.0

NETWORK_GAMMAS: dict[str, tuple[float, ...]] = {
    "fc3": (0.001, 0.01),
    "resnet18": (0.02, 0.05, 0.15, 0.5, 1.0),
    "resnet18_16": (0.02,),
    "resnet50": (0.02,),
    "vgg16": (1.0,),
    "resnet18_default": (0.02, 0.05, 0.15, 0.5, 1.0),
    "resnet50_default": (0.02, 1.0),
}
FUNCTIONS = ("draw2", "draw4", "hartmann6")


def settings(problem: str, method: str, **changes: Any) -> dict[str, Any]:
    """Settings of one run."""
    row = {
        "problem": problem,
        "gamma": NETWORK_GAMMAS.get(problem, (1.0,))[0],
        "num_samples": 50,
        "encoding": "published" if method == "pac_published" else "log",
        "method": method,
        "evaluations": _evaluations(method),
    }
    return row | changes


def _evaluations(method: str) -> int:
    """The long, fixed budget; of random search, for about as long as PAC takes.

    A longer run is not feasible: the incumbent of all tables comes from a surrogate of
    all evaluations of a method, whose cost grows with the cube of their number.
    """
    if method in ("random", "sobol"):
        return 800
    if method in RULES:
        return 60
    if method in PAC_METHODS:
        return 200
    return {"fabolas_faithful": 60}.get(method, 100)


def _row(
    problem: str, method: str, runs: int, minutes: float, **changes: Any
) -> tuple[dict[str, Any], int, float]:
    return settings(problem, method, **changes), runs, minutes


# Core-minutes of a run on ResNet18, measured, with what only the tables need.
_MINUTES = {
    "random": 0.8,
    "sobol": 0.8,
    "logei": 0.8,
    "pi": 0.6,
    "pac_published": 0.3,
    "pac_pairwise": 0.2,
    "pac_joint": 0.4,
    "pac": 0.8,
    "pac_line": 1.0,
    "ax_default": 0.9,
    "optuna_tpe": 0.2,
    "optuna_gp": 0.2,
    "smac": 3.6,
    "fabolas_lean": 1.5,
    "fabolas_lean_sem": 0.8,
    "fabolas_faithful": 16.0,
    "rule_fraction": 0.3,
    "rule_energy": 0.3,
    "rule_evbmf": 0.3,
    "rule_greedy": 0.6,
}
# Faithful Fabolas costs minutes an iteration: one gamma, three seeds.
_ONE_GAMMA = (
    "fabolas_faithful",
    "fabolas_lean_sem",
    "pi",
    "sobol",
    *RULES,
)
_ON_DEFAULT = ("pac", "ax_default", "logei", "optuna_gp", "fabolas_lean", "random")
_RUNS = {0.02: 10}  # at other weights half as many

_PLAN = (
    *(
        _row("resnet18", method, 3, minutes)
        for method, minutes in _MINUTES.items()
        if method in _ONE_GAMMA
    ),
    *(
        _row("resnet18", method, _RUNS.get(gamma, 5), minutes, gamma=gamma)
        for gamma in NETWORK_GAMMAS["resnet18"]
        for method, minutes in _MINUTES.items()
        if method not in _ONE_GAMMA and (method, gamma) != ("random", 0.02)
    ),
    # Random search has to be followed for as long as it is compared.
    _row("resnet18", "random", 10, 2.4, evaluations=1200),
    *(
        _row("resnet18", method, 2, _MINUTES[method], num_samples=number)
        for number in (10, 200)
        for method in ("random", "logei", "pac")
    ),
    *(
        _row(problem, method, 1, 2.0 * _MINUTES[method], gamma=gamma)
        for problem in ("fc3", "resnet18_16", "resnet50", "vgg16")
        for gamma in NETWORK_GAMMAS[problem]
        for method in ("random", "logei", "pac", "ax_default")
    ),
    *(
        _row(problem, method, 3, factor * _MINUTES[method], gamma=gamma)
        for problem, factor in (("resnet18_default", 1.0), ("resnet50_default", 2.0))
        for gamma in NETWORK_GAMMAS[problem]
        for method in _ON_DEFAULT
    ),
    *(
        _row(problem, method, 2, 0.15 * _MINUTES[method])
        for problem in FUNCTIONS
        for method in METHODS
        if method not in (*NEED_NETWORK, "fabolas_faithful", "pac_published")
    ),
    *(
        _row("learning_curve", method, 3, minutes, evaluations=45)
        for method, minutes in (
            ("random", 0.5),
            ("fabolas_lean", 1.0),
            ("fabolas_faithful", 5.0),
        )
    ),
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`, seed by seed.

    Methods are compared by seed, and the speed of a machine drifts with what else it
    does. `methods` may be a list, separated by commas.
    """
    methods = changes.pop("methods", None)
    jobs = sorted(planned(_PLAN, seeds, **changes), key=lambda job: job[1])
    if methods is None:
        return jobs
    wanted = methods.split(",")
    unknown = sorted(set(wanted) - set(METHODS))
    if unknown:
        raise ValueError(f"unknown methods {unknown}, known: {', '.join(METHODS)}")
    return [job for job in jobs if job[0]["method"] in wanted]


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once with one method; record everything that the tables need."""
    problem = _problem(
        settings["problem"],
        settings["gamma"],
        settings["encoding"],
        streams(settings["problem"], seed).problem,
    )
    method = build_method(settings["method"], task_of(problem, seed, settings))
    result, trials = search_with(
        problem,
        method,
        Budget(settings["evaluations"]),
        streams(settings["problem"], seed).evaluation,
        certify_own=settings["method"] == "logei",
    )
    return Trace(
        benchmark=NAME,
        settings=settings,
        seed=seed,
        result=result,
        trials=trials,
        provenance=provenance(torch.get_num_threads())
        | _peer_version(settings["method"]),
    )


def _peer_version(method: str) -> dict[str, str]:
    """Which release of somebody else's package it was."""
    return {"peer": version(PEERS[method])} if method in PEERS else {}


def task_of(problem: Problem, seed: int, settings: dict[str, Any]) -> Task:
    """What a method knows of a problem."""
    return Task(
        dim=problem.dim,
        num_samples=settings["num_samples"],
        max_samples=problem.max_samples,
        min_samples=problem.min_samples,
        delta=problem.delta,
        seed=streams(settings["problem"], seed).method,
        cells=problem.cells,
        compression=problem.compression,
        first=problem.first,
    )


@cache
def _problem(name: str, gamma: float, encoding: str, seed: int) -> Problem:
    """Once a process: a network's truth is remembered with it."""
    return build_problem(name, seed=seed, gamma=gamma, encoding=encoding)
