"""What estimated standard errors do to certificates: raw, smoothed and true.

Functions from a known prior on a finite domain, observed like a loss that is to be
small: an evaluation is the mean of m samples whose spread is proportional to the mean,
and its standard error is estimated from the same m samples. Sums of squared errors are
skewed, so a draw that looks good also looks precise. Hyperparameters are known and the
challenger is found by enumeration: every error is the certificate's or the noise's own.
"""

from __future__ import annotations

from functools import cache
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
from ax_pac.surrogate.noise import smoothed_sems
from benchmarks.calibration.known import joint_holds, known_model, unit_kernel
from benchmarks.harness.plans import matching
from benchmarks.harness.traces import Trace, recorded

NAME = "noise_calibration"
DESCRIPTION = "GP draws: success of joint certificates under estimated noise"
MINUTES_ONCE = 0.0

DELTA, EPSILON = 0.1, 0.05
_LENGTHSCALES = (0.25, 0.45)
_DOMAIN_POINTS = 1024
_INITIAL = 6
_MAX_EVALUATIONS = 100
# Standard error where the loss is typical; at the best point it is about a sixth.
_TYPICAL_SEM = 0.3
# Draws behind the probability under the true variances; its error is below .004.
_EXACT_DRAWS = 4096


def settings(m: int, noise: str, values: str = "squares") -> dict[str, Any]:
    return {"m": m, "noise": noise, "values": values}


_RUNS = 100
_PLAN = (
    *(settings(m, noise) for m in (10, 50) for noise in ("raw", "smoothed", "true")),
    *(settings(10, noise, "normal") for noise in ("raw", "smoothed")),
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`; a seed is the same function in each."""
    rows = matching(_PLAN, changes)
    return [(row, seed) for seed in range(seeds or _RUNS) for row in rows]


def minutes(job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run, measured."""
    return 0.01


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search one function until its joint certificate; record the regret there."""
    problem = _NoisyDraw(seed, settings)
    stop = None
    while stop is None and len(problem.Y) < _MAX_EVALUATIONS:
        acquisition = PACAcquisition(
            problem.model(settings["noise"]), problem.visited(), DELTA
        )
        with torch.no_grad():
            scores = acquisition(problem.domain.unsqueeze(-2))
        if _holds(acquisition, problem.domain, scores, len(problem.Y)):
            stop = problem.verdict(acquisition)
        top = int(scores.argmax())
        problem.evaluate(more_informative(acquisition, problem.domain[top : top + 1]))
    return recorded(NAME, settings, seed, {"stop": stop})


def _holds(acquisition: PACAcquisition, domain: Tensor, scores: Tensor, n: int) -> bool:
    """Whether the filter and the joint certificate hold."""
    if float(torch.special.ndtr(scores.max())) > EPSILON:
        return False
    return joint_holds(acquisition, domain, scores, EPSILON, n)


def _kernel() -> ScaleKernel:
    return unit_kernel(torch.tensor(_LENGTHSCALES, dtype=torch.float64))


@cache
def _domain_and_root() -> tuple[Tensor, Tensor]:
    engine = SobolEngine(len(_LENGTHSCALES), scramble=True, seed=2)
    domain = engine.draw(_DOMAIN_POINTS, dtype=torch.float64)
    return domain, psd_safe_cholesky(_kernel()(domain).to_dense())


class _NoisyDraw:
    """One function from the prior, and what is known of it."""

    def __init__(self, seed: int, settings: dict[str, Any]) -> None:
        self.rng = np.random.default_rng([1_000_003, seed])
        self.settings = settings
        self.domain, root = _domain_and_root()
        self.values = (
            root @ torch.from_numpy(self.rng.standard_normal(len(root)))
        ).numpy()
        # The loss whose negative is searched: positive, half a unit at its best.
        self.loss = self.values.max() + 0.5 - self.values
        self.true_sems = _TYPICAL_SEM * self.loss / self.loss.mean()
        self.indices: list[int] = []
        self.Y: list[float] = []
        self.sems: list[float] = []
        first = self.rng.permutation(len(self.domain))[:_INITIAL]
        for index in first.tolist():
            self.evaluate(self.domain[index : index + 1])

    def evaluate(self, x: Tensor) -> None:
        """Observe the mean of m samples, and its standard error from the same."""
        index = self.index_of(x)
        m = self.settings["m"]
        if self.settings["values"] == "squares":
            samples = (self.rng.standard_normal(m) ** 2 - 1.0) / 2.0**0.5
        else:
            samples = self.rng.standard_normal(m)
        # Samples of the loss; what is maximised is its negative.
        sem = self.true_sems[index]
        self.indices.append(index)
        self.Y.append(float(self.values[index] - sem * m**0.5 * samples.mean()))
        self.sems.append(float(sem * samples.std(ddof=1)))

    def index_of(self, x: Tensor) -> int:
        return int((self.domain - x).square().sum(-1).argmin())

    def visited(self) -> Tensor:
        return self.domain[sorted(set(self.indices))]

    def model(self, noise: str) -> SingleTaskGP:
        """The posterior under raw, smoothed or true standard errors."""
        X = self.domain[self.indices]
        sem = np.array(self.sems)
        if noise == "smoothed":
            objective = np.array(self.Y) - self.values.max() - 0.5
            sem = smoothed_sems(
                X.numpy(), objective, sem, num_samples=self.settings["m"]
            )
        elif noise == "true":
            sem = self.true_sems[self.indices]
        Y = torch.tensor(self.Y, dtype=torch.float64).unsqueeze(-1)
        return known_model(X, Y, torch.from_numpy(sem**2).unsqueeze(-1), _kernel())

    def verdict(self, acquisition: PACAcquisition) -> dict[str, Any]:
        """Evaluations to the stop, true regret, and what the true variances say."""
        incumbent = self.index_of(acquisition.incumbent)
        return {
            "evaluations": len(self.Y),
            "regret": float(self.values.max() - self.values[incumbent]),
            "failure_under_true": self._failure_under_true(acquisition.incumbent),
        }

    def _failure_under_true(self, incumbent: Tensor) -> float:
        """Probability, given the data and the true variances, that a point is better.

        Of the certified incumbent, by more than delta. Less variable than the regret.
        """
        informed = PACAcquisition(self.model("true"), self.visited(), DELTA)
        informed.incumbent = incumbent
        informed.set_X_pending(None)
        with torch.no_grad():
            scores = informed(self.domain.unsqueeze(-2))
        exact = joint_failure(
            informed,
            self.domain,
            scores,
            epsilon=1e-3,
            alpha=0.5,
            seed=12345,
            fill_in=False,
            num_draws=_EXACT_DRAWS,
        )
        return exact.num_failures / max(exact.num_draws, 1)
