"""The check whether a search is finished, level by level."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from torch import Tensor

from ax_pac.acquisition.analytic import PACAcquisition, check_model, select_incumbent
from ax_pac.acquisition.difference import known_weight, scalar_weight
from ax_pac.acquisition.optimize import (
    ChallengerSearch,
    find_challenger,
    first_of_best,
    scored_points,
)
from ax_pac.cells import CellEdges, Cells
from ax_pac.certificate.exhaustive import exhaustive_failure
from ax_pac.certificate.joint import JointFailure, filled_in, joint_failure
from ax_pac.certificate.marginal import (
    MarginalCheck,
    MarginalFailure,
    has_known_kernel,
)
from ax_pac.certificate.marginal_draws import standardised_data
from ax_pac.certificate.record import (
    DEFAULT_LEVEL,
    EXHAUSTIVE,
    LEVELS,
    MISFITS,
    HyperparameterStatus,
    PACCertificate,
    check_settings,
    reason_of,
)
from ax_pac.domain import Domain
from ax_pac.known import KnownFunction
from ax_pac.surrogate.fit import fewest_observations, too_few_observations
from ax_pac.surrogate.mcmc import HyperparameterSample
from ax_pac.surrogate.residuals import Misfit, misfit

# The sign of a mean closer to zero than this many posterior standard deviations is not
# known, so a share of it is no tolerance.
_SIGNIFICANT_DEVIATIONS = 2.0

# Share of epsilon that pays for the error of simulation, over all checks of a search.
_ALPHA_SHARE = 0.1

# Share of epsilon that the incumbent may be worse than thought, for points to be ruled
# out by their known part.
NEGLIGIBLE_SHARE = 0.02

# The search that looks for what the first one missed is this many times as large.
_SECOND_EFFORT = 4

# Candidates that all draws at level `marginal` share, before each adds its own: a
# constant, more per coordinate, and the most.
_NUM_CANDIDATES = (150, 100, 600)


def certify(
    model: Model,
    X_observed: Tensor,
    bounds: Tensor | Domain,
    *,
    delta: float,
    epsilon: float,
    level: str = DEFAULT_LEVEL,
    relative: bool = False,
    posterior_transform: PosteriorTransform | None = None,
    seed: int | None = 0,
    cells: Cells | CellEdges | None = None,
    known: KnownFunction | Callable[[Tensor], Tensor] | None = None,
) -> PACCertificate:
    """Ask a fitted model whether the best visited point is good enough to stop.

    At level `pairwise` this is Eq. (12): with the challenger x+ the maximiser of the
    score u of `PACAcquisition` over the box,

        certified  iff  Phi(u(x+)) <= epsilon.

    At level `joint` it is the probability that the certificate is about, Eq. (6):

        certified  iff  P(max_x f(x) - f(incumbent) > delta | data) <= epsilon,

    bounded by exact joint draws of the posterior, see `joint_failure`. Level `marginal`
    averages it over the posterior of the hyperparameters, see `marginal_failure`. The
    weaker levels come first, as filters, and the first that does not pass ends the
    check; in front of `marginal`, level `joint` ends with its first stage and passes
    with a share of failures of at most epsilon. A tenth of epsilon pays for the error
    of simulation: a check on n observations spends `0.1 epsilon / (n (n + 1))`, which
    sums to `0.1 epsilon` over all n, however often a search is resumed. Both levels
    make no claim on fewer than `fewest_observations(d)` observations.

    Where every point of a finite domain was observed, the claim of any level is first
    made without a model of the function, see `exhaustive_failure`, however few the
    observations are.

    Where a part of the objective is known, the model is one of the rest. Gaps are
    shifted by the known part, exactly. With a bound of the unknown part, points that
    could only beat an incumbent worse than a threshold t are left out, and

        P(f(incumbent) is worse than t | data),

    a fiftieth of epsilon, is added to the failure probability at every level, averaged
    over the hyperparameters at `marginal`. Observations that contradict the bound
    support no claim.

    It works on any BoTorch model, whichever acquisition function chose the points. A
    missed maximum leads to a false certificate, so a second, independent search, four
    times as large, looks for a stronger challenger before a certificate is issued.

    Args:
        model: A fitted single-outcome model in float64, its posterior in objective
            units.
        X_observed: Visited points. Shape `n x d`. Unit: the model's input units.
        bounds: What "the best" is meant over: a box, lower row first, of shape `2 x d`,
            or a `Domain`, whose points alone are compared with the incumbent. Unit: the
            model's input units.
        delta: Tolerance, positive. Unit: objective units; with `relative=True` a share
            of the absolute posterior mean at the incumbent.
        epsilon: Allowed failure probability, in (0, 1).
        level: One of `LEVELS`.
        relative: Whether delta is a share of the incumbent's posterior mean.
        posterior_transform: As in BoTorch; minimisation is a weight of -1.
        seed: Seed of searches and draws; None draws a new one.
        cells: Cells of points that are the same, or the edges of their bins by
            coordinate, in the order of the model's inputs; see `Cells`. "The best" is
            then meant over their centres, at which the model has to be fitted, without
            the incumbent's cell, where the true difference is zero. None for a box
            without cells.
        known: What is added to the model's outcome, as a function of its inputs; with
            its bound, a `KnownFunction`. None for nothing.

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
    domain = _check_domain(bounds, X_observed, cells)
    known = KnownFunction.of(known)
    if relative:
        delta = absolute_delta(model, X_observed, delta, posterior_transform, known)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
    for negligible in (NEGLIGIBLE_SHARE * epsilon, 0.0):
        acquisition = PACAcquisition(
            model,
            X_observed,
            delta,
            posterior_transform,
            known=known,
            negligible=negligible,
        )
        search = find_challenger(acquisition, X_observed, domain, seed=seeds[0])
        if search.none_can_win or bool(acquisition.can_win(search.points).any()):
            break
        # No point was found that can win, though some may: nothing is ruled out.
    inputs = _inputs(model, X_observed)
    check = _Check(
        acquisition=acquisition,
        search=search,
        domain=domain,
        epsilon=epsilon,
        level=level,
        inputs=inputs,
        observed=X_observed,
        seeds={"second": seeds[1], "joint": seeds[2], "marginal": seeds[3]},
    )
    check, reached, finding = _evaluated(check)
    search = check.search
    certificate = PACCertificate(
        delta=acquisition.delta,
        epsilon=epsilon,
        level=level,
        score=search.score,
        reason="",
        incumbent=tuple(acquisition.incumbent.squeeze(0).tolist()),
        num_observations=len(inputs),
        pairwise_probability=_pairwise_probability(acquisition, search),
        second_search_gap=check.gap,
        reached=reached,
        **finding.fields,
    )
    return dataclasses.replace(certificate, reason=reason_of(certificate))


