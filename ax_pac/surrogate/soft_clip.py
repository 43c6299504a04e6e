"""Soft clipping of outcomes that are far too bad to matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Standard errors by which the best observation is taken to be worse than it looks.
_ALLOWANCE = 2.0

# Rounding error, as a share of the largest value: nothing is clipped at less.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SoftClip:
    """Outcomes as they are up to a bound, and beyond it by their logarithm.

        T(u) = u                                  up to the bound
        T(u) = bound + width log(1 + e / width)   beyond it, e = u - bound

    where outcomes are minimised; the mirror image of it where they are maximised. T
    increases and has a continuous derivative.

    A model of outcomes that reach from .1 to 100 has to be sure of differences of .01
    among the good ones. A stationary one cannot say that the bad ones vary a thousand
    times as much: it takes all of them for rough. Whether a point beats the incumbent
    does not depend on how bad the bad ones are.

    Args:
        bound: Where clipping begins. Unit: objective units.
        width: Positive; from the bound to twice as far from where T is zero if it is
            the distance to there. Unit: objective units.
        weight: 1 where outcomes are maximised, -1 where they are minimised.

    Source: none in Ma et al. 2019, which models all outcomes as they are.

    Example:
        >>> clip = SoftClip(bound=1.0, width=1.0, weight=-1.0)
        >>> clip(np.array([0.5, 1.0, 100.0])).round(2).tolist()
        [0.5, 1.0, 5.61]
    """

    bound: float
    width: float
    weight: float

    def __call__(self, outcomes: Array) -> Array:
        """Clip outcomes, of any shape."""
        excess = self._excess(outcomes)
        clipped = self.bound - self.weight * self.width * np.log1p(excess / self.width)
        return np.where(excess > 0.0, clipped, outcomes)

    def slope(self, outcomes: Array) -> Array:
        """Return the derivative at outcomes, by which standard errors are multiplied.

        In (0, 1].
        """
        return 1.0 / (1.0 + self._excess(outcomes) / self.width)

    def inverse(self, clipped: Array) -> Array:
        """Return the outcomes of clipped ones."""
        excess = self.width * np.expm1(self._excess(clipped) / self.width)
        return np.where(excess > 0.0, self.bound - self.weight * excess, clipped)

    def _excess(self, outcomes: Array) -> Array:
        """By how much outcomes are beyond the bound, at least 0."""
        return np.maximum(self.weight * (self.bound - outcomes), 0.0)


def soft_clip(
    unknown: Array,
    sem: Array,
    known: Array,
    *,
    best_known: float,
    limit: float,
    weight: float,
    times: float,
) -> SoftClip | None:
    """Return how to clip the unknown part of an objective, `known + unknown`.

    With a bound of the unknown part, no better point than the best one has an unknown
    part further from it than

        room = (best observed value + 2 SEM) - (best value of the known part + bound)

    What is `times` as far cannot be of a point that beats the incumbent, unless the
    incumbent is as bad as that; `reach_of` says where this is, and the probability of
    it counts as a failure.

    Args:
        unknown: Observations of the unknown part. Shape `n`; NaN for none. Unit:
            objective units, as all.
        sem: Their standard errors. Shape `n`.
        known: The known part at their points. Shape `n`.
        best_known: The best value of the known part in the search space.
        limit: The bound of the unknown part: its floor where it is minimised, its
            ceiling where it is maximised.
        weight: 1 where the objective is maximised, -1 where it is minimised.
        times: How many times the room is left as it is, more than 1.

    Returns:
        None where there is no room, or nothing is observed.
    """
    worst = weight * (known + unknown) - _ALLOWANCE * sem
    worst = worst[np.isfinite(worst)]
    if len(worst) == 0:
        return None
    room = weight * (best_known + limit) - float(worst.max())
    if not room > _ROUNDING * float(np.nanmax(np.abs(unknown), initial=0.0)):
        return None
    return SoftClip(limit - weight * times * room, times * room, weight)


def reach_of(clip: SoftClip, best_known: float) -> float:
    """Return the worst value of an incumbent that clipping leaves comparable.

    An incumbent that is no worse has an unknown part short of the bound, and a point
    whose unknown part is beyond it is worse than this value.

    Args:
        clip: Of the unknown part.
        best_known: The best value of the known part in the search space.
    """
    return best_known + clip.bound
