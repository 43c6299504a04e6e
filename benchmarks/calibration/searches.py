"""Searches of a known function that end by their certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ax_pac import PACAcquisition, PACCertificate, certify, fit_model
from ax_pac.acquisition.optimize import more_informative
from ax_pac.surrogate.fit import fewest_observations
from benchmarks.calibration.functions import Function
from benchmarks.calibration.stopped import failure_when_stopped

DELTA = 0.1
EPSILON = 0.05

_INITIAL = {1: 5, 2: 5, 3: 5, 4: 10, 6: 15, 9: 18, 16: 24}
_MAX_EVALUATIONS = {1: 60, 2: 60, 3: 60, 4: 150, 6: 200, 9: 150, 16: 150}

Noise = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Observes true values, `N`: what is observed and its reported SEM, both `N`."""


def gaussian(deviation: float) -> Noise:
    """Normal noise whose deviation is reported."""

    def observe(value: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(value.shape, generator=rng, dtype=torch.float64)
        return value + deviation * noise, torch.full_like(value, deviation)

    return observe


class CertifiedSearch:
    """A search with what it has observed, by leader and challenger.

    Args:
        function: What is maximised.
        noise: How it is observed.
        seed: Of design, noise and searches.
        budget: Evaluations at most.  Default: by the dimension.
        smooth: What makes of inputs, outcomes and SEMs, arrays of `n x d`, `n` and `n`,
            the SEMs that the surrogate uses.  Default: as reported.
    """

    def __init__(
        self,
        function: Function,
        noise: Noise,
        seed: int,
        *,
        budget: int | None = None,
        smooth: Callable[..., Any] | None = None,
    ) -> None:
        self.function, self.seed = function, seed
        self._noise, self._smooth = noise, smooth
        dim = function.dim
        self.budget = budget or _MAX_EVALUATIONS[dim]
        self.rng = torch.Generator().manual_seed(1_000_003 * dim + seed)
        self.bounds = torch.tensor([[0.0] * dim, [1.0] * dim], dtype=torch.float64)
        self.X = torch.empty(0, dim, dtype=torch.float64)
        self.Y = torch.empty(0, 1, dtype=torch.float64)
        self.sem = torch.empty(0, 1, dtype=torch.float64)
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
        for x in engine.draw(_INITIAL[dim], dtype=torch.float64):
            self._evaluate(x.unsqueeze(0))

    @property
    def num_evaluations(self) -> int:
        return len(self.X)

    def _evaluate(self, x: Tensor) -> None:
        value, sem = self._noise(self.function.evaluate(x), self.rng)
        self.X = torch.cat([self.X, x])
        self.Y = torch.cat([self.Y, value.unsqueeze(-1)])
        self.sem = torch.cat([self.sem, sem.unsqueeze(-1)])

    def check(self) -> PACCertificate:
        """Fit the surrogate and compute its certificate."""
        sem = self.sem
        if self._smooth is not None:
            arrays = self.X, self.Y.squeeze(-1), sem.squeeze(-1)
            smooth = self._smooth(*(array.numpy() for array in arrays))
            sem = torch.as_tensor(smooth).unsqueeze(-1)
        self.model = fit_model(self.X, self.Y, sem.square())
        return self.certify("marginal")

    def certify(self, level: str) -> PACCertificate:
        """Compute a certificate from the surrogate that was fitted last."""
        return certify(
            self.model,
            self.X,
            self.bounds,
            delta=DELTA,
            epsilon=EPSILON,
            level=level,
            seed=10_000 * self.seed + self.num_evaluations,
        )

    def failure(self, true: tuple[Tensor, float] | None) -> dict[str, float]:
        """Estimate the probability of a failure, with much more work than a check.

        Args:
            true: As in `failure_when_stopped`.
        """
        return failure_when_stopped(
            self.model,
            self.X,
            self.bounds,
            delta=DELTA,
            true=true,
            seed=self.seed,
        )

    def step(self, certificate: PACCertificate) -> None:
        """Evaluate challenger or incumbent, whichever is more informative."""
        acquisition = PACAcquisition(self.model, self.X, DELTA)
        challenger = torch.tensor([certificate.challenger], dtype=torch.float64)
        self._evaluate(more_informative(acquisition, challenger))

    def verdict(self, certificate: PACCertificate) -> dict[str, Any]:
        """Measure the true regret of the incumbent."""
        incumbent = torch.tensor([certificate.incumbent], dtype=torch.float64)
        value = self.function.evaluate(incumbent).item()
        dim = self.function.dim
        fewest = max(fewest_observations(dim), _INITIAL[dim])
        return {
            "evaluations": self.num_evaluations,
            "regret": max(0.0, self.function.maximum - value),
            "failure_probability": certificate.failure_probability,
            # Which of the checks that a run may make, the first being 1.
            "check": self.num_evaluations - fewest + 1,
        }