def _evaluated(check: _Check) -> tuple[_Check, str, _Finding]:
    """Evaluate the levels in turn; where every point was observed, that first.

    Returns:
        The check, searched again where that was due, the level reached and its finding.
    """
    every = _exhaustive(check)
    if every is not None and every.fields["failure_probability"] <= check.epsilon:
        return check, EXHAUSTIVE, every
    reached, finding = "pairwise", _pairwise(check)
    if finding.passes and check.level == "marginal":
        check = dataclasses.replace(check, looks=_looks(check))
        refusal = _first_look(check)
        if refusal is not None:
            return check, "marginal", refusal
    if finding.passes:
        check = _searched_again(check)
        for reached in LEVELS[: LEVELS.index(check.level) + 1]:
            finding = _EVALUATE[reached](check)
            if not finding.passes:
                break
    if every is not None and not finding.fields["certifiable"]:
        return check, EXHAUSTIVE, every
    return check, reached, finding


def _searched_again(check: _Check) -> _Check:
    """Search for the challenger again and harder, before a certificate is issued."""
    if check.search.none_can_win:
        return check
    second = find_challenger(
        check.acquisition,
        check.observed,
        check.domain,
        seed=check.seeds["second"],
        effort=_SECOND_EFFORT,
    )
    return dataclasses.replace(
        check,
        search=_union(check.search, second, check.domain),
        gap=second.score - check.search.score,
    )


@dataclasses.dataclass(frozen=True)
class _Check:
    """What the levels of one certificate share.

    Args:
        acquisition: The score, with model, incumbent and delta.
        search: Every point that was scored.
        domain: What "the best" is meant over.
        epsilon: Allowed failure probability.
        level: The level that is asked for.
        inputs: Where observations were made, repetitions included. Shape `n x d`.
        observed: Visited points. Shape `n x d`.
        seeds: Seed of the second search, and of the draws of each level.
        gap: Score that the second search found, less that of the first; None before.
        looks: At level `marginal`, whose first look and check share their chains.
    """

    acquisition: PACAcquisition
    search: ChallengerSearch
    domain: Domain
    epsilon: float
    level: str
    inputs: Tensor
    observed: Tensor
    seeds: dict[str, int]
    gap: float | None = None
    looks: MarginalCheck | None = None


