"""Soft clipping of outcomes that are too bad to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Standard errors by which the best observation is taken to be worse than it looks, and
# by which outcomes are left as they are beyond what counts.
_ALLOWANCE = 2.0

# What is left as it is at every point, as a share of that where the known part is best.
_LEAST_SHARE = 0.5

# Rounding error, as a share of the largest value: nothing is clipped at less.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SoftClip:
    """The unknown part of an objective as far as a better point can have it.

    With v the distance of the unknown part from its bound, where outcomes are
    minimised (the mirror image where they are maximised),

        T(v) = v                     up to c(x)
             = c (1 + log(v / c))    beyond it
        c(x) = max(times r(x), room / 2) + 2 SEM of the best
        r(x) = best - known(x) - bound,   room = largest r(x)

    A point whose unknown part is further than r(x) from its bound is worse than the
    best one. T increases and has a continuous derivative, so that a comparison with
    the incumbent has the same outcome, unless the incumbent is worse than `reach`.

    A model of losses that reach from .1 to 100 has to be sure of differences of .01
    among the good ones. A stationary one cannot say that the bad ones vary a thousand
    times as much: it takes the function for rough everywhere. How bad the bad ones are
    does not matter.

    Args:
        best: Value that the best point is hardly worse than. Unit: objective units, as
            all.
        best_known: The best value of the known part in the search space.
        limit: The bound of the unknown part: its floor where it is minimised, its
            ceiling where it is maximised.
        best_sem: Standard error of the best observation.
        weight: 1 where the objective is maximised, -1 where it is minimised.
        times: Above 1.
        farthest: The largest distance v that was observed.

    Source: none in Ma et al. 2019, which models all outcomes as they are.

    Example:
        >>> clip = SoftClip(0.5, 0.0, 0.0, 0.0, weight=-1.0, times=2.0)
        >>> losses, ratios = np.array([0.2, 1.0, 100.0]), np.array([0.3, 0.0, 0.0])
        >>> clip(losses, ratios).round(2).tolist()
        [0.2, 1.0, 5.61]
    """

    best: float
    best_known: float
    limit: float
    best_sem: float
    weight: float
    times: float
    farthest: float = math.inf

    @property
    def room(self) -> float:
        """How far from its bound the unknown part of a better point can be."""
        return self.weight * (self.best_known + self.limit - self.best)

    @property
    def reach(self) -> float:
        """The worst value of an incumbent that clipping leaves comparable.

        Where the objective of any point is clipped, it is worse than this.
        """
        least = _LEAST_SHARE * self.room * (1.0 - 1.0 / self.times)
        return self.best - self.weight * (least + _ALLOWANCE * self.best_sem)

    def __call__(self, unknown: Array, known: Array) -> Array:
        """Clip unknown parts, `n`, at points with these known parts, `n`."""
        distance, bound = self._distance(unknown), self._bound(known)
        clipped = bound * (1.0 + np.log(np.maximum(distance, bound) / bound))
        return np.where(distance > bound, self._at(clipped), unknown)

    def slope(self, unknown: Array, known: Array) -> Array:
        """Return the derivative, in (0, 1]."""
        bound = self._bound(known)
        return bound / np.maximum(self._distance(unknown), bound)

    def sem(self, unknown: Array, sem: Array, known: Array) -> Array:
        """Return the standard errors of clipped observations.

        Times the slope, and no less than half of what two standard errors towards
        better values change. By the slope alone an observation that noise has made bad
        would be taken for a bad one, almost without noise.
        """
        better = unknown + 2.0 * self.weight * sem
        change = np.abs(self(better, known) - self(unknown, known))
        return np.fmax(sem * self.slope(unknown, known), change / 2.0)

    def inverse(self, clipped: Array, known: Array) -> Array:
        """Return the unknown parts of clipped ones, none worse than any observed."""
        distance, bound = self._distance(clipped), self._bound(known)
        largest = np.maximum(self.farthest, bound)
        unknown = bound * np.exp(np.maximum(distance / bound, 1.0) - 1.0)
        unknown = np.minimum(unknown, largest)
        return np.where(distance > bound, self._at(unknown), clipped)

    def _bound(self, known: Array) -> Array:
        """Where clipping begins, c(x)."""
        better = self.weight * (known + self.limit - self.best)
        kept = np.maximum(self.times * better, _LEAST_SHARE * self.room)
        return np.asarray(kept + _ALLOWANCE * self.best_sem)

    def _distance(self, unknown: Array) -> Array:
        """How far unknown parts are from their bound, v; negative beyond it."""
        return np.asarray(self.weight * (self.limit - unknown))

    def _at(self, distance: Array) -> Array:
        """The unknown part at a distance from its bound."""
        return self.limit - self.weight * distance


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
    """Return how observations of the unknown part are clipped.

    Args:
        unknown: Observations. Shape `n`; NaN for none. Unit: objective units, as all.
        sem: Their standard errors. Shape `n`.
        known: The known part at their points. Shape `n`.
        best_known: As in `SoftClip`, like the arguments after it.
        limit: The bound of the unknown part.
        weight: 1 where the objective is maximised, -1 where it is minimised.
        times: Above 1.

    Returns:
        None where nothing is observed, or where no point can be better than the best
        observation.
    """
    value = weight * (known + unknown) - _ALLOWANCE * sem
    is_observed = np.isfinite(value)
    if not is_observed.any():
        return None
    place = int(np.where(is_observed, value, -np.inf).argmax())
    best = weight * float(value[place])
    farthest = float((weight * (limit - unknown[is_observed])).max())
    clip = SoftClip(best, best_known, limit, float(sem[place]), weight, times, farthest)
    largest = float(np.abs(unknown[is_observed]).max())
    return clip if clip.room > _ROUNDING * largest else None
