"""The probability that *any* point beats the incumbent, by exact joint draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor

from ax_pac.acquisition import PACAcquisition
from ax_pac.challenger import relative_lengthscales

# Share of epsilon that may be lost by leaving unlikely points out of the draws. What is
# left out is bounded by the sum of the pairwise probabilities and added to the result.
_PRUNED_SHARE = 0.02
# Points in the joint draws at most; a Cholesky factor of this size takes 0.1 s.
_MAX_ACTIVE = 1200
# Draws of each stage, as multiples of the fewest that could certify.
_STAGES = (1, 4, 16)


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


def clopper_pearson_upper(num_failures: int, num_draws: int, alpha: float) -> float:
    """Return the one-sided upper confidence bound of a share.

    Args:
        num_failures: Failures, at most `num_draws`.
        num_draws: Independent draws, at least 1.
        alpha: Probability that the share lies above the bound, at most.

    Example:
        >>> round(clopper_pearson_upper(0, 100, 0.05), 4)  # 1 - 0.05 ** (1 / 100)
        0.0295
    """
    if num_failures >= num_draws:
        return 1.0
    return float(beta.ppf(1.0 - alpha, num_failures + 1, num_draws - num_failures))


def draws_needed(epsilon: float, alpha: float) -> int:
    """Return the fewest draws that certify epsilon when none of them fails.

    Example:
        >>> draws_needed(0.05, 0.05)
        59
    """
    return math.ceil(math.log(alpha) / math.log1p(-epsilon))


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
) -> JointFailure:
    """Bound P(max_x f(x) - f(incumbent) > delta) by exact draws of the posterior.

    The maximum is over an active set: the points whose pairwise probabilities of
    beating the incumbent are not negligible against epsilon, and points around them.
    Each draw is an exact joint draw of the differences to the incumbent. The number of
    draws grows in three stages; a stage that is clearly above epsilon ends the test.

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

    Returns:
        Counts and upper bound; certified if `upper_bound <= epsilon`.

    Source: Wilson 2024 (probabilistic regret bounds) for the claim; there the maximum
    of each draw is found by gradient, here draws are exact on a set of points.
    """
    rng = torch.Generator().manual_seed(seed)
    if fill_in:
        points, scores = filled_in(acquisition, points, scores, epsilon, rng)
    keep, pruned = _prune(scores, epsilon)
    if len(keep) > _MAX_ACTIVE:
        keep = _thin(keep, scores, rng)
    points = points[keep]
    if len(points) == 0:
        return JointFailure(0, 0, pruned, 0)
    mean, covariance = acquisition.difference(points)
    # In units of delta, so that single precision does for the draws: it is three times
    # as fast, and an error of 1e-6 delta in a maximum decides nothing.
    root = (_root(covariance) / acquisition.delta).float()
    mean = (mean / acquisition.delta).float()
    target = epsilon - pruned
    if num_draws is None:
        smallest = draws_needed(target, alpha / len(_STAGES))
        stages = [stage * smallest for stage in _STAGES]
    else:
        stages = [num_draws]
    failures, drawn, upper = 0, 0, 1.0
    for stage in stages:
        while drawn < stage:
            # Small batches first: most checks that fail are far above epsilon.
            batch = min(1024, stage - drawn, max(128, drawn))
            normal = torch.randn(len(points), batch, generator=rng)
            best = torch.addmm(mean.unsqueeze(-1), root, normal).amax(0)
            failures += int((best > 1.0).sum())
            drawn += batch
            # Giving up early is free: it can only withhold a certificate.
            if num_draws is None and _is_above(failures, target * drawn, 3.0):
                break
        upper = clopper_pearson_upper(failures, drawn, alpha / len(stages))
        if upper <= target or _is_above(failures, target * drawn, 1.0):
            break
    return JointFailure(failures, drawn, upper + pruned, len(points))


def _is_above(failures: int, expected: float, deviations: float) -> bool:
    """Whether there are more failures than so many of their standard deviations."""
    return failures > expected + deviations * math.sqrt(failures)


def _root(covariance: Tensor) -> Tensor:
    """Cholesky factor of the covariance of points that may nearly coincide.

    What has to be added to the diagonal is independent noise in the draws: it makes a
    failure likelier, never less likely.
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
        "its largest variance added: the model's hyperparameters cannot be trusted"
    )


def filled_in(
    acquisition: PACAcquisition,
    points: Tensor,
    scores: Tensor,
    epsilon: float,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Add as many points again around those that matter.

    Args:
        acquisition: The score.
        points: Scored points. Shape `N x d`.
        scores: Their scores. Shape `N`.
        epsilon: Probability against which a point matters.
        rng: Where the new points are drawn from.

    Returns:
        All points with their scores, `2N x d` and `2N`; as they came if none matters.
    """
    keep, _ = _prune(scores, epsilon)
    centres = points[keep]
    if len(centres) == 0:
        return points, scores
    # A draw's maximum lies between the points: fill in around those that matter most,
    # from a hundredth to half of a length scale away.
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
    with torch.no_grad():
        scores = torch.cat([scores, acquisition(filled.unsqueeze(-2))])
    return torch.cat([points, filled]), scores


def _prune(scores: Tensor, epsilon: float) -> tuple[Tensor, float]:
    """Indices to keep, highest score first, and a bound on what the others can do."""
    order = scores.argsort(descending=True)
    probability = torch.special.ndtr(scores[order])
    left_out = probability.flip(0).cumsum(0).flip(0)
    num_kept = int((left_out > _PRUNED_SHARE * epsilon).sum())
    return order[:num_kept], float(probability[num_kept:].sum())


def _thin(keep: Tensor, scores: Tensor, rng: torch.Generator) -> Tensor:
    """Cut an active set to its largest size: the best half of it, the rest by weight.

    Points this dense are correlated so closely that those left out add little; the
    calibration benchmark shows what is lost.
    """
    best, others = keep[: _MAX_ACTIVE // 2], keep[_MAX_ACTIVE // 2 :]
    weights = torch.special.ndtr(scores[others])
    drawn = torch.multinomial(weights, _MAX_ACTIVE - len(best), generator=rng)
    return torch.cat([best, others[drawn]])