class _Finding(NamedTuple):
    """What a level found.

    Args:
        passes: Whether a stronger level can still certify.
        fields: What goes into the certificate if this is the last level.
    """

    passes: bool
    fields: dict[str, Any]


def _exhaustive(check: _Check) -> _Finding | None:
    """Evaluate each point's own observations; None where one has none."""
    result = exhaustive_failure(check.acquisition, check.domain)
    if result is None:
        return None
    fields = {
        "failure_probability": result.upper_bound,
        "certifiable": True,
        "challenger": tuple(result.challenger.squeeze(0).tolist()),
    }
    return _Finding(False, fields)


def _pairwise(check: _Check) -> _Finding:
    """Evaluate the strongest challenger on its own.

    In front of a stronger level it also checks that there are enough observations to
    fit the hyperparameters.
    """
    threshold = check.acquisition.threshold
    probability = _pairwise_probability(check.acquisition, check.search)
    is_finite = math.isfinite(check.search.score) or check.search.none_can_win
    fields: dict[str, Any] = {
        "failure_probability": probability,
        "certifiable": is_finite,
        "challenger": tuple(check.search.challenger.squeeze(0).tolist()),
        "worse_incumbent_probability": threshold.probability,
    }
    if threshold.violation:
        fields |= _no_claim("bound_violated", threshold.violation)
        return _Finding(False, fields)
    passes = is_finite and probability <= check.epsilon
    if passes and check.level != "pairwise":
        too_few = too_few_observations(check.inputs, check.domain.number)
        if too_few is not None:
            passes = False
            fields |= _no_claim("too_few_observations", too_few)
    return _Finding(passes, fields)


def _joint(check: _Check) -> _Finding:
    """Bound the probability that any point beats the incumbent, at one fit.

    In front of a stronger level this one is a filter, and the draws of a first stage
    are enough.
    """
    is_filter = check.level != "joint"
    seed = check.seeds["joint"]
    alpha, alpha_of_check = spending(check.epsilon, len(check.inputs))
    points, scores = check.search.points, check.search.scores
    if not check.domain.is_box:
        points, scores = _candidates(check, torch.Generator().manual_seed(seed))
    worse = check.acquisition.threshold.probability
    result = joint_failure(
        check.acquisition,
        points,
        scores,
        epsilon=check.epsilon - alpha - worse,
        alpha=alpha_of_check,
        seed=seed,
        fill_in=check.domain.is_box,
        num_stages=1 if is_filter else 3,
    )
    fields = {
        "failure_probability": _reported(result, check.epsilon, alpha, worse),
        "certifiable": True,
        "challenger": tuple(check.search.challenger.squeeze(0).tolist()),
        "alpha": alpha,
        "num_draws": result.num_draws,
        "active_set_size": result.active_set_size,
        "worse_incumbent_probability": worse,
    }
    passes = result.estimate + worse <= check.epsilon
    if passes and not is_filter:
        fault = _misfit_of_fit(check)
        if fault is not None:
            fields |= _no_claim(MISFITS[fault.kind], fault.sentence)
    return _Finding(passes, fields)


def _misfit_of_fit(check: _Check) -> Misfit | None:
    """Return what residuals say against the fitted model, where it is a plain GP."""
    model = check.acquisition.model
    weight = scalar_weight(check.acquisition.posterior_transform)
    if weight is None or not has_known_kernel(model):
        return None
    kernel = model.covar_module
    sample = HyperparameterSample(
        kernel.base_kernel.lengthscale.detach().reshape(1, -1),
        kernel.outputscale.detach().reshape(1),
        1.0,
        1.0,
    )
    data = standardised_data(model, math.copysign(1.0, weight))
    return misfit(*data, sample, torch.Generator().manual_seed(check.seeds["joint"]))


def _no_claim(status: HyperparameterStatus, text: str) -> dict[str, Any]:
    """Return the fields of a certificate that makes no claim."""
    return {
        "certifiable": False,
        "hyperparameter_status": status,
        "hyperparameter_text": text,
    }


