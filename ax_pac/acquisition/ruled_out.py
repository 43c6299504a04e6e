"""Points that cannot beat the incumbent, whatever the unknown part is."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from botorch.models.model import Model
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from numpy.typing import NDArray
from torch import Tensor

from ax_pac.acquisition.difference import is_plain_gp
from ax_pac.domain import Domain
from ax_pac.known import KnownFunction

Value = TypeVar("Value", Tensor, NDArray[np.float64])

# Probability, over all observations, that one as far beyond the bound is chance.
_CHANCE = 1e-4

# Rounding error of an observation less its known part, as a share of the largest.
_ROUNDING = 1e-9


class Threshold(NamedTuple):
    """A value that the incumbent is hardly ever worse than.

    A point can beat the incumbent by delta only if it may exceed the incumbent's value
    by as much. Where it may not exceed a value that the incumbent has but for a
    negligible probability, it is no challenger, and that probability is added to the
    failure probability.

    Args:
        value: The transformed objective of the incumbent is at least this; minus
            infinity without a bound of the unknown part. Unit: objective units.
        probability: Of its being less.
        violation: Why the bound cannot be right, in one sentence; empty where it may.
    """

    value: float = -math.inf
    probability: float = 0.0
    violation: str = ""


def threshold_of(
    model: Model,
    incumbent: Tensor,
    known: KnownFunction,
    weight: float,
    negligible: float,
) -> Threshold:
    """Return the value that the incumbent exceeds but for a negligible probability.

        t = mean of f(incumbent) + sd of f(incumbent) * Phi^-1(negligible)

    but no less than the known part's `reach`, whatever the probability is.

    Args:
        model: A fitted single-outcome model of the unknown part.
        incumbent: Shape `1 x d`. Unit: the model's input units.
        known: The known part with its bound.
        weight: Of the objective; negative where it is minimised.
        negligible: The probability that may be lost, in [0, 1); 0 for no threshold.
    """
    limit = known.limit(weight)
    if limit is None or (negligible == 0.0 and known.reach is None):
        return Threshold()
    violation = _violation(model, weight, limit)
    if violation:
        return Threshold(violation=violation)
    with torch.no_grad():
        posterior = model.posterior(incumbent)
        mean = weight * (posterior.mean.item() + known(incumbent).item())
        # Not `posterior.variance`, which GPyTorch raises to 1e-10 in the user's unit.
        variance = posterior.distribution.covariance_matrix.item()
    quantile = torch.special.ndtri(torch.tensor(negligible, dtype=torch.float64))
    deviation = abs(weight) * math.sqrt(max(variance, 0.0))
    value = mean + float(quantile) * deviation if deviation > 0.0 else mean
    if known.reach is None or value >= weight * known.reach:
        return Threshold(value, negligible)
    worst = weight * known.reach
    if deviation == 0.0:
        return Threshold(worst, float(mean < worst))
    return Threshold(worst, NormalDist(mean, deviation).cdf(worst))


def _violation(model: Model, weight: float, limit: float) -> str:
    """Return which observation contradicts the bound of the unknown part, if any."""
    if not is_plain_gp(model):
        return ""
    if not isinstance(model.likelihood, FixedNoiseGaussianLikelihood):
        return ""
    transform = getattr(model, "outcome_transform", None)
    with torch.no_grad():
        Y, variance = model.train_targets, model.likelihood.noise
        if transform is not None:
            scale, mean = transform.stdvs.reshape(()), transform.means.reshape(())
            Y, variance = mean + scale * Y, scale.square() * variance
        sem = variance.expand(len(Y)).sqrt()
        chance = torch.tensor(1.0 - _CHANCE / len(Y), dtype=torch.float64)
        margin = torch.special.ndtri(chance) * sem + _ROUNDING * Y.abs().max()
        excess = weight * Y - limit - abs(weight) * margin
        worst = int(excess.argmax())
    if excess[worst] <= 0.0:
        return ""
    side, name = ("below", "floor") if weight < 0.0 else ("above", "ceiling")
    return (
        f"an observation of the unknown part, {Y[worst]:.4g} with a standard error of "
        f"{sem[worst]:.2g}, lies far {side} its {name} of {limit / weight:.4g}: "
        f"correct the known part or its {name}, or leave the {name} out"
    )


def slack_of(
    points: Tensor,
    known: KnownFunction,
    weight: float,
    delta: float,
    threshold: float,
) -> Tensor:
    """Return by how much points may beat the incumbent beyond delta, at the very best.

        w known(x) + limit - delta - t

    Args:
        points: Shape `... x d`. Unit: the model's input units.
        known: The known part with its bound.
        weight: Of the objective, w; negative where it is minimised.
        delta: Tolerance. Unit: objective units, times the size of w.
        threshold: The value of a `Threshold`, t.

    Returns:
        Shape `...`. Unit: objective units, times the size of w. A point of which it is
        not positive is no challenger.
    """
    return slack_of_value(known(points), known, weight, delta, threshold)


def slack_of_value(
    value: Value,
    known: KnownFunction,
    weight: float,
    delta: float,
    threshold: float,
) -> Value:
    """As `slack_of`, of points where the known part is known already.

    Args:
        value: The known part at the points. Shape `...`.
        known: As in `slack_of`.
        weight: As in `slack_of`.
        delta: As in `slack_of`.
        threshold: As in `slack_of`.
    """
    limit = known.limit(weight)
    assert limit is not None
    return weight * value + (limit - delta - threshold)


class BestKnown(NamedTuple):
    """The points of a domain at which the known part is best.

    Args:
        best: Shape `1 x d`.
        next_best: Each coordinate's second best value in turn, the others at their
            best. Shape `m x d`, none of a continuous coordinate.
        is_discrete: Whether every coordinate takes certain values only, so that one of
            these is the second best point.
    """

    best: Tensor
    next_best: Tensor
    is_discrete: bool


@lru_cache(maxsize=4)
def best_known(known: KnownFunction, weight: float, domain: Domain) -> BestKnown | None:
    """Return where the known part is best, constraints aside; None for no sum.

    A sum is best where each of its terms is.

    Args:
        known: The known part.
        weight: Of the objective; negative where it is minimised.
        domain: What "the best" is meant over.
    """
    if known.bends is None:
        return None
    with torch.no_grad():
        best = domain.canonical(domain.box[:1])
        seconds: list[tuple[list[int], Tensor]] = []
        is_discrete = True
        for columns, values in domain.parts:
            is_continuous = values is None
            if values is None:
                (j,) = columns
                low, high = domain.bounds[j]
                inside = [x for x in known.bends[j] if low < x < high]
                values = torch.tensor([low, high, *inside]).double().unsqueeze(-1)
                is_discrete = False
            trial = best.repeat(len(values), 1)
            trial[:, list(columns)] = values
            order = (weight * known(trial)).argsort(descending=True)
            best[:, list(columns)] = values[order[0]]
            if not is_continuous and len(values) > 1:
                seconds.append((list(columns), values[order[1]]))
        others = best.repeat(len(seconds), 1)
        for row, (indices, value) in enumerate(seconds):
            others[row, indices] = value
    return BestKnown(best, others, is_discrete)
