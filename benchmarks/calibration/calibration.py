"""Calibration of certificates on functions drawn from a prior.

The domain is finite (Sobol points), so a draw of the prior is exact, the optimum is
known and the challenger is found by enumeration: every error is the certificate's own.
All rules are applied to one trajectory, which goes on until the strictest one stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from botorch.models import SingleTaskGP
from gpytorch.kernels import ScaleKernel
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor
from torch.quasirandom import SobolEngine

from ax_pac import PACAcquisition
from ax_pac.acquisition.optimize import more_informative
from ax_pac.certificate.joint import joint_failure
from benchmarks.calibration.known import joint_holds, known_model, unit_kernel
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import (
    described,
    opening,
    revisions,
    stopped_after,
    table,
)
from benchmarks.harness.traces import Trace, by_settings, recorded

NAME = "calibration"
DESCRIPTION = "GP draws: success of certificates at the stop, and evaluations to it"
MINUTES_ONCE = 0.0

DELTA = 0.1
EPSILONS = (0.05, 0.005)
_LENGTHSCALES = {
    2: (0.25, 0.45),
    4: (0.35, 0.45, 0.55, 0.70),
    6: (0.45, 0.5, 0.6, 0.7, 0.8, 0.9),
}
_DOMAIN_POINTS = {2: 2048, 4: 3072, 6: 4096}
_INITIAL = {2: 5, 4: 10, 6: 15}
_MAX_EVALUATIONS = {2: 100, 4: 150, 6: 200}
# Draws behind the exact posterior probability at a stop. Its error in one run, .007
# at a probability of .05, is .0004 in the average over 300.
_EXACT_DRAWS = 1024


def settings(
    d: int, noise: float = 0.1, sampling: str = "leader_challenger"
) -> dict[str, Any]:
    return {"d": d, "noise": noise, "sampling": sampling, "hyperparameters": "known"}


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    (settings(2), 300, 0.06),
    (settings(4), 300, 0.4),
    (settings(2, sampling="challenger"), 100, 0.1),
    (settings(2, noise=0.05), 100, 0.05),
    (settings(2, noise=0.001), 100, 0.05),
    (settings(6), 300, 0.9),
    (settings(4, sampling="challenger"), 100, 0.7),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search one function; record where each rule stops, and the regret there."""
    problem = _Draw(seed, settings)
    stops: dict[str, dict[str, Any]] = {}
    # The exact posterior is asked for once at each number of evaluations.
    while len(stops) < 2 * len(EPSILONS) and problem.num_evaluations < problem.budget:
        acquisition = PACAcquisition(problem.model(), problem.visited(), DELTA)
        with torch.no_grad():
            scores = acquisition(problem.domain.unsqueeze(-2))
        top = int(scores.argmax())
        for rule in _rules_that_stop(acquisition, problem, scores, stops):
            stops[rule] = problem.verdict(acquisition, scores)
        challenger = problem.domain[top : top + 1]
        if settings["sampling"] == "leader_challenger":
            challenger = more_informative(acquisition, challenger)
        problem.evaluate(challenger)
    return recorded(
        NAME, settings, seed, {"stops": stops, "evaluations": problem.num_evaluations}
    )


def _rules_that_stop(
    acquisition: PACAcquisition,
    problem: _Draw,
    scores: Tensor,
    stopped: dict[str, Any],
) -> list[str]:
    """Names of the rules that are met now and were not before."""
    pairwise = float(torch.special.ndtr(scores.max()))
    met = []
    for epsilon in EPSILONS:
        if pairwise > epsilon:
            continue
        if f"pairwise {epsilon}" not in stopped:
            met.append(f"pairwise {epsilon}")
        if f"joint {epsilon}" not in stopped:
            n = problem.num_evaluations
            if joint_holds(acquisition, problem.domain, scores, epsilon, n):
                met.append(f"joint {epsilon}")
    return met


def _kernel(d: int) -> ScaleKernel:
    """The prior that functions are drawn from: Matern-5/2, unit variance."""
    return unit_kernel(torch.tensor(_LENGTHSCALES[d], dtype=torch.float64))


@cache
def _domain(d: int) -> Tensor:
    """The same finite domain for every seed."""
    engine = SobolEngine(d, scramble=True, seed=d)
    return engine.draw(_DOMAIN_POINTS[d], dtype=torch.float64)


@cache
def _prior_root(d: int) -> Tensor:
    return psd_safe_cholesky(_kernel(d)(_domain(d)).to_dense())