def _looks(check: _Check) -> MarginalCheck:
    """Return the looks at level `marginal`."""
    acquisition = check.acquisition
    weight = scalar_weight(acquisition.posterior_transform)
    if weight is None:
        raise ValueError(
            "level 'marginal' needs an objective that is one outcome or its negative; "
            f"got the transform {acquisition.posterior_transform}"
        )
    alpha, alpha_of_check = spending(check.epsilon, len(check.inputs))
    # No check is made on fewer observations, so their share can be spent as well.
    first = fewest_observations(check.domain.dim)
    return MarginalCheck(
        acquisition.model,
        acquisition.incumbent,
        delta=acquisition.delta / abs(weight),
        epsilon=check.epsilon - alpha,
        alpha=min(alpha, alpha_of_check * first),
        weight=math.copysign(1.0, weight),
        seed=check.seeds["marginal"],
        bounds=check.domain,
        known=acquisition.known,
        threshold=acquisition.threshold.value / abs(weight),
    )


def _first_look(check: _Check) -> _Finding | None:
    """Return a refusal of level `marginal` before anything else is computed, if any.

    On the candidates of the first search: to leave some out can only hide failures.
    """
    assert check.looks is not None
    candidates = _shared_candidates(check)
    result = check.looks.first_look(candidates)
    return None if result is None else _marginal_finding(check, candidates, result)


def _marginal(check: _Check) -> _Finding:
    """Bound the same probability, averaged over the posterior of hyperparameters."""
    assert check.looks is not None
    candidates = _shared_candidates(check)
    return _marginal_finding(check, candidates, check.looks.decided(candidates))


def _shared_candidates(check: _Check) -> Tensor:
    """Return what may beat the incumbent under the fitted model, and some others.

    The challenger of the search comes first.
    """
    search = check.search
    rng = torch.Generator().manual_seed(check.seeds["marginal"])
    points, scores = _candidates(check, rng)
    if len(points):
        points = points[_mixed(points, scores, rng)]
    none = search.none_can_win
    first_one = check.acquisition.incumbent if none else search.challenger
    return torch.cat([first_one, points])


def _marginal_finding(
    check: _Check, candidates: Tensor, result: MarginalFailure
) -> _Finding:
    """Return what goes into the certificate."""
    alpha, _ = spending(check.epsilon, len(check.inputs))
    challenger = candidates[result.challenger or 0]  # the first is the search's
    if check.search.none_can_win:
        challenger = check.search.challenger.squeeze(0)
    fields = {
        "failure_probability": _reported(result, check.epsilon, alpha),
        "certifiable": result.hyperparameter_status == "ok",
        "challenger": tuple(challenger.tolist()),
        "alpha": alpha,
        "num_draws": result.num_draws,
        "active_set_size": result.active_set_size,
        "effective_sample_size": result.effective_sample_size,
        "hyperparameter_status": result.hyperparameter_status,
        "hyperparameter_text": result.hyperparameter_text,
        "worse_incumbent_probability": result.worse_incumbent_probability,
    }
    return _Finding(False, fields)


_EVALUATE = {"pairwise": _pairwise, "joint": _joint, "marginal": _marginal}


def _reported(
    result: JointFailure | MarginalFailure,
    epsilon: float,
    alpha: float,
    more: float = 0.0,
) -> float:
    """The bound; where the estimate itself is above epsilon, the estimate.

    A check that fails ends after a few draws, whose bound is uninformative.
    """
    if result.estimate + more > epsilon:
        return min(1.0, result.estimate + more)
    return min(1.0, result.upper_bound + alpha + more)


