"""The probability that the incumbent fails, where every point was observed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.difference import is_plain_gp, scalar_weight
from ax_pac.domain import MAX_ENUMERATED, Domain


class ExhaustiveFailure(NamedTuple):
    """The probability that some point of a finite domain beats the incumbent by delta.

    Args:
        upper_bound: Bound of the probability, by the union bound.
        challenger: The point that does so most probably. Shape `1 x d`.
    """

    upper_bound: float
    challenger: Tensor


def exhaustive_failure(
    acquisition: PACAcquisition, domain: Domain
) -> ExhaustiveFailure | None:
    """Bound the failure probability from each point's own observations.

    Where every point of the domain was observed, no model of the function between
    points is needed. With known noise and a flat prior, independent at each point, the
    posterior at a point is Gaussian, with the precision-weighted mean of its
    observations and the sum of their precisions, and

        P(max_x f(x) - f(incumbent) > delta)
            <= sum_x Phi((m_x - m_inc - delta) / sqrt(v_x + v_inc)),

    and of a clipped model the probability of an incumbent beyond its reach.

    A Gaussian process would let observations of one point speak for its neighbours. To
    leave that out gives wider posteriors, so that this needs more repetitions, and no
    hyperparameters, whose number of observations a few points may never reach.

    Args:
        acquisition: The score, with model, incumbent and delta.
        domain: What "the best" is meant over.

    Returns:
        None where a point was not observed, where the domain is not finite, or for a
        model without known noise.
    """
    model = acquisition.model
    weight = scalar_weight(acquisition.posterior_transform)
    if (
        not domain.number <= MAX_ENUMERATED
        or weight is None
        or not is_plain_gp(model)
        or not isinstance(model.likelihood, FixedNoiseGaussianLikelihood)
    ):
        return None
    inputs = model.train_inputs[0].detach()
    if len(inputs) < domain.number:
        return None
    points = domain.all_points()
    transform = getattr(model, "input_transform", None)
    with torch.no_grad():
        visited = inputs if transform is None else transform.untransform(inputs)
        where = torch.cdist(domain.canonical(visited), points).argmin(-1)
        precision = 1.0 / model.likelihood.noise.expand(len(inputs))
        targets = model.train_targets
    zeros = torch.zeros(len(points), dtype=torch.float64)
    precisions = zeros.index_add(0, where, precision)
    if bool((precisions == 0.0).any()):
        return None
    mean = zeros.index_add(0, where, precision * targets) / precisions
    outcomes = getattr(model, "outcome_transform", None)
    scale = float(getattr(outcomes, "stdvs", 1.0))
    incumbent = int(torch.cdist(acquisition.incumbent, points).argmin())
    gap = weight * scale * (mean - mean[incumbent])
    if acquisition.known is not None:
        with torch.no_grad():
            shift = acquisition.known(points)
        gap = gap + weight * (shift - shift[incumbent])
    variance = (weight * scale) ** 2 * (1.0 / precisions + 1.0 / precisions[incumbent])
    probability = torch.special.ndtr((gap - acquisition.delta) / variance.sqrt())
    probability[incumbent] = 0.0
    beyond = 0.0
    if acquisition.known is not None and acquisition.known.reach is not None:
        location = float(getattr(outcomes, "means", 0.0))
        value = weight * (scale * mean[incumbent] + location + shift[incumbent])
        deviation = abs(weight * scale) / precisions[incumbent].sqrt()
        worst = weight * acquisition.known.reach
        beyond = float(torch.special.ndtr((worst - value) / deviation))
    top = int(probability.argmax())
    if top == incumbent:  # all of them underflow
        top = int(gap.index_fill(0, torch.tensor(incumbent), -torch.inf).argmax())
    failure = min(1.0, float(probability.sum()) + beyond)
    return ExhaustiveFailure(failure, points[top : top + 1])
