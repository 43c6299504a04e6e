"""Joint draws of the difference to the incumbent, revealed point by point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from ax_pac.acquisition import VARIANCE_FLOOR
from ax_pac.hyperparameter_posterior import (
    JITTER,
    MEAN_VARIANCE,
    HyperparameterSample,
    matern,
)

# Values of a function revealed between two looks at which candidates still matter.
_REVEALED_AT_ONCE = 4
# Share of the tolerance that each later look may drop.
_DROPPED_SHARE = 0.1
# A function that has revealed this many values is decided by chance.
_MAX_REVEALED = 96
# Doubles in the largest temporary: settings are scored in chunks of this size.
_CHUNK_SIZE = 2_000_000


class DifferenceProblem:
    """Data, incumbent and candidates in the units of the surrogate's inside.

    Args:
        model: A fitted plain `SingleTaskGP` with known noise.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        candidates: Shape `N x d`. Unit: the model's input units.
        delta: Tolerance. Unit: objective units.
        weight: 1 to maximise, -1 to minimise.
    """

    def __init__(
        self,
        model: SingleTaskGP,
        incumbent: Tensor,
        candidates: Tensor,
        delta: float,
        weight: float,
    ) -> None:
        model.eval()
        transform = getattr(model, "outcome_transform", None)
        scale = 1.0 if transform is None else float(transform.stdvs)
        with torch.no_grad():
            self.Z = model.train_inputs[0].detach()
            self.Y = weight * model.train_targets.detach()
            self.noise = model.likelihood.noise.detach().expand(len(self.Y)).clone()
            self.incumbent = model.transform_inputs(incumbent).detach()
            self.candidates = model.transform_inputs(candidates).detach()
        self.delta = delta / scale


class _Functions:
    """Joint draws of `f(x) - f(incumbent)`, one under each setting, point by point."""

    def __init__(
        self, problem: DifferenceProblem, lengthscale: Tensor, outputscale: Tensor
    ) -> None:
        self.delta = problem.delta
        self.scale = scale = outputscale[:, None, None]
        Z = problem.Z / lengthscale[:, None]
        incumbent = problem.incumbent / lengthscale[:, None]
        self.X = problem.candidates / lengthscale[:, None]
        noise = torch.diag(problem.noise + JITTER)
        L = torch.linalg.cholesky(_kernel(Z, Z, scale) + MEAN_VARIANCE + noise)
        whitener = torch.linalg.inv(L).mT
        cross = _kernel(self.X, Z, scale).sub_(_kernel(incumbent, Z, scale))
        # Rows of `known` are what the data, and later the revealed values, explain.
        self.known = cross @ whitener
        weights = (problem.Y @ whitener).unsqueeze(-1)
        self.mean = (self.known @ weights).squeeze(-1)
        self.k_incumbent = _kernel(self.X, incumbent, scale).squeeze(-1)
        prior = 2.0 * (outputscale.unsqueeze(-1) - self.k_incumbent)
        self.variance = prior - self.known.square().sum(-1)
        # Values revealed since the candidates were last thinned out.
        self.revealed: list[Tensor] = []
        # What the candidates that were forgotten can do, by the union bound.
        self.dropped = torch.zeros_like(outputscale)
        self.floor = 2.0 * VARIANCE_FLOOR * outputscale.unsqueeze(-1)

    def scores(self) -> Tensor:
        """Standardised gaps given what is known, `S x N`."""
        deviation = torch.maximum(self.variance, self.floor).sqrt()
        return (self.mean - self.delta) / deviation

    def keep_candidates(self, scores: Tensor, tolerance: float) -> int:
        """Forget candidates that together fail with at most the tolerance.

        Returns:
            The number kept, the same for all settings.
        """
        self._absorb()
        probability, order = torch.special.ndtr(scores).sort(-1, descending=True)
        left_out = probability.flip(-1).cumsum(-1).flip(-1)
        size = max(1, int((left_out > tolerance).sum(-1).amax()))
        if size > 0.8 * scores.shape[-1]:
            return size
        order = order[:, :size]
        self.X, self.known = (
            t.gather(1, order.unsqueeze(-1).expand(-1, -1, t.shape[-1]))
            for t in (self.X, self.known)
        )
        self.mean, self.variance, self.k_incumbent = (
            t.gather(1, order) for t in (self.mean, self.variance, self.k_incumbent)
        )
        self.dropped = self.dropped + left_out[:, size]
        return size

    def _absorb(self) -> None:
        """Append what the revealed values explain to what the data explain."""
        if self.revealed:
            self.known = torch.cat([self.known, torch.stack(self.revealed, -1)], -1)
            self.revealed = []

    def keep_settings(self, which: Tensor) -> None:
        """Forget the settings whose draw is decided."""
        self._absorb()
        for name in "X known mean variance k_incumbent floor scale dropped".split():
            setattr(self, name, getattr(self, name)[which])

    def reveal(self, pivot: Tensor, normal: Tensor) -> Tensor:
        """Draw the values at one candidate of each setting, `S`, and condition on them.

        Args:
            pivot: Index of the candidate. Shape `S`.
            normal: Standard normal draws. Shape `S`.

        Returns:
            `f(pivot) - f(incumbent)`. Shape `S`. Unit: standardised outcome.
        """
        row = torch.arange(len(pivot))
        point = self.X[row, pivot].unsqueeze(1)
        prior = _kernel(self.X, point, self.scale).squeeze(-1)
        prior = prior - self.k_incumbent - self.k_incumbent[row, pivot].unsqueeze(-1)
        prior = prior + self.scale.squeeze(-1)
        explained = (self.known @ self.known[row, pivot].unsqueeze(-1)).squeeze(-1)
        for update in self.revealed:
            explained += update * update[row, pivot].unsqueeze(-1)
        deviation = torch.maximum(self.variance[row, pivot], self.floor.squeeze(-1))
        deviation = deviation.sqrt()
        value = self.mean[row, pivot] + deviation * normal
        update = (prior - explained) / deviation.unsqueeze(-1)
        self.revealed.append(update)
        self.mean = self.mean + update * normal.unsqueeze(-1)
        self.variance = self.variance - update.square()
        # A revealed value is no longer a threat.
        self.mean[row, pivot] = -math.inf
        return value


class FunctionDraws(NamedTuple):
    """Functions drawn, one under each setting of the hyperparameters.

    Args:
        failed: Whether some candidate exceeds delta. Shape `S`.
        active_set_size: Largest number of candidates that took part in a draw.
        pairwise: Each candidate's own probability of exceeding delta, averaged over
            the settings. Shape `N`.
    """

    failed: Tensor
    active_set_size: int
    pairwise: Tensor


def draw_failures(
    problem: DifferenceProblem,
    sample: HyperparameterSample,
    tolerance: float,
    generator: torch.Generator,
) -> FunctionDraws:
    """Draw one function under each setting; does a candidate beat the incumbent?

    The difference `f(x) - f(incumbent)` is drawn jointly at all candidates that
    matter. What is left out is bounded by the union bound and counted as failures in
    that proportion.

    Args:
        problem: Data, incumbent, candidates and delta.
        sample: `S` settings of the hyperparameters.
        tolerance: Probability that does not matter, in (0, 1).
        generator: Source of every random number.

    Returns:
        Whether some candidate exceeds delta, and more about the draws.
    """
    num_candidates = len(problem.candidates)
    chunk = max(1, _CHUNK_SIZE // (num_candidates * len(problem.Z)))
    failed, largest, pairwise = [], 0, torch.zeros(num_candidates).double()
    for lengthscale, outputscale in zip(
        sample.lengthscale.split(chunk), sample.outputscale.split(chunk), strict=True
    ):
        functions = _Functions(problem, lengthscale, outputscale)
        scores = functions.scores()
        pairwise += torch.special.ndtr(scores).sum(0)
        largest = max(largest, functions.keep_candidates(scores, tolerance))
        failed.append(_reveal_until_decided(functions, tolerance, generator))
    pairwise /= len(sample.outputscale)
    return FunctionDraws(torch.cat(failed), largest, pairwise)


def _reveal_until_decided(
    functions: _Functions, tolerance: float, generator: torch.Generator
) -> Tensor:
    """Reveal each function until it fails or what is left is negligible, `S` booleans.

    The point revealed next is the likeliest to fail given those revealed before. The
    choice uses nothing that has not been revealed, so the chain rule holds and the draw
    is a joint one. Candidates that have become unlikely are dropped. A function ends by
    failing with the probability of what was dropped or is left: at least as often as it
    would.
    """
    failed = torch.zeros(len(functions.mean), dtype=torch.bool)
    undecided = torch.arange(len(failed))
    revealed = 0
    while len(undecided):
        scores = functions.scores()
        left = torch.special.ndtr(scores).sum(-1)
        ended = (left <= tolerance) | (revealed >= _MAX_REVEALED)
        left = left + functions.dropped
        chance = torch.rand(len(left), generator=generator, dtype=torch.float64)
        failed[undecided] |= ended & (chance < left)
        going_on = ~ended & ~failed[undecided]
        undecided = undecided[going_on]
        if len(undecided) == 0:
            break
        if not going_on.all():
            functions.keep_settings(going_on)
            scores = scores[going_on]
        functions.keep_candidates(scores, _DROPPED_SHARE * tolerance)
        for _ in range(_REVEALED_AT_ONCE):
            pivot = functions.scores().argmax(-1)
            normal = torch.randn(len(pivot), generator=generator, dtype=torch.float64)
            failed[undecided] |= functions.reveal(pivot, normal) > functions.delta
        revealed += _REVEALED_AT_ONCE
    return failed


def _kernel(A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
    """Matern-5/2 covariance between scaled points, `S x a x d, S x b x d -> S x a x b`.

    Squared distances are expanded: their rounding error, about 1e-13 at the shortest
    length scales, is far below the variance floor's share of what it is compared with.
    """
    squared = (-2.0 * A) @ B.mT
    squared += A.square().sum(-1, keepdim=True)
    squared += B.square().sum(-1).unsqueeze(-2)
    return matern(squared.clamp_min_(0.0).mul_(5.0)).mul_(scale)
