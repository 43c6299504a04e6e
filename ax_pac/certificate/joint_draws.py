"""Joint draws of the difference to the incumbent: does one exceed delta?"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.optimize import relative_lengthscales

# Number of candidates in the active set, whose values every draw begins with.
_MAX_ACTIVE = 300

# A draw is continued where the candidates outside the active set fail with at least
# this share of epsilon.
_UNDECIDED_SHARE = 0.02

# Candidates that such a draw may reveal, and out of how many.
_MAX_REVEALED = 16

_POOL = 256

_CHUNK = 64

# In units of delta squared: a value of smaller variance counts as known.
_SMALLEST_VARIANCE = 1e-4


class DifferenceDraws:
    """Joint draws of `f(x) - f(incumbent)` over candidates; does one exceed delta?

    Every draw starts with its values at an active set: candidates that cover where a
    failure is likely. The other values are Gaussian with known mean and covariance, so
    the probability of a failure among them is bounded by a sum. A draw for which this
    bound is not negligible reveals the candidate most likely to fail, is conditioned on
    its value, and so on. By the chain rule that is an exact joint draw. It reaches
    maxima between the points of the active set, which are most of the failures in four
    and more dimensions. When a draw ends, it fails with the probability that is left,
    which overestimates failures.

    Args:
        acquisition: The score, with model, incumbent and delta.
        points: Candidates. Shape `N x d`.
        scores: Their scores. Shape `N`.
        epsilon: Probability against which an undecided draw matters.
        rng: Source of every random number.
    """

    def __init__(
        self,
        acquisition: PACAcquisition,
        points: Tensor,
        scores: Tensor,
        epsilon: float,
        rng: torch.Generator,
    ) -> None:
        self._difference = acquisition.difference(points)
        # In units of delta, so that single precision does for the draws: it is twice as
        # fast, and an error of 1e-5 delta in a maximum decides nothing.
        self._square = acquisition.delta**2
        lengthscales = relative_lengthscales(acquisition.model, points.shape[-1])
        width = (points.amax(0) - points.amin(0)).clamp_min(1e-300)
        self._active = covering(points / (lengthscales * width), scores, _MAX_ACTIVE)
        self._rng = rng
        self._tolerance = _UNDECIDED_SHARE * epsilon
        mean = self._difference.mean / acquisition.delta
        self._mean = mean.float().unsqueeze(-1)
        with torch.no_grad():
            among = self._difference.among(self._active) / self._square
        self._root = _root(among)

    @cached_property
    def _unknown(self) -> tuple[Tensor, Tensor]:
        """What the active set explains of all values, and the deviations left.

        Shapes `N x m` and `N`, in single precision.
        """
        with torch.no_grad():
            covariance = self._difference.with_columns(self._active) / self._square
        explained = torch.linalg.solve_triangular(
            self._root, covariance.mT, upper=False
        )
        variance = self._difference.variance / self._square
        variance = variance - explained.square().sum(0)
        deviation = variance.clamp_min(_SMALLEST_VARIANCE).sqrt()
        return explained.mT.float(), deviation.float()

    def _known(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw values at the active set, and the normals behind them, `m x draws`."""
        normal = torch.randn(len(self._active), num_draws, generator=self._rng)
        known = self._mean[self._active].addmm(self._root.float(), normal)
        return known, normal

    def fail_among_known(self, num_draws: int) -> Tensor:
        """Make draws of the active set alone; whether each exceeds delta there."""
        known, _ = self._known(num_draws)
        return (known > 1.0).any(0)

    def fail(self, num_draws: int) -> Tensor:
        """Make draws; whether each exceeds delta somewhere, `num_draws` booleans."""
        known, normal = self._known(num_draws)
        failed = (known > 1.0).any(0)
        going_on = (~failed).nonzero().squeeze(-1)
        if len(self._mean) == len(self._active) or len(going_on) == 0:
            return failed
        explained, deviation = self._unknown
        mean = self._mean.addmm(explained, normal[:, going_on])
        scores = (mean - 1.0) / deviation.unsqueeze(-1)
        scores[self._active] = -math.inf
        probability = torch.special.ndtr(scores)
        left = probability.sum(0)
        # Reveal what is not negligible, in chunks that fit into the cache.
        undecided = (left > self._tolerance).nonzero().squeeze(-1)
        for chunk in undecided.split(_CHUNK):
            top = probability[:, chunk].topk(min(_POOL, len(mean)), dim=0)
            rest = left[chunk] - top.values.sum(0)
            means = mean[:, chunk].gather(0, top.indices)
            beaten, left_in_pool = self._reveal(top.indices.mT, means.mT)
            failed[going_on[chunk]] = beaten
            left[chunk] = left_in_pool + rest.clamp_min(0.0)
        by_chance = torch.rand(len(left), generator=self._rng) < left
        failed[going_on] |= by_chance
        return failed

    def _reveal(self, pool: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Reveal candidates of each draw, the likeliest to exceed delta first.

        Args:
            pool: Indices of candidates. Shape `S x P`.
            mean: Their conditional means. Shape `S x P`.

        Returns:
            Whether a revealed value exceeds delta, and the bound on what the rest of
            the pool can do, both of shape `S`.
        """
        row = torch.arange(len(pool))
        explained, deviation = (of_all[pool] for of_all in self._unknown)
        variance = deviation.square()
        updates: list[Tensor] = []
        failed = torch.zeros(len(pool), dtype=torch.bool)
        known = torch.zeros_like(pool, dtype=torch.bool)
        left = torch.ones(len(pool))
        for reveal in range(_MAX_REVEALED + 1):
            deviation = variance.clamp_min(_SMALLEST_VARIANCE).sqrt()
            scores = ((mean - 1.0) / deviation).masked_fill(known, -math.inf)
            left = torch.special.ndtr(scores).sum(-1)
            if reveal == _MAX_REVEALED or (failed | (left <= self._tolerance)).all():
                break
            pivot = scores.argmax(-1)
            known[row, pivot] = True
            with torch.no_grad():
                prior = self._difference.with_pivots(pool, pool[row, pivot])
            covariance = (prior / self._square).float()
            covariance -= (explained @ explained[row, pivot].unsqueeze(-1)).squeeze(-1)
            for update in updates:
                covariance -= update * update[row, pivot].unsqueeze(-1)
            update = covariance / deviation[row, pivot].unsqueeze(-1)
            normal = torch.randn(len(pool), generator=self._rng)
            value = mean[row, pivot] + deviation[row, pivot] * normal
            # A draw whose remainder is negligible has ended.
            failed |= (value > 1.0) & (left > self._tolerance)
            updates.append(update)
            mean = mean + update * normal.unsqueeze(-1)
            variance = variance - update.square()
        return failed, left


def covering(points: Tensor, scores: Tensor, num_points: int) -> Tensor:
    """Choose points that cover where a failure is likely, farthest first.

    The point taken next is the farthest from those taken, its distance weighted by the
    fourth root of its pairwise probability: dense around the likeliest failures, and
    with a point near each of the others. The likeliest points alone would be one
    cluster of nearly equal values.

    Args:
        points: In units of the length scales. Shape `N x d`.
        scores: Standardised gaps. Shape `N`.
        num_points: How many to choose; all when there are no more.

    Returns:
        Their indices.
    """
    if len(points) <= num_points:
        return torch.arange(len(points))
    weights = torch.special.ndtr(scores).sqrt()  # of squared distances
    columns = points.mT.contiguous()
    distance = torch.full_like(scores, math.inf)
    chosen = torch.empty(num_points, dtype=torch.long)
    chosen[0] = scores.argmax()
    for i in range(num_points):
        if i:
            chosen[i] = (distance * weights).argmax()
        centre = columns[:, chosen[i]].unsqueeze(-1)
        distance = torch.minimum(distance, (columns - centre).square().sum(0))
    return chosen


def _root(covariance: Tensor) -> Tensor:
    """Cholesky factor of the covariance of points that may nearly coincide.

    What is added to the diagonal acts as independent noise in the draws, which makes a
    failure more likely, never less.
    """
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    scale = covariance.diagonal().max()
    for exponent in range(-11, -3):
        root, info = torch.linalg.cholesky_ex(
            covariance + 10.0**exponent * scale * identity
        )
        if int(info) == 0:
            return root
    raise ValueError(
        "the joint posterior covariance is not positive definite, even with 1e-4 of "
        "its largest variance added: check the hyperparameters of the model"
    )