def _candidates(check: _Check, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points that may beat the incumbent, with as many more around those that matter.

    Points of the domain, without what is the same as the incumbent.
    """
    points, scores = filled_in(
        check.acquisition, check.search.points, check.search.scores, check.epsilon, rng
    )
    if check.domain.is_box:
        if check.acquisition.rules_out:
            others = scores > -math.inf
            return points[others], scores[others]
        return points, scores
    points, scores = scored_points(check.acquisition, points, check.domain)
    others = scores > -math.inf
    return points[others], scores[others]


def _mixed(points: Tensor, scores: Tensor, rng: torch.Generator) -> Tensor:
    """Choose candidates likely to fail under the fitted model, and as many others.

    Under other hyperparameters other points are likely to fail. The cost of a draw is
    linear in the number of candidates.
    """
    weights = torch.special.ndtr(scores).sqrt().clamp_min(1e-300)
    some, more, most = _NUM_CANDIDATES
    half = min(min(some + more * points.shape[-1], most) // 2, len(scores))
    likely = torch.multinomial(weights, half, generator=rng)
    others = torch.randperm(len(scores), generator=rng)[:half]
    return torch.cat([likely, others]).unique()


def spending(epsilon: float, num_observations: int) -> tuple[float, float]:
    """Error allowed to simulation, over all checks of a search and for this one."""
    alpha = _ALPHA_SHARE * epsilon
    return alpha, alpha / (num_observations * (num_observations + 1))


def _union(
    first: ChallengerSearch, second: ChallengerSearch, domain: Domain
) -> ChallengerSearch:
    """Merge two searches."""
    scores = torch.tensor([first.score, second.score], dtype=torch.float64)
    best = (first, second)[first_of_best(scores)]
    if domain.number == len(second.points):
        return best  # both scored every point
    return ChallengerSearch(
        best.challenger,
        best.score,
        torch.cat([first.points, second.points]),
        torch.cat([first.scores, second.scores]),
    )


def _pairwise_probability(
    acquisition: PACAcquisition, search: ChallengerSearch
) -> float:
    """Probability of the strongest challenger, and of a worse incumbent."""
    tail = 0.0 if search.none_can_win else _tail(search.score)
    return min(1.0, tail + acquisition.threshold.probability)


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
    known: KnownFunction | None = None,
) -> float:
    """Turn a share of the incumbent's posterior mean into objective units.

    Args:
        model: A fitted single-outcome model.
        X_observed: Visited points. Shape `n x d`.
        share: Tolerance as a share of the mean, positive. Dimensionless.
        posterior_transform: As in BoTorch.
        known: What is added to the model's outcome; None for nothing.

    Returns:
        `share * |mu_inc|`. Unit: objective units.

    Raises:
        ValueError: When the mean is within two posterior standard deviations of zero.

    Source: Ma et al. 2019, footnote 3.
    """
    incumbent = select_incumbent(model, X_observed, posterior_transform, known)
    with torch.no_grad():
        posterior = model.posterior(incumbent, posterior_transform=posterior_transform)
    # Not `posterior.variance`, which GPyTorch raises to 1e-10 in the user's unit.
    covariance = posterior.distribution.covariance_matrix
    variance = covariance.detach().item() + _pooled_variance(model)
    mean = posterior.mean.item()
    if known is not None:
        mean += known_weight(posterior_transform) * known(incumbent).item()
    mean, sd = abs(mean), variance**0.5
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

    The model takes its constant mean as known; this is the variance of its estimate.
    """
    noise = getattr(getattr(model, "likelihood", None), "noise", None)
    if noise is None:
        return 0.0
    num_observations = model.train_targets.shape[-1]
    precision = float((1.0 / noise.detach()).mean()) * num_observations
    scale = getattr(getattr(model, "outcome_transform", None), "stdvs", 1.0)
    return float(scale) ** 2 / precision


def _check_domain(
    bounds: Tensor | Domain, X_observed: Tensor, cells: Cells | CellEdges | None
) -> Domain:
    """Return the domain, or refuse what does not fit the points."""
    dim = X_observed.shape[-1]
    cells = Cells.of(cells)
    if cells is not None and len(cells.edges) != dim:
        raise ValueError(
            f"the cells have {len(cells.edges)} coordinates, the points {dim}: give "
            "edges for every coordinate, empty ones for a coordinate without bins"
        )
    if not isinstance(bounds, Domain):
        bounds = torch.as_tensor(bounds)
        if bounds.shape != (2, dim):
            raise ValueError(
                f"bounds must have shape `2 x d` with d = {dim}, lower row first; got "
                f"shape {tuple(bounds.shape)}"
            )
        bounds = bounds.to(torch.float64)
        if not (bounds.isfinite().all() and (bounds[0] < bounds[1]).all()):
            raise ValueError(f"bounds must be finite, lower below upper; got {bounds}")
    domain = Domain.of(bounds, cells)
    if domain.dim != dim:
        raise ValueError(
            f"the domain has {domain.dim} coordinates, the points have {dim}"
        )
    return domain
