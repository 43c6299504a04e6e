"""Certificates with fitted hyperparameters, on functions whose best value is known.

The whole of what a user gets: the surrogate is fitted at every step, challengers are
searched in the continuous box, and the run ends by its certificate. Functions are drawn
from a GP or are the usual test functions.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ax_pac import PACCertificate
from ax_pac.surrogate.mcmc import (
    LENGTHSCALE_LOG_SD,
    LENGTHSCALE_MEDIAN,
    OUTPUTSCALE_LOG_SD,
)
from benchmarks.calibration.functions import (
    LENGTHSCALE,
    TEST_FUNCTIONS,
    Function,
    draw_from_prior,
    known_function,
)
from benchmarks.calibration.searches import (
    EPSILON,
    CertifiedSearch,
    gaussian,
)
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded

NAME = "fitted"
DESCRIPTION = "fitted hyperparameters: success of marginal certificates at the stop"
MINUTES_ONCE = 0.0

# Length scales of the draws whose hyperparameters are set, not drawn.
_LENGTHSCALES = {
    2: LENGTHSCALE,
    4: (0.35, 0.45, 0.55, 0.70),
    6: (0.45, 0.5, 0.6, 0.7, 0.8, 0.9),
    9: (1.5,) * 9,
    16: (2.0,) * 16,
}
# Evaluations at most, where they are not those of the dimension.
_BUDGETS = {"hartmann6": 100}


def settings(function: str, d: int, noise: float) -> dict[str, Any]:
    return {"function": function, "d": d, "noise": noise}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    (settings("set", 2, 0.1), 100, 0.3),
    (settings("prior", 2, 0.1), 100, 0.3),
    (settings("branin", 2, 0.001), 50, 0.4),
    (settings("hartmann3", 3, 0.001), 50, 0.4),
    (settings("set", 4, 0.1), 100, 1.3),
    (settings("prior", 4, 0.1), 50, 1.0),
    (settings("hartmann6", 6, 0.001), 50, 0.4),
    (settings("rosenbrock4", 4, 0.001), 50, 0.7),
    (settings("wilson", 2, 0.1), 50, 0.3),
    (settings("wilson", 4, 0.1), 50, 1.3),
    (settings("set", 6, 0.1), 40, 8.0),
    (settings("set", 9, 0.1), 20, 6.0),
    (settings("set", 16, 0.1), 20, 8.0),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search one function; record where each level stops, and the regret there."""
    hyperparameters = _hyperparameters(seed, settings)
    function = _function(seed, settings, hyperparameters)
    noise, budget = gaussian(settings["noise"]), _BUDGETS.get(settings["function"])
    search = CertifiedSearch(function, noise, seed, budget=budget)
    stops: dict[str, dict[str, Any]] = {}
    refusals = 0
    while "marginal" not in stops and search.num_evaluations < search.budget:
        certificate = search.check()
        for level in _levels_that_hold(search, certificate, stops):
            stops.setdefault(level, search.verdict(certificate))
        refusals += certificate.hyperparameter_status not in (None, "ok")
        if "marginal" not in stops:
            search.step(certificate)
    if "marginal" in stops:
        true = None if hyperparameters is None else hyperparameters[:2]
        stops["marginal"] |= search.failure(true)
    return recorded(
        NAME,
        settings,
        seed,
        {
            "stops": stops,
            "evaluations": search.num_evaluations,
            "refusals": refusals,
        },
    )


def _levels_that_hold(
    search: CertifiedSearch, certificate: PACCertificate, stopped: dict[str, Any]
) -> list[str]:
    """Which levels are met at this check."""
    levels = []
    if certificate.pairwise_probability <= EPSILON:
        levels.append("pairwise")
    # Where alpha is not spent, there are too few observations for level joint. A check
    # at level marginal uses it as a filter only, so it is asked on its own.
    if certificate.alpha > 0.0 and "joint" not in stopped:
        if search.certify("joint").holds:
            levels.append("joint")
    if certificate.holds:
        levels.append("marginal")
    return levels


class _Hyperparameters(NamedTuple):
    """What a function is drawn with."""

    lengthscale: Tensor
    outputscale: float
    mean: float


def _hyperparameters(seed: int, settings: dict[str, Any]) -> _Hyperparameters | None:
    """None for a test function."""
    name, d = settings["function"], settings["d"]
    if name in TEST_FUNCTIONS:
        return None
    rng = torch.Generator().manual_seed(7_919 * d + seed)
    normal = torch.randn(d + 2, generator=rng, dtype=torch.float64)
    if name == "prior":
        median = LENGTHSCALE_MEDIAN * math.sqrt(d)
        return _Hyperparameters(
            median * (LENGTHSCALE_LOG_SD * normal[:d]).exp(),
            math.exp(OUTPUTSCALE_LOG_SD * normal[d].item()),
            normal[d + 1].item(),
        )
    if name == "wilson":
        lengthscale = torch.full((d,), 0.25 * math.sqrt(d), dtype=torch.float64)
    else:
        lengthscale = torch.tensor(_LENGTHSCALES[d], dtype=torch.float64)
    return _Hyperparameters(lengthscale, 1.0, 0.0)


def _function(
    seed: int, settings: dict[str, Any], hyperparameters: _Hyperparameters | None
) -> Function:
    if hyperparameters is None:
        return known_function(settings["function"])
    return draw_from_prior(*hyperparameters, seed=1_000_003 * settings["d"] + seed)
