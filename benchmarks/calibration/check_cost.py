"""What one check costs at each level, on fifty observations of a GP draw."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from ax_pac import certify, fit_model
from benchmarks.calibration.functions import draw_from_prior
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded

NAME = "check_cost"
DESCRIPTION = "seconds of one check at each level; run it on an idle machine"
MINUTES_ONCE = 0.0

EPSILON = 0.05
_NUM_OBSERVATIONS = 50
_NOISE = 0.1
_DIMENSIONS = (2, 4, 16)
_RUNS = 5
# Tolerances, in steps of a quarter; the first at which a level holds is where a search
# would ask for the next one.
_DELTAS = tuple(0.1 * 1.25**k for k in range(20))

# Core-minutes of a run, measured: 0.1, and 0.6 in 16 dimensions.
_PLAN = tuple(
    ({"d": d, "n": _NUM_OBSERVATIONS}, _RUNS, 0.1 if d < 9 else 0.6)
    for d in _DIMENSIONS
)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Observe a function, half of the points near its top; time the checks."""
    d, n = settings["d"], settings["n"]
    lengthscale = torch.full((d,), 0.25 * d**0.5, dtype=torch.float64)
    function = draw_from_prior(lengthscale, 1.0, 0.0, seed=1_000_003 * d + seed)
    rng = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, generator=rng, dtype=torch.float64)
    far = torch.rand(4096, d, generator=rng, dtype=torch.float64)
    top = far[function.evaluate(far).argmax()]
    near = torch.randn(n // 2, d, generator=rng, dtype=torch.float64)
    X[n // 2 :] = (top + 0.1 * near).clamp(0.0, 1.0)
    Y = function.evaluate(X).unsqueeze(-1)
    Y = Y + _NOISE * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    begin = time.perf_counter()
    model = fit_model(X, Y, torch.full_like(Y, _NOISE**2))
    checks = [{"level": "fit", "seconds": time.perf_counter() - begin}]
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    level = "pairwise"
    for delta in _DELTAS:
        begin = time.perf_counter()
        certificate = certify(
            model, X, bounds, delta=delta, epsilon=EPSILON, level=level, seed=seed
        )
        reached = "pairwise"
        if certificate.hyperparameter_status is not None:
            reached = "marginal"
        elif certificate.num_draws:
            reached = "joint"
        checks.append(
            {
                "level": reached,
                "delta": delta,
                "holds": certificate.holds,
                "draws": certificate.num_draws,
                "seconds": time.perf_counter() - begin,
            }
        )
        if certificate.holds and level == "marginal":
            break
        if certificate.holds:
            level = {"pairwise": "joint", "joint": "marginal"}[level]
    return recorded(NAME, settings, seed, {"checks": checks})