class _Draw:
    """One function from the prior on a finite domain, and what is known of it."""

    def __init__(self, seed: int, settings: dict[str, Any]) -> None:
        d = settings["d"]
        self.rng = torch.Generator().manual_seed(1_000_003 * d + seed)
        self.domain = _domain(d)
        self.noise = settings["noise"]
        self.budget = _MAX_EVALUATIONS[d]
        self.kernel = _kernel(d)
        self.values = (_prior_root(d) @ self._normal(len(self.domain))).squeeze(-1)
        self.indices: list[int] = []
        self.Y: list[float] = []
        first = torch.randperm(len(self.domain), generator=self.rng)[: _INITIAL[d]]
        for index in first.tolist():
            self.evaluate(self.domain[index : index + 1])

    def _normal(self, n: int) -> Tensor:
        return torch.randn(n, 1, generator=self.rng, dtype=torch.float64)

    @property
    def num_evaluations(self) -> int:
        return len(self.Y)

    def evaluate(self, x: Tensor) -> None:
        """Observe the function at a point of the domain, with noise."""
        index = self.index_of(x)
        self.indices.append(index)
        noise = self.noise * self._normal(1).item()
        self.Y.append(float(self.values[index]) + noise)

    def index_of(self, x: Tensor) -> int:
        return int((self.domain - x).square().sum(-1).argmin())

    def visited(self) -> Tensor:
        return self.domain[sorted(set(self.indices))]

    def model(self) -> SingleTaskGP:
        """The exact posterior, hyperparameters known."""
        Y = torch.tensor(self.Y, dtype=torch.float64).unsqueeze(-1)
        Yvar = torch.full_like(Y, self.noise**2)
        return known_model(self.domain[self.indices], Y, Yvar, self.kernel)

    def verdict(self, acquisition: PACAcquisition, scores: Tensor) -> dict[str, Any]:
        """True regret of the incumbent, and its exact posterior probability."""
        incumbent = self.index_of(acquisition.incumbent)
        exact = joint_failure(
            acquisition,
            self.domain,
            scores,
            epsilon=1e-3,
            alpha=0.5,
            seed=12345,
            fill_in=False,
            num_draws=_EXACT_DRAWS,
        )
        return {
            "evaluations": self.num_evaluations,
            "regret": float(self.values.max() - self.values[incumbent]),
            "posterior_failure": exact.num_failures / max(exact.num_draws, 1),
        }


def render_calibration(traces: Sequence[Trace]) -> str:
    """One table per setting, one row per rule."""
    lines = opening(
        "Calibration of certificates",
        "How often a certificate is right when it stops a search: functions drawn from "
        "a GP prior on a finite domain, with known hyperparameters, unit signal and "
        f"delta = {DELTA}. Every rule is applied to the same evaluations. `pairwise` "
        "is the published rule.",
        "*Success*: the incumbent at the stop is within delta of the best value, with "
        "its Clopper-Pearson interval (95 %). *Exact probability*: the posterior "
        "probability of success under the true prior, averaged over runs, with twice "
        "its standard error; it varies less than the share of successes. *Nominal*: "
        "what the certificate promises at least.",
        NAME,
    )
    for group in by_settings(traces):
        lines += [
            f"## {described(group[0].settings)}",
            "",
            f"{len(group)} runs. {revisions(group)}",
            "",
            *table(
                "rule | certified | evaluations, median (quartiles) | success "
                "| exact probability | nominal",
                (
                    _calibration_row(
                        f"{level} {epsilon}",
                        [t.result["stops"].get(f"{level} {epsilon}") for t in group],
                        1 - epsilon,
                    )
                    for level in ("pairwise", "joint")
                    for epsilon in EPSILONS
                ),
            ),
        ]
    return "\n".join(lines)


def _calibration_row(
    rule: str, stops: list[dict[str, Any] | None], nominal: float
) -> list[object]:
    """One rule. Runs that it did not stop count as beyond the longest."""
    made = [stop for stop in stops if stop is not None]
    if not made:
        return [rule, f"0/{len(stops)}", "-", "-", "-", f"{nominal:g}"]
    good = sum(stop["regret"] <= DELTA for stop in made)
    exact = 1 - np.array([stop["posterior_failure"] for stop in made])
    error = 2 * exact.std(ddof=1) / len(made) ** 0.5 if len(made) > 1 else np.nan
    return [
        rule,
        f"{len(made)}/{len(stops)}",
        stopped_after(stops),
        clopper_pearson(good, len(made)),
        f"{exact.mean():.4f} +- {error:.4f}",
        f"{nominal:g}",
    ]
