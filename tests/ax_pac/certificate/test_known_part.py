"""Known part and floor in scores and certificates, against closed forms and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models import SingleTaskGP
from gpytorch.means import Mean
from scipy.stats import norm

from ax_pac import (
    Domain,
    KnownFunction,
    LogPACExpectedImprovement,
    PACAcquisition,
    certify,
    find_challenger,
    fit_model,
)
from ax_pac.acquisition.optimize import open_scores
from ax_pac.certificate.joint import joint_failure
from ax_pac.certificate.levels import NEGLIGIBLE_SHARE, absolute_delta
from ax_pac.certificate.marginal_draws import DifferenceProblem, draw_failures
from ax_pac.known import AdditiveFunction
from ax_pac.surrogate.mcmc import HyperparameterSample
from benchmarks.calibration.known import known_model, unit_kernel

MINIMISE = ScalarizedPosteriorTransform(torch.tensor([-1.0], dtype=torch.float64))
BOX = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def linear(*slopes: float, constant: float = 0.0, **bounds: float) -> KnownFunction:
    function = AdditiveFunction(torch.tensor(slopes).double(), {}, constant)
    return KnownFunction(function, bends=function.bends, **bounds)


def unknown(X: torch.Tensor) -> torch.Tensor:
    """A loss that is never negative, large where the cost is small."""
    return (
        1.5 * (1.0 - X).square().sum(-1, keepdim=True) * (1.2 + (4 * X[..., :1]).sin())
    )


COST = linear(2.0, 1.0, floor=0.0)


def fitted(n: int = 16, sem: float = 0.02, seed: int = 0, sign: float = 1.0):
    """A model of the unknown part, and its visited points."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=rng, dtype=torch.float64)
    noise = sem * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    Y = sign * (unknown(X) + noise)
    return fit_model(X, Y, torch.full_like(Y, sem**2), BOX), X


class DeterministicMean(Mean):
    """A known part as the mean function of the model of the sum."""

    def __init__(self, known: KnownFunction) -> None:
        super().__init__()
        self.known = known

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.known(x)


