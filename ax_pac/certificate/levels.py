"""A certificate that a search is finished, with the probability that it is not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition, check_model, select_incumbent
from ax_pac.acquisition.difference import scalar_weight
from ax_pac.acquisition.optimize import ChallengerSearch, find_challenger, scored_cells
from ax_pac.cells import Cells
from ax_pac.certificate.joint import JointFailure, filled_in, joint_failure
from ax_pac.certificate.marginal import MarginalFailure, marginal_failure
from ax_pac.certificate.record import (
    DEFAULT_LEVEL,
    PACCertificate,
    check_settings,
    reason_of,
)
from ax_pac.surrogate.fit import fewest_observations, too_few_observations

# A mean closer to zero than this many posterior standard deviations has no sign, so a
# share of it is no tolerance.
_SIGNIFICANT_DEVIATIONS = 2.0


# Share of epsilon that pays for the error of simulation, over all checks of a search.
_ALPHA_SHARE = 0.1


# The search that looks for what the first one missed is this many times as large.
_SECOND_EFFORT = 4


# Candidates that all draws at level `marginal` share, before each adds its own: some,
# more a coordinate, and at most.
_NUM_CANDIDATES = (150, 100, 600)


def certify(
    model: Model,
    X_observed: Tensor,
    bounds: Tensor,
    *,
    delta: float,
    epsilon: float,
    level: str = DEFAULT_LEVEL,
    relative: bool = False,
    posterior_transform: PosteriorTransform | None = None,
    seed: int | None = None,
    cells: Cells | None = None,
) -> PACCertificate:
    """Ask a fitted model whether the best visited point is good enough to stop.

    At level `pairwise` this is Eq. (12): with the challenger x+ the maximiser of the
    score u of `PACAcquisition` over the box,

        certified  iff  Phi(u(x+)) <= epsilon.

    At level `joint` it is the probability that the certificate is about, Eq. (6):

        certified  iff  P(max_x f(x) - f(incumbent) > delta | data) <= epsilon,

    bounded by exact joint draws of the posterior, see `joint_failure`. Level `marginal`
    averages it over the posterior of the hyperparameters, see `marginal_failure`. The
    weaker levels come first, as filters; in front of `marginal` level `joint` ends with
    its first stage, where a share of failures above epsilon is a no. Of epsilon a tenth
    pays for the error of simulation: a check on n observations spends
    `0.1 epsilon / (n (n + 1))`, which sums to `0.1 epsilon` over all n and is spent
    again by no resumed search. Both levels make no claim on fewer than
    `fewest_observations(d)` observations.

    It works on any BoTorch model, whichever acquisition function chose the points. A
    maximum that is missed makes a certificate false, so before one is issued a second,
    independent search four times as large looks for a stronger challenger.

    Args:
        model: A fitted single-outcome model in float64, its posterior in objective
            units.
        X_observed: Visited points. Shape `n x d`. Unit: the model's input units.
        bounds: The box over which "the best" is meant, lower row first. Shape `2 x d`.
        delta: Tolerance, positive. Unit: objective units; with `relative=True` a share
            of the absolute posterior mean at the incumbent.
        epsilon: Allowed failure probability, in (0, 1).
        level: One of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        posterior_transform: As in BoTorch; minimisation is a weight of -1.
        seed: Seed of searches and draws; None draws a fresh one.
        cells: Cells of points that are the same thing. "The best" is then meant over
            their centres, at which the model has to be fitted; the incumbent's cell is
            left out, where the true difference is zero. None for a box without cells.

    Returns:
        The certificate, whether it holds or not.

    Raises:
        ValueError: When an argument is out of its range, when model or points are not
            float64, when there are no points, or when delta is relative and the
            incumbent's mean is not distinguishable from zero.

    Source: Ma et al. 2019, Eqs. (6), (7), (11), (12) and footnote 3. Deviation: the
    source takes (12) for (6); level `joint` computes (6).

    Example:
        >>> import torch
        >>> from ax_pac import certify, fit_model
        >>> X = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(-1)
        >>> model = fit_model(X, -(X - 0.4) ** 2, torch.full_like(X, 1e-6))
        >>> bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> certify(model, X, bounds, delta=0.1, epsilon=0.01, seed=0).holds
        True
    """
    check_settings(delta=delta, epsilon=epsilon, level=level)
    check_model(model, posterior_transform)
    bounds = _check_bounds(bounds, X_observed)
    if relative:
        delta = absolute_delta(model, X_observed, delta, posterior_transform)
    acquisition = PACAcquisition(model, X_observed, delta, posterior_transform)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
    search = find_challenger(
        acquisition, X_observed, bounds, seed=seeds[0], cells=cells
    )
    gap = None
    if _tail(search.score) <= epsilon:
        second = find_challenger(
            acquisition,
            X_observed,
            bounds,
            seed=seeds[1],
            effort=_SECOND_EFFORT,
            cells=cells,
        )
        gap = second.score - search.score
        search = _union(search, second, cells)
    certificate = PACCertificate(
        delta=acquisition.delta,
        epsilon=epsilon,
        level=level,
        score=search.score,
        failure_probability=_tail(search.score),
        certifiable=math.isfinite(search.score),
        reason="",
        challenger=tuple(search.challenger.squeeze(0).tolist()),
        incumbent=tuple(acquisition.incumbent.squeeze(0).tolist()),
        num_observations=len(_inputs(model, X_observed)),
        pairwise_probability=_tail(search.score),
        second_search_gap=gap,
    )
    may_hold = False
    if level != "pairwise" and certificate.holds:
        too_few = too_few_observations(
            _inputs(model, X_observed), math.inf if cells is None else cells.number
        )
        if too_few is None:
            certificate, may_hold = _at_level_joint(
                certificate, acquisition, search, seeds[2], cells
            )
        else:
            certificate = dataclasses.replace(
                certificate, certifiable=False, hyperparameter_status=too_few
            )
    if level == "marginal" and may_hold:
        certificate = _at_level_marginal(
            certificate, acquisition, search, seeds[3], bounds, cells
        )
    return dataclasses.replace(certificate, reason=reason_of(certificate))


def _at_level_joint(
    certificate: PACCertificate,
    acquisition: PACAcquisition,
    search: ChallengerSearch,
    seed: int,
    cells: Cells | None,
) -> tuple[PACCertificate, bool]:
    """Replace the pairwise probability by the bound on that of any point.

    Returns:
        The certificate, and whether a stronger level may hold. Where one is asked for,
        this one is its filter, and the draws of a first stage are enough.
    """
    is_filter = certificate.level != "joint"
    alpha, alpha_of_check = spending(certificate.epsilon, certificate.num_observations)
    points, scores = search.points, search.scores
    if cells is not None:
        rng = torch.Generator().manual_seed(seed)
        points, scores = _candidates(acquisition, search, certificate, rng, cells)
    result = joint_failure(
        acquisition,
        points,
        scores,
        epsilon=certificate.epsilon - alpha,
        alpha=alpha_of_check,
        seed=seed,
        fill_in=cells is None,
        num_stages=1 if is_filter else 3,
    )
    certificate = dataclasses.replace(
        certificate,
        failure_probability=_reported(result, certificate.epsilon, alpha),
        alpha=alpha,
        num_draws=result.num_draws,
        active_set_size=result.active_set_size,
    )
    return certificate, is_filter and result.estimate <= certificate.epsilon


def _at_level_marginal(
    certificate: PACCertificate,
    acquisition: PACAcquisition,
    search: ChallengerSearch,
    seed: int,
    bounds: Tensor,
    cells: Cells | None,
) -> PACCertificate:
    """Replace the bound at fitted hyperparameters by one over their posterior."""
    weight = scalar_weight(acquisition.posterior_transform)
    if weight is None:
        raise ValueError(
            "level 'marginal' needs an objective that is one outcome or its negative; "
            f"got the transform {acquisition.posterior_transform}"
        )
    alpha, alpha_of_check = spending(certificate.epsilon, certificate.num_observations)
    first = fewest_observations(len(certificate.incumbent))
    # No check is made on fewer, so theirs can be spent as well.
    alpha_of_check = min(alpha, alpha_of_check * first)
    rng = torch.Generator().manual_seed(seed)
    points, scores = _candidates(acquisition, search, certificate, rng, cells)
    candidates = torch.cat([search.challenger, points[_mixed(points, scores, rng)]])
    result = marginal_failure(
        acquisition.observed_model,
        acquisition.incumbent,
        candidates,
        delta=certificate.delta / abs(weight),
        epsilon=certificate.epsilon - alpha,
        alpha=alpha_of_check,
        weight=math.copysign(1.0, weight),
        seed=seed,
        bounds=bounds,
        cells=cells,
    )
    challenger = certificate.challenger
    if result.challenger is not None:
        challenger = tuple(candidates[result.challenger].tolist())
    return dataclasses.replace(
        certificate,
        challenger=challenger,
        failure_probability=_reported(result, certificate.epsilon, alpha),
        certifiable=result.hyperparameter_status == "ok",
        alpha=alpha,
        num_draws=result.num_draws,
        active_set_size=result.active_set_size,
        effective_sample_size=result.effective_sample_size,
        hyperparameter_status=result.hyperparameter_status,
    )


def _reported(
    result: JointFailure | MarginalFailure, epsilon: float, alpha: float
) -> float:
    """The bound; where the estimate itself is above epsilon, the estimate.

    A check that is refused ends after a few draws, whose bound says next to nothing.
    """
    if result.estimate > epsilon:
        return result.estimate
    return min(1.0, result.upper_bound + alpha)


def _candidates(
    acquisition: PACAcquisition,
    search: ChallengerSearch,
    certificate: PACCertificate,
    rng: torch.Generator,
    cells: Cells | None,
) -> tuple[Tensor, Tensor]:
    """Points that may beat the incumbent, with as many more around those that matter.

    With cells these are cells, and the incumbent's is not among them.
    """
    points, scores = filled_in(
        acquisition, search.points, search.scores, certificate.epsilon, rng
    )
    if cells is None:
        return points, scores
    points, scores = scored_cells(acquisition, points, cells)
    others = scores > -math.inf
    return points[others], scores[others]


def _mixed(points: Tensor, scores: Tensor, rng: torch.Generator) -> Tensor:
    """Choose candidates: those the fitted model fears, and as many of any kind.

    Other hyperparameters fear other points. The cost of a draw is linear in their
    number.
    """
    fears = torch.special.ndtr(scores).sqrt().clamp_min(1e-300)
    some, more, most = _NUM_CANDIDATES
    half = min(min(some + more * points.shape[-1], most) // 2, len(scores))
    feared = torch.multinomial(fears, half, generator=rng)
    others = torch.randperm(len(scores), generator=rng)[:half]
    return torch.cat([feared, others]).unique()


def spending(epsilon: float, num_observations: int) -> tuple[float, float]:
    """What simulation may cost over all checks of a search, and over this one."""
    alpha = _ALPHA_SHARE * epsilon
    return alpha, alpha / (num_observations * (num_observations + 1))


def _union(
    first: ChallengerSearch, second: ChallengerSearch, cells: Cells | None
) -> ChallengerSearch:
    """Merge two searches."""
    best = max(first, second, key=lambda search: search.score)
    if cells is not None and cells.number == len(second.points):
        return best  # both looked at every cell there is
    return ChallengerSearch(
        best.challenger,
        best.score,
        torch.cat([first.points, second.points]),
        torch.cat([first.scores, second.scores]),
    )


def _tail(score: float) -> float:
    """Phi(score)."""
    return float(torch.special.ndtr(torch.tensor(score, dtype=torch.float64)))


def _inputs(model: Model, X_observed: Tensor) -> Tensor:
    """Where observations were made, repetitions at one point included, `n x d`."""
    inputs = getattr(model, "train_inputs", None)
    if inputs is None or inputs[0].ndim != 2:
        return X_observed
    return inputs[0].detach()


def absolute_delta(
    model: Model,
    X_observed: Tensor,
    share: float,
    posterior_transform: PosteriorTransform | None = None,
) -> float:
    """Turn a share of the incumbent's posterior mean into objective units.

    Args:
        model: A fitted single-outcome model.
        X_observed: Visited points. Shape `n x d`.
        share: Tolerance as a share of the mean, positive. Dimensionless.
        posterior_transform: As in BoTorch.

    Returns:
        `share * |mu_inc|`. Unit: objective units.

    Raises:
        ValueError: When the mean is within two posterior standard deviations of zero.

    Source: Ma et al. 2019, footnote 3.
    """
    incumbent = select_incumbent(model, X_observed, posterior_transform)
    with torch.no_grad():
        posterior = model.posterior(incumbent, posterior_transform=posterior_transform)
    # Not `posterior.variance`, which GPyTorch raises to 1e-10 in the user's unit.
    covariance = posterior.distribution.covariance_matrix
    variance = covariance.detach().item() + _pooled_variance(model)
    mean, sd = abs(posterior.mean.item()), variance**0.5
    if not mean > _SIGNIFICANT_DEVIATIONS * sd:
        raise ValueError(
            "a relative delta is a share of the objective at the incumbent, which is "
            f"not distinguishable from zero (posterior mean of size {mean:.3g}, "
            f"standard deviation {sd:.3g}). Use an absolute delta, or evaluate with "
            "more samples."
        )
    return share * mean


def _pooled_variance(model: Model) -> float:
    """Variance of the mean of all observations, zero where the noise is not known.

    The model takes its constant mean as known; this is how well it can be known.
    """
    noise = getattr(getattr(model, "likelihood", None), "noise", None)
    if noise is None:
        return 0.0
    num_observations = model.train_targets.shape[-1]
    precision = float((1.0 / noise.detach()).mean()) * num_observations
    scale = getattr(getattr(model, "outcome_transform", None), "stdvs", 1.0)
    return float(scale) ** 2 / precision


def _check_bounds(bounds: Tensor, X_observed: Tensor) -> Tensor:
    """Return the bounds in float64, or refuse what is not a box around the points."""
    bounds = torch.as_tensor(bounds)
    if bounds.shape != (2, X_observed.shape[-1]):
        raise ValueError(
            f"bounds must have shape `2 x d` with d = {X_observed.shape[-1]}, lower "
            f"row first; got shape {tuple(bounds.shape)}"
        )
    bounds = bounds.to(torch.float64)
    if not (bounds.isfinite().all() and (bounds[0] < bounds[1]).all()):
        raise ValueError(f"bounds must be finite, lower below upper; got {bounds}")
    return bounds
