"""Certificates that are false because the search for the challenger failed.

At every step of a search near the threshold, the search that a certificate is issued on
is compared with one many times as large. Functions are GP draws on the continuous box,
hyperparameters known.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from ax_pac import PACAcquisition, certify
from ax_pac.acquisition.optimize import find_challenger, more_informative
from ax_pac.certificate.joint import joint_failure
from benchmarks.calibration.functions import draw_from_prior
from benchmarks.calibration.known import known_model, unit_kernel
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded

NAME = "inner_maximum"
DESCRIPTION = "certificates that a much larger search for the challenger would refuse"
MINUTES_ONCE = 0.0

DELTA = 0.1
EPSILONS = (0.05, 0.005)
# States whose largest pairwise probability lies in one of these are near a threshold;
# a run contributes so many of each.
_NEAR = ((0.02, 0.1), (0.001, 0.02))
_MAX_STATES = 5
# Below it level joint may be near its threshold too.
_JOINT_NEAR = 0.01
STRONG_EFFORT = 16
STRONG_SEARCHES = 2
_DIMENSIONS = (2, 4, 6, 9, 16)
_MAX_EVALUATIONS = 150
_NOISE = 0.1


def _lengthscale(d: int) -> Tensor:
    """Length scales at which a search of this many evaluations gets somewhere."""
    return torch.full((d,), (0.25 if d < 9 else 0.5) * d**0.5, dtype=torch.float64)


# Fourteen runs in each dimension, of at most ten states each.
_PLAN = tuple(({"d": d}, 14, 0.3 + 0.1 * d) for d in _DIMENSIONS)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search one function; compare searches at the states near a threshold."""
    d = settings["d"]
    function = draw_from_prior(_lengthscale(d), 1.0, 0.0, seed=1_000_003 * d + seed)
    rng = torch.Generator().manual_seed(seed)
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    X = torch.rand(2 * d + 1, d, generator=rng, dtype=torch.float64)
    Y = function.evaluate(X) + _noise(len(X), rng)
    states: list[dict[str, Any]] = []
    wanted = dict.fromkeys(_NEAR, _MAX_STATES)
    while len(X) < _MAX_EVALUATIONS and wanted[_NEAR[-1]] > 0:
        model = _model(X, Y)
        acquisition = PACAcquisition(model, X, DELTA)
        search = find_challenger(acquisition, X, bounds, seed=len(X))
        probability = tail(search.score)
        for band in _NEAR:
            if band[0] <= probability < band[1] and wanted[band] > 0:
                wanted[band] -= 1
                states.append(_compare(model, acquisition, X, bounds, seed=len(X)))
        if probability < _NEAR[-1][0]:
            break
        x = more_informative(acquisition, search.challenger)
        X = torch.cat([X, x])
        Y = torch.cat([Y, function.evaluate(x) + _noise(1, rng)])
    return recorded(NAME, settings, seed, {"states": states, "evaluations": len(X)})


def _noise(n: int, rng: torch.Generator) -> Tensor:
    return _NOISE * torch.randn(n, generator=rng, dtype=torch.float64)


def tail(score: float) -> float:
    """Phi(score)."""
    return float(torch.special.ndtr(torch.tensor(score, dtype=torch.float64)))


def _model(X: Tensor, Y: Tensor) -> SingleTaskGP:
    """The exact posterior, hyperparameters known."""
    Yvar = torch.full((len(X), 1), _NOISE**2, dtype=torch.float64)
    kernel = unit_kernel(_lengthscale(X.shape[-1]))
    return known_model(X, Y.unsqueeze(-1), Yvar, kernel)


def _compare(
    model: SingleTaskGP,
    acquisition: PACAcquisition,
    X: Tensor,
    bounds: Tensor,
    seed: int,
) -> dict[str, Any]:
    """One state: what `certify` found, what a far larger search finds, and the time.

    The joint probability is estimated from the candidates of `certify` and from those
    of the larger searches as well: what the active set leaves out is the difference.
    """
    begin = time.perf_counter()
    certificate = certify(
        model,
        X,
        bounds,
        delta=DELTA,
        epsilon=max(EPSILONS),
        level="pairwise",
        seed=seed,
    )
    seconds = time.perf_counter() - begin
    strong = [
        find_challenger(
            acquisition,
            X,
            bounds,
            seed=10_000 * (i + 1) + seed,
            effort=STRONG_EFFORT,
        )
        for i in range(STRONG_SEARCHES)
    ]
    score = max(certificate.score, *(search.score for search in strong))
    state = {
        "evaluations": len(X),
        "score": certificate.score,
        "strong_score": score,
        "seconds": seconds,
    }
    if certificate.pairwise_probability <= _JOINT_NEAR:
        state["joint"] = _joint(acquisition, X, bounds, 5, seed)
        state["joint_strong"] = _joint(acquisition, X, bounds, 20, seed + 1)
    return state


def _joint(
    acquisition: PACAcquisition, X: Tensor, bounds: Tensor, effort: int, seed: int
) -> float:
    """Estimate the joint failure probability from a search of this effort."""
    search = find_challenger(acquisition, X, bounds, seed=seed, effort=effort)
    result = joint_failure(
        acquisition,
        search.points,
        search.scores,
        epsilon=max(EPSILONS),
        alpha=0.5,
        seed=seed,
        num_draws=1024,
    )
    return result.num_failures / max(result.num_draws, 1)