def exact_pair(n: int = 9, seed: int = 3):
    """The same posterior twice: known part as a mean function, and taken off."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=rng, dtype=torch.float64)
    u = unknown(X) + 0.05 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    Yvar = torch.full_like(u, 0.05**2)
    kernel = unit_kernel(torch.tensor([0.4, 0.8]).double())
    whole = SingleTaskGP(
        X,
        u + COST(X).unsqueeze(-1),
        Yvar,
        covar_module=kernel,
        mean_module=DeterministicMean(COST),
        outcome_transform=None,
    ).eval()
    return whole.requires_grad_(False), known_model(X, u, Yvar, kernel), X


def test_two_observations_by_hand():
    """Mean and variance of the difference by inverting a 2 x 2 matrix."""
    kernel = unit_kernel(torch.tensor([0.5]).double())
    X = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    Y, sem = np.array([0.7, 0.4]), 0.1
    model = known_model(
        X,
        torch.from_numpy(Y).unsqueeze(-1),
        torch.full((2, 1), sem**2).double(),
        kernel,
    )
    known = linear(1.0)
    acquisition = PACAcquisition(model, X, 0.05, MINIMISE, known=known)
    # f is .9 and 1.3 observed, so the first is the incumbent; the unknown part's is
    # the second.
    assert acquisition.incumbent.item() == 0.2

    def k(a: float, b: float) -> float:
        r = math.sqrt(5.0) * abs(a - b) / 0.5
        return (1.0 + r + r * r / 3.0) * math.exp(-r)

    K = np.array([[k(a, b) for b in (0.2, 0.9)] for a in (0.2, 0.9)]) + sem**2 * np.eye(
        2
    )
    x = 0.55
    c = np.array([k(x, 0.2), k(x, 0.9)]) - np.array([k(0.2, 0.2), k(0.2, 0.9)])
    mean = -(c @ np.linalg.solve(K, Y) + (x - 0.2))
    variance = 2.0 - 2.0 * k(x, 0.2) - c @ np.linalg.solve(K, c)
    score = (mean - 0.05) / math.sqrt(variance)
    assert acquisition(
        torch.tensor([[[x]]], dtype=torch.float64)
    ).item() == pytest.approx(score)


def test_the_incumbent_is_that_of_the_objective():
    model, X = fitted()
    values = model.posterior(X).mean.squeeze(-1) + COST(X)
    acquisition = PACAcquisition(model, X, 0.05, MINIMISE, known=COST)
    assert torch.equal(acquisition.incumbent[0], X[values.argmin()])
    alone = PACAcquisition(model, X, 0.05, MINIMISE)
    assert not torch.equal(alone.incumbent, acquisition.incumbent)


@pytest.mark.parametrize("level", ["pairwise", "joint"])
def test_a_known_part_is_the_same_as_a_deterministic_mean_function(level):
    whole, rest, X = exact_pair()
    question = {"delta": 0.3, "epsilon": 0.3, "level": level}
    one = certify(whole, X, BOX, posterior_transform=MINIMISE, **question)
    known = linear(2.0, 1.0)
    two = certify(rest, X, BOX, posterior_transform=MINIMISE, known=known, **question)
    assert one.incumbent == two.incumbent
    # Rounding steers the search for the challenger; its maximum is the same.
    assert one.score == pytest.approx(two.score, abs=1e-6)
    if level == "pairwise":
        expected = one.failure_probability
        assert two.failure_probability == pytest.approx(expected, abs=1e-6)
    pending = X[:2] + 0.01
    for x in (X[3:4] * 0.9, X[5:6]):
        a = PACAcquisition(whole, X, 0.3, MINIMISE, pending)
        b = PACAcquisition(rest, X, 0.3, MINIMISE, pending, known=known)
        assert a(x.unsqueeze(0)).item() == pytest.approx(b(x.unsqueeze(0)).item())
        assert torch.allclose(a.pair_covariance(x), b.pair_covariance(x))
        one_ei, two_ei = (
            LogPACExpectedImprovement(m, X, 0.3, MINIMISE, pending, k)
            for m, k in ((whole, None), (rest, known))
        )
        value = one_ei(x.unsqueeze(0)).item()
        assert value == pytest.approx(two_ei(x.unsqueeze(0)).item())


@pytest.mark.parametrize("level", ["pairwise", "joint", "marginal"])
def test_a_constant_known_part_changes_nothing_but_a_relative_delta(level):
    model, X = fitted()
    question = {"epsilon": 0.05, "level": level, "posterior_transform": MINIMISE}
    plain = certify(model, X, BOX, delta=0.2, **question)
    constant = linear(0.0, 0.0, constant=7.0)
    assert certify(model, X, BOX, delta=0.2, known=constant, **question) == plain
    share = absolute_delta(model, X, 0.1, MINIMISE, constant)
    mean = model.posterior(torch.tensor([plain.incumbent]).double()).mean.item()
    assert share == pytest.approx(0.1 * abs(mean + 7.0))
    relative = certify(
        model, X, BOX, delta=0.1, relative=True, known=constant, **question
    )
    assert relative.delta == pytest.approx(share)


@pytest.mark.parametrize("level", ["pairwise", "joint", "marginal"])
def test_to_minimise_with_a_floor_is_to_maximise_with_a_ceiling(level):
    model, X = fitted()
    negative, _ = fitted(sign=-1.0)
    question = {"delta": 0.1, "epsilon": 0.05, "level": level}
    one = certify(model, X, BOX, known=COST, posterior_transform=MINIMISE, **question)
    two = certify(negative, X, BOX, known=linear(-2.0, -1.0, ceiling=0.0), **question)
    assert one.incumbent == two.incumbent
    assert one.failure_probability == pytest.approx(two.failure_probability, rel=1e-3)
    assert one.worse_incumbent_probability > 0.0
    expected = pytest.approx(one.worse_incumbent_probability, rel=1e-3)
    assert two.worse_incumbent_probability == expected


def threshold_by_hand(model, X, delta, negligible):
    """The incumbent, and the cost up to which a point may beat it."""
    values = (model.posterior(X).mean.squeeze(-1) + COST(X)).detach()
    posterior = model.posterior(X[values.argmin()].unsqueeze(0))
    sd = posterior.distribution.covariance_matrix.item() ** 0.5
    return float(values.min()) + norm.isf(negligible) * sd - delta


def test_what_a_floor_rules_out_is_no_challenger_and_counts_with_its_probability():
    model, X = fitted()
    delta, epsilon = 0.1, 0.05
    negligible = NEGLIGIBLE_SHARE * epsilon
    most = threshold_by_hand(model, X, delta, negligible)
    acquisition = PACAcquisition(
        model, X, delta, MINIMISE, known=COST, negligible=negligible
    )
    points = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)).double()
    assert torch.equal(acquisition.can_win(points), COST(points) < most)
    search = find_challenger(acquisition, X, BOX, seed=0)
    assert not search.none_can_win
    is_open = COST(search.points) < most
    assert bool((search.scores[~is_open] == -math.inf).all())
    assert float(COST(search.challenger)) < most
    # A dense grid over what is left finds nothing stronger.
    axis = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    grid = grid[COST(grid) < most]
    best = float(acquisition(grid.unsqueeze(-2)).detach().max())
    assert search.score >= best - 1e-3 * abs(best)
    certificate = certify(
        model,
        X,
        BOX,
        delta=delta,
        epsilon=epsilon,
        level="pairwise",
        known=COST,
        posterior_transform=MINIMISE,
    )
    tail = norm.cdf(certificate.score)
    assert certificate.failure_probability == pytest.approx(tail + negligible)
    assert certificate.worse_incumbent_probability == negligible


@pytest.mark.parametrize("negligible", [0.0, 0.001])
def test_an_incumbent_beyond_the_reach_of_a_clipped_model_counts_as_a_failure(
    negligible,
):
    model, X = fitted()
    plain = PACAcquisition(model, X, 0.1, MINIMISE, known=COST, negligible=0.001)
    with torch.no_grad():
        posterior = model.posterior(plain.incumbent)
        mean = float(posterior.mean + COST(plain.incumbent))
        deviation = float(posterior.distribution.covariance_matrix.sqrt())

    def threshold(sds: float):
        known = linear(2.0, 1.0, floor=0.0, reach=mean + sds * deviation)
        return PACAcquisition(
            model, X, 0.1, MINIMISE, known=known, negligible=negligible
        ).threshold

    # Far away it says nothing that a negligible probability does not.
    if negligible:
        assert threshold(8.0) == plain.threshold
    near = threshold(2.0)
    assert near.value == pytest.approx(-(mean + 2.0 * deviation))
    assert near.probability == pytest.approx(norm.sf(2.0))


def test_the_joint_probability_is_that_of_draws_over_what_is_left():
    model, X = fitted()
    delta, epsilon = 0.1, 0.7
    question = {"delta": delta, "epsilon": epsilon, "level": "joint"}
    certificate = certify(
        model, X, BOX, known=COST, posterior_transform=MINIMISE, **question
    )
    assert certificate.reached == "joint"
    worse = NEGLIGIBLE_SHARE * epsilon
    assert certificate.worse_incumbent_probability == worse
    most = threshold_by_hand(model, X, delta, worse)
    axis = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    acquisition = PACAcquisition(
        model, X, delta, MINIMISE, known=COST, negligible=worse
    )
    result = joint_failure(
        acquisition,
        grid,
        open_scores(acquisition, grid),
        epsilon=epsilon,
        alpha=0.01,
        seed=0,
        fill_in=False,
        num_draws=4000,
    )
    points = torch.cat([acquisition.incumbent, grid[COST(grid) < most]])
    assert len(points) < len(grid)
    posterior = model.posterior(points)
    values, vectors = torch.linalg.eigh(posterior.distribution.covariance_matrix)
    root = vectors * values.clamp_min(0.0).sqrt()
    normal = torch.randn(4000, len(points), generator=torch.Generator().manual_seed(2))
    mean = posterior.mean.squeeze(-1) + COST(points)
    draws = (mean + normal.double() @ root.mT).detach()
    truth = float((draws[:, :1] - draws[:, 1:] > delta).any(-1).double().mean())
    # Four standard errors of the difference.
    error = 4.0 * math.sqrt(2.0 * truth * (1.0 - truth) / 4000)
    assert abs(result.estimate - truth) < error
    # The certificate bounds it, on points of its own, with what comes on top.
    assert certificate.failure_probability > truth - error + worse


@pytest.mark.parametrize("floor", [None, 0.0])
def test_the_marginal_probability_under_one_setting_is_that_of_joint_draws(floor):
    """With the probability of a worse incumbent, which comes on top."""
    model, X = fitted(n=10, sem=0.1)
    delta = 0.1
    known = linear(2.0, 1.0, **({} if floor is None else {"floor": floor}))
    acquisition = PACAcquisition(
        model, X, delta, MINIMISE, known=known, negligible=0.02
    )
    candidates = torch.rand(300, 2, generator=torch.Generator().manual_seed(5)).double()
    candidates = candidates[acquisition.can_win(candidates)]
    problem = DifferenceProblem(
        model,
        acquisition.incumbent,
        candidates,
        delta,
        -1.0,
        BOX,
        known,
        acquisition.threshold.value,
    )
    lengthscale, outputscale = torch.tensor([0.5, 1.0]).double(), 1.0
    num = 1500
    sample = HyperparameterSample(
        lengthscale.expand(num, 2), torch.full((num,), outputscale).double(), num, 1.0
    )
    rng = torch.Generator().manual_seed(0)
    draws = draw_failures(problem, sample, 1e-4, rng, num_rounds=0)
    # The same posterior by hand, constant mean integrated out, in objective units.
    Y = model.train_targets
    scale, mean = model.outcome_transform.stdvs.item(), model.outcome_transform.means
    points = torch.cat([acquisition.incumbent, candidates])
    Z = model.train_inputs[0]
    kernel = unit_kernel(lengthscale)
    K = kernel(Z).to_dense() + 1.0 + torch.diag(model.likelihood.noise)
    cross = kernel(points, Z).to_dense() + 1.0
    means = mean.item() + scale * (cross @ torch.linalg.solve(K, Y)) + known(points)
    prior = kernel(points).to_dense() + 1.0
    covariance = scale**2 * (prior - cross @ torch.linalg.solve(K, cross.mT))
    values, vectors = torch.linalg.eigh(covariance)
    normal = torch.randn(6000, len(points), generator=torch.Generator().manual_seed(4))
    f = means + normal.double() @ (vectors * values.clamp_min(0.0).sqrt()).mT
    truth = float((f[:, :1] - f[:, 1:] > delta).any(-1).double().mean())
    worse = 0.0
    if floor is not None:
        sd = float(covariance[0, 0].sqrt())
        worse = norm.cdf((float(means[0]) + acquisition.threshold.value) / sd)
        assert draws.worse_incumbent / num == pytest.approx(worse, rel=1e-3)
    assert 0.01 < truth < 0.99
    # Four standard errors of the difference; the omitted mass is 2e-4.
    error = 4.0 * math.sqrt(float(draws.failure.var()) / num + truth / 6000)
    assert abs(float(draws.failure.mean()) - truth - worse) < error + 2e-4


def test_added_candidates_are_shifted_like_the_others_and_stay_where_they_can_win():
    model, X = fitted()
    acquisition = PACAcquisition(model, X, 0.1, MINIMISE, known=COST, negligible=0.001)
    problem = DifferenceProblem(
        model,
        acquisition.incumbent,
        X,
        0.1,
        -1.0,
        BOX,
        COST,
        acquisition.threshold.value,
    )
    U = torch.rand(2, 500, 2, generator=torch.Generator().manual_seed(0)).double()
    moved, shift = problem.moved(
        model.transform_inputs(U.reshape(-1, 2)).reshape(U.shape)
    )
    assert shift is not None
    closed = ~acquisition.can_win(U.reshape(-1, 2)).reshape(2, 500)
    assert 0.05 < float(closed.double().mean()) < 0.95
    assert bool((moved[closed] == problem.incumbent).all())
    scale = model.outcome_transform.stdvs.item()
    expected = -(COST(U) - COST(acquisition.incumbent)) / scale
    assert torch.allclose(shift[~closed], expected[~closed])
    assert bool((shift[closed] == 0.0).all())


def cheap_incumbent(n: int = 14):
    """A model under which even the smallest cost is worse than the incumbent."""
    rng = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=rng, dtype=torch.float64)
    X[0] = 0.02
    Y = 0.3 * (X - 0.02).square().sum(-1, keepdim=True)
    Y = Y + 0.002 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    return fit_model(X, Y, torch.full_like(Y, 0.002**2), BOX), X


@pytest.mark.parametrize("level", ["pairwise", "joint", "marginal"])
@pytest.mark.parametrize("cells", [None, 8, 200])
def test_where_no_point_can_win_the_certificate_is_the_probability_of_a_worse_incumbent(
    level, cells
):
    model, X = cheap_incumbent()
    bounds = BOX
    if cells is not None:
        edges = tuple(np.linspace(0.0, 1.0, cells + 1).tolist())
        X = Domain.of(BOX, cells_of(edges)).canonical(X)
        bounds = Domain(((0.0, 1.0),) * 2, cells=cells_of(edges))
        model, _ = fitted_at(X)
    certificate = certify(
        model,
        X,
        bounds,
        delta=0.1,
        epsilon=0.05,
        level=level,
        known=COST,
        posterior_transform=MINIMISE,
    )
    assert certificate.holds, certificate
    worse = certificate.worse_incumbent_probability
    assert 0.0 < worse < 0.01
    alpha = certificate.alpha
    if level == "pairwise":
        assert certificate.failure_probability == pytest.approx(worse)
    elif level == "joint":
        assert certificate.failure_probability == pytest.approx(worse + alpha)
        assert certificate.num_draws == 0
    assert math.isfinite(certificate.score)


def cells_of(edges):
    from ax_pac import Cells

    return Cells((edges, edges))


def fitted_at(X):
    Y = 0.3 * (X - 0.02).square().sum(-1, keepdim=True)
    rng = torch.Generator().manual_seed(0)
    Y = Y + 0.002 * torch.randn(len(X), 1, generator=rng, dtype=torch.float64)
    return fit_model(X, Y, torch.full_like(Y, 0.002**2), BOX), X


@pytest.mark.parametrize("level", ["pairwise", "joint", "marginal"])
def test_a_floor_that_observations_contradict_supports_no_claim(level):
    model, X = fitted()
    wrong = linear(2.0, 1.0, floor=0.5)
    certificate = certify(
        model,
        X,
        BOX,
        delta=5.0,
        epsilon=0.05,
        level=level,
        known=wrong,
        posterior_transform=MINIMISE,
    )
    assert not certificate.holds
    assert not certificate.certifiable
    assert certificate.hyperparameter_status == "bound_violated"
    assert "far below its floor of 0.5" in certificate.reason
    # Noise that reaches below it does not contradict it.
    assert certify(
        model,
        X,
        BOX,
        delta=5.0,
        epsilon=0.05,
        level=level,
        known=COST,
        posterior_transform=MINIMISE,
    ).holds


def test_a_sum_that_is_no_sum_of_coordinates_needs_a_point_that_can_win():
    """Without terms it cannot be told that none can: nothing is ruled out then."""
    model, X = cheap_incumbent()
    product = KnownFunction(lambda P: 0.6 * P[..., 0] * (1.0 + P[..., 1]), floor=0.0)
    certificate = certify(
        model,
        X,
        BOX,
        delta=0.1,
        epsilon=0.05,
        level="pairwise",
        known=product,
        posterior_transform=MINIMISE,
    )
    assert certificate.worse_incumbent_probability == 0.0
    model, X = fitted()
    certificate = certify(
        model,
        X,
        BOX,
        delta=0.1,
        epsilon=0.05,
        level="pairwise",
        known=product,
        posterior_transform=MINIMISE,
    )
    assert certificate.worse_incumbent_probability > 0.0


@pytest.mark.parametrize("d", [2, 4, 8])
def test_a_small_corner_that_can_win_is_searched(d):
    """Space-filling points miss a corner of 1e-3 and less of the volume."""
    rng = torch.Generator().manual_seed(0)
    X = torch.rand(30, d, generator=rng, dtype=torch.float64)
    Y = (1.0 - X).square().sum(-1, keepdim=True)
    model = fit_model(X, Y, torch.full_like(Y, 1e-4))
    known = linear(*[1.0] * d, floor=0.0)
    acquisition = PACAcquisition(model, X, 0.1, MINIMISE, known=known, negligible=0.001)
    # The same, with a smaller region.
    limit = -acquisition.threshold.value - 0.1
    narrow = linear(*[limit / 0.1] * d, constant=0.0, floor=0.0)
    score = PACAcquisition(model, X, 0.1, MINIMISE, known=narrow, negligible=0.001)
    box = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    search = find_challenger(score, X, box, seed=0)
    share = score.can_win(torch.rand(100_000, d, generator=rng).double())
    assert float(share.double().mean()) < 0.1
    usable = search.scores > -math.inf
    assert int(usable.sum()) > 300
    points = torch.rand(20_000, d, generator=rng).double() * 0.2
    points = points[score.can_win(points)]
    if len(points):
        best = float(score(points.unsqueeze(-2)).detach().max())
        assert search.score >= best - 0.02 * abs(best)


def test_a_transform_of_several_outcomes_is_refused():
    X = fitted()[1]
    model = SingleTaskGP(X, torch.cat([X, X], -1)[:, :2], torch.full_like(X, 1e-2))
    transform = ScalarizedPosteriorTransform(torch.tensor([1.0, 1.0]).double())
    with pytest.raises(ValueError, match="one outcome or its negative"):
        PACAcquisition(model, X, 0.1, transform, known=COST)
