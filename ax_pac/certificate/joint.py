"""The probability that any point beats the incumbent, by exact joint draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.optimize import open_scores, relative_lengthscales
from ax_pac.certificate.bounds import (
    certifiable_share,
    clopper_pearson_upper,
    draws_needed,
)
from ax_pac.certificate.joint_draws import DifferenceDraws

# Share of epsilon that may be lost by leaving unlikely points out of the draws. What is
# left out is bounded by the sum of the pairwise probabilities and added to the result.
_PRUNED_SHARE = 0.02

# Candidates at most.
_MAX_CANDIDATES = 6000

# Draws of each stage, as multiples of the fewest that could certify.
_STAGES = (1, 4, 16)

# Draws of the active set alone, before anything else is computed.
_FIRST_LOOK = 128


class JointFailure(NamedTuple):
    """An estimate of the probability that some point beats the incumbent by delta.

    Args:
        num_failures: Draws in which a point did.
        num_draws: Draws made.
        upper_bound: Upper confidence bound of the probability, points left out
            included.
        active_set_size: Points in the draws.
    """

    num_failures: int
    num_draws: int
    upper_bound: float
    active_set_size: int

    @property
    def estimate(self) -> float:
        """Draws that failed, as a share of all."""
        return self.num_failures / max(self.num_draws, 1)


def joint_failure(
    acquisition: PACAcquisition,
    points: Tensor,
    scores: Tensor,
    *,
    epsilon: float,
    alpha: float,
    seed: int,
    fill_in: bool = True,
    num_draws: int | None = None,
    num_stages: int = 3,
) -> JointFailure:
    """Bound P(max_x f(x) - f(incumbent) > delta) by exact draws of the posterior.

    The maximum is over candidates: the points whose pairwise probabilities of beating
    the incumbent are not negligible against epsilon, and points around them. Each draw
    is an exact joint draw of the differences to the incumbent, see `DifferenceDraws`.
    The number of draws grows in stages. A stage whose share of failures is clearly
    above epsilon ends the test; so does a first look at the active set alone, which is
    cheap and decides most failing checks.

    Args:
        acquisition: The score, with model, incumbent and delta.
        points: Scored points, from one or several searches. Shape `N x d`.
        scores: Their scores. Shape `N`.
        epsilon: What the upper bound is compared with, to know when to end.
        alpha: Probability that the bound fails, all stages together.
        seed: Seed of the draws.
        fill_in: Whether to add points around the active ones. Off when `points` are
            all there are.
        num_draws: Draws to make in one stage, for an estimate rather than a verdict;
            None for as many as the verdict needs.
        num_stages: Stages at most, 1 to 3. One stage is a filter: it certifies only
            what hardly ever fails, and its share of failures is an estimate.

    Returns:
        Counts and upper bound; certified if `upper_bound <= epsilon`.

    Source: Wilson 2024 (probabilistic regret bounds) for the claim; there the maximum
    of each draw is found by gradient, here draws are exact on a set of points.
    """
    rng = torch.Generator().manual_seed(seed)
    if fill_in:
        points, scores = filled_in(acquisition, points, scores, epsilon, rng)
    keep, pruned = _prune(scores, epsilon)
    if len(keep) > _MAX_CANDIDATES:
        keep = _thin(keep, scores, rng)
    if len(keep) == 0:
        return JointFailure(0, 0, pruned, 0)
    draws = DifferenceDraws(acquisition, points[keep], scores[keep], epsilon, rng)
    target = epsilon - pruned
    if num_draws is not None:
        failures = int(draws.fail(num_draws).sum())
        upper = clopper_pearson_upper(failures, num_draws, alpha)
        return JointFailure(failures, num_draws, upper + pruned, len(keep))
    alpha /= num_stages
    smallest = draws_needed(target, alpha)
    stages = [stage * smallest for stage in _STAGES[:num_stages]]
    hopeless = certifiable_share(stages[-1], target, alpha)
    # Giving up early is safe: it can only withhold a certificate. The draws of the
    # first look are not used again.
    failures, drawn = int(draws.fail_among_known(_FIRST_LOOK).sum()), _FIRST_LOOK
    given_up = _is_clearly_above(failures, drawn, hopeless)
    if not given_up:
        failures, drawn = 0, 0
    for stage in stages:
        while drawn < stage and not given_up:
            # Small batches first: most checks that fail are far above epsilon.
            batch = min(1024, stage - drawn, max(128, drawn))
            failures += int(draws.fail(batch).sum())
            drawn += batch
            given_up = _is_clearly_above(failures, drawn, hopeless)
        upper = clopper_pearson_upper(failures, drawn, alpha)
        if upper <= target or given_up:
            break
    return JointFailure(failures, drawn, upper + pruned, len(keep))


def _is_clearly_above(num_failures: int, num_draws: int, share: float) -> bool:
    """Whether there are more failures than a share, by more than their deviation."""
    return num_failures - share * num_draws > max(2.0, math.sqrt(num_failures))


def filled_in(
    acquisition: PACAcquisition,
    points: Tensor,
    scores: Tensor,
    epsilon: float,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Add as many points again around those that are likely to fail.

    Args:
        acquisition: The score.
        points: Scored points. Shape `N x d`.
        scores: Their scores. Shape `N`.
        epsilon: Allowed failure probability; points negligible against it do not count.
        rng: Source of the new points.

    Returns:
        All points with their scores, `2N x d` and `2N`; unchanged if none is likely.
    """
    # By index: starts that climbed to one maximum tie, and a tie is broken by rounding.
    keep = _prune(scores, epsilon)[0].sort().values
    centres = points[keep]
    if len(centres) == 0:
        return points, scores
    # The maximum of a draw lies between the points: add some around the likeliest, from
    # a hundredth to half of a length scale away.
    weights = torch.special.ndtr(scores[keep])
    which = torch.multinomial(weights, len(points), replacement=True, generator=rng)
    lower, upper = points.amin(0), points.amax(0)
    shape = (len(points), points.shape[-1])
    direction = torch.randn(shape, generator=rng, dtype=torch.float64)
    exponent = torch.rand(shape[0], 1, generator=rng, dtype=torch.float64)
    lengthscales = relative_lengthscales(acquisition.model, shape[1])
    radius = 10.0 ** (-2.0 + 1.7 * exponent) / math.sqrt(shape[1])
    filled = centres[which] + radius * direction * lengthscales * (upper - lower)
    filled = filled.clamp(lower, upper)
    scores = torch.cat([scores, open_scores(acquisition, filled)])
    return torch.cat([points, filled]), scores


def _prune(scores: Tensor, epsilon: float) -> tuple[Tensor, float]:
    """Indices to keep, highest score first, and a bound on failures at the others."""
    order = scores.argsort(descending=True)
    probability = torch.special.ndtr(scores[order])
    left_out = probability.flip(0).cumsum(0).flip(0)
    num_kept = int((left_out > _PRUNED_SHARE * epsilon).sum())
    return order[:num_kept], float(probability[num_kept:].sum())


def _thin(keep: Tensor, scores: Tensor, rng: torch.Generator) -> Tensor:
    """Cut candidates to the largest number allowed, by chance, by their probability.

    Candidates this dense are correlated so closely that those left out add little; the
    benchmark of the inner maximum shows what is lost.
    """
    weights = torch.special.ndtr(scores[keep]).sqrt()
    drawn = torch.multinomial(weights[1:], _MAX_CANDIDATES - 1, generator=rng)
    # The strongest one stays.
    return torch.cat([keep[:1], keep[1:][drawn]])
