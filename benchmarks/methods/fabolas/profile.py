"""Where faithful Fabolas spends its time, and what its algorithm needs at least.

A slow baseline flatters whoever is compared with it. Each stage is timed beside its
floor: the bare linear algebra that the stage's definition asks for, as often as it asks
for it, by the same library on the same thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from benchmarks.methods.fabolas import faithful as fabolas_faithful
from benchmarks.methods.fabolas import models as fabolas_models
from benchmarks.methods.fabolas.base import FabolasData
from benchmarks.methods.fabolas.faithful import FaithfulSearch, information_gain
from benchmarks.methods.fabolas.lean import LeanSearch

NAME = "fabolas_profile"
DESCRIPTION = "one iteration of Fabolas by stage, beside what its algorithm needs"
MINUTES_ONCE = 0.0


def settings(d: int, n: int) -> dict[str, Any]:
    return {"d": d, "n": n}


# Nine coordinates and thirty observations: what was measured of the original.
_PLAN = ((settings(9, 30), 3, 2.0), (settings(8, 60), 3, 3.0))

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Time the stages of an iteration on made-up observations."""
    d, n = settings["d"], settings["n"]
    data = _observations(d, n, seed)
    search = FaithfulSearch(d, seed)
    first = _seconds(lambda: search.fit(data))
    stages = {"fit, loss and cost": _seconds(lambda: search.fit(data))}
    best = torch.cat([data.X[0, :-1], torch.ones(1, dtype=torch.float64)])
    walkers = search.loss.num_walkers
    eta = search.loss.marginal(best.expand(walkers, 1, -1))[0]
    kept: dict[str, Any] = {}

    def represent() -> None:
        kept["representers"] = search._representers(eta)

    stages["representer points"] = _seconds(represent)
    candidates = search._candidates(best)
    stages["information gain"] = _seconds(
        lambda: information_gain(
            search.loss, *kept["representers"], candidates, search.rng
        )
    )
    lean = LeanSearch(d, seed)
    lean_fit = _seconds(lambda: lean.fit(data))
    lean_propose = _seconds(lambda: lean.propose(best))
    return recorded(
        NAME,
        settings,
        seed,
        {
            "models": walkers,
            "stages": stages,
            "floors": _floors(walkers, d, n),
            "first_fit": first,
            "lean": {"fit": lean_fit, "propose": lean_propose},
        },
    )


def _floors(walkers: int, d: int, n: int) -> dict[str, float]:
    """Seconds of the bare linear algebra of each stage."""
    covariance = torch.eye(n, dtype=torch.float64).repeat(walkers, 1, 1)
    half = covariance[: walkers // 2]
    right = torch.ones(walkers // 2, n, 1, dtype=torch.float64)
    distances = torch.rand(walkers // 2, n, n, dtype=torch.float64)

    def likelihood() -> None:
        for _ in range(d):
            distances.neg().exp()
        cholesky = torch.linalg.cholesky(half)
        torch.linalg.solve_triangular(cholesky, right, upper=False)

    number = fabolas_faithful.NUM_REPRESENTERS
    cross = torch.rand(walkers, n, number // 2, dtype=torch.float64)
    near = torch.rand(walkers, n, number // 2, dtype=torch.float64)

    def prediction() -> None:
        for _ in range(d):
            near.neg().exp()
        torch.linalg.solve_triangular(covariance, cross, upper=False)

    draws = fabolas_faithful.NUM_DRAWS
    candidates = fabolas_faithful.NUM_UNIFORM + fabolas_faithful.NUM_LOCAL
    moved = torch.rand(candidates, number, draws)

    def outcome() -> None:
        (moved + 1.0).argmin(1)

    # Two halves a step, for loss and for cost.
    moves = 2 * 2 * fabolas_models.CHAIN
    return {
        "fit, loss and cost": moves * _seconds(likelihood, 20),
        "representer points": (
            2 * fabolas_faithful.REPRESENTER_STEPS * _seconds(prediction, 20)
        ),
        "information gain": (
            walkers * fabolas_faithful.NUM_OUTCOMES * _seconds(outcome, 3)
        ),
    }


def _observations(d: int, n: int, seed: int) -> FabolasData:
    """A bowl with a bias in the size, and a cost that grows with it."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d + 1, generator=rng, dtype=torch.float64)
    bowl = (X[:, :-1] - 0.3).square().sum(1, keepdim=True)
    loss = (1.0 + bowl + 0.3 * (1.0 - X[:, -1:]).square()).log()
    noise = 0.02 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    return FabolasData(
        X, loss + noise, torch.full_like(loss, 0.02), 4.0 + 5.0 * X[:, -1:]
    )


def _seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Processor seconds of one repetition, after a first one where there are many."""
    if repeats > 1:
        work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats
