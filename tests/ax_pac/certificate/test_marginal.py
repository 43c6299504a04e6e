"""The marginal failure probability against brute force, and its refusals."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ax_pac import PACAcquisition, fit_model, select_incumbent
from ax_pac.acquisition.optimize import find_challenger
from ax_pac.cells import Cells
from ax_pac.certificate.joint import joint_failure
from ax_pac.certificate.marginal import (
    MarginalCheck,
    _diagnosis,
    _draw_until_decided,
    _is_hopeless_with,
    is_noise_alone,
    marginal_failure,
)
from ax_pac.certificate.marginal_draws import (
    DifferenceProblem,
    FunctionDraws,
    draw_failures,
)
from ax_pac.domain import Domain
from ax_pac.surrogate.mcmc import HyperparameterChains, HyperparameterSample
from benchmarks.calibration.functions import sample_of_prior
from benchmarks.calibration.known import known_model, unit_kernel

SETTINGS = {"epsilon": 0.05, "alpha": 0.05, "seed": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def surface(X: torch.Tensor) -> torch.Tensor:
    return (5.0 * X[..., :1]).sin() - (X[..., :1] - 0.3) ** 2 + X[..., 1:2]


def fitted(n: int = 14, d: int = 2, sem: float = 0.1, sign: float = 1.0, function=None):
    """A model, its incumbent and a few hundred candidates."""
    generator = seeded(n + d)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    noise = sem * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    Y = sign * ((function or surface)(X) + noise)
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    model = fit_model(X, Y, torch.full_like(Y, sem**2), bounds)
    candidates = torch.rand(300, d, generator=generator, dtype=torch.float64)
    return model, select_incumbent(model, X), torch.cat([candidates, X])


def matern52(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Kernel by explicit differences, unlike the code under test."""
    r = (5.0 * (A[:, None, :] - B[None, :, :]).square().sum(-1)).sqrt()
    return (1.0 + r + r**2 / 3.0) * (-r).exp()


def brute_force(
    problem: DifferenceProblem, lengthscale, outputscale, num: int
) -> float:
    """Share of joint draws over every candidate that fail, under one setting."""
    points = torch.cat([problem.incumbent, problem.candidates]) / lengthscale
    Z = problem.Z / lengthscale
    K = outputscale * matern52(Z, Z) + 1.0 + torch.diag(problem.noise)
    cross = outputscale * matern52(points, Z) + 1.0
    prior = outputscale * matern52(points, points) + 1.0
    mean = cross @ torch.linalg.solve(K, problem.Y)
    covariance = prior - cross @ torch.linalg.solve(K, cross.mT)
    values, vectors = torch.linalg.eigh(covariance)
    normal = torch.randn(num, len(mean), generator=seeded(9), dtype=torch.float64)
    draws = mean + normal * values.clamp_min(0.0).sqrt() @ vectors.mT
    return float((draws.amax(-1) - draws[:, 0] > problem.delta).double().mean())


@pytest.mark.parametrize(
    ("lengthscale", "outputscale", "delta"),
    [((0.3, 0.8), 1.0, 0.2), ((0.6, 2.0), 2.0, 0.15), ((0.15, 0.4), 0.5, 0.5)],
)
def test_estimates_average_to_the_share_of_joint_draws_over_all_candidates_that_fail(
    lengthscale, outputscale, delta
):
    problem = DifferenceProblem(*fitted(), delta=delta, weight=1.0)
    lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
    truth = brute_force(problem, lengthscale, outputscale, num=4000)
    num = 1500
    sample = HyperparameterSample(
        lengthscale.expand(num, 2), torch.full((num,), outputscale).double(), num, 1.0
    )
    draws = draw_failures(problem, sample, 1e-4, seeded(), num_rounds=0)
    failure, active = draws.failure, draws.active_set_size
    # Four standard errors of the difference; the omitted mass is 2e-4.
    variance = truth * (1.0 - truth)
    error = 4.0 * math.sqrt(float(failure.var()) / num + variance / 4000)
    assert 0.01 < truth < 0.99
    assert abs(float(failure.mean()) - truth) < error + 2e-4
    assert ((failure >= 0.0) & (failure <= 1.0)).all()
    # They scatter less than whether a draw fails, which is what they are for.
    assert float(failure.var()) < 0.5 * variance
    assert active <= len(problem.candidates)


def test_points_between_the_candidates_count():
    """In four dimensions a few hundred points miss most of what can fail."""
    d, delta = 4, 0.5
    lengthscale = torch.full((d,), 0.5, dtype=torch.float64)
    function = sample_of_prior(lengthscale, 1.0, 0.0, seed=2)
    X = torch.rand(40, d, generator=seeded(2), dtype=torch.float64)
    Y = function(X).unsqueeze(-1)
    model = known_model(X, Y, torch.full_like(Y, 1e-2), unit_kernel(lengthscale))
    box = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    score = PACAcquisition(model, X, delta)
    # Level joint on all that a search eight times as large finds: another algorithm.
    search = find_challenger(score, X, box, seed=0, effort=8)
    truth = joint_failure(
        score,
        search.points,
        search.scores,
        epsilon=0.05,
        alpha=0.5,
        seed=0,
        num_draws=2000,
    ).estimate
    candidates = torch.rand(400, d, generator=seeded(9), dtype=torch.float64)
    problem = DifferenceProblem(model, score.incumbent, candidates, delta, 1.0, box)
    num = 256
    sample = HyperparameterSample(
        lengthscale.expand(num, d), torch.ones(num).double(), num, 1.0
    )
    alone, refined = (
        float(draw_failures(problem, sample, 1e-3, seeded(), rounds).failure.mean())
        for rounds in (0, 2)
    )
    # Measured: 0.36; 0.11 and 0.31, with standard errors of 0.01, 0.005 and 0.02.
    assert alone < 0.5 * truth
    assert 0.7 * truth < refined < 1.15 * truth


def test_points_that_are_added_stay_in_the_box_and_are_centres_of_cells():
    model, incumbent, candidates = fitted()
    box = torch.stack([torch.zeros(2), torch.ones(2)]).double()
    cells = Cells(((0.0, 0.2, 0.7, 1.0), ()))
    far = 3.0 * torch.rand(8, 5, 2, generator=seeded(), dtype=torch.float64) - 1.0
    free = DifferenceProblem(model, incumbent, candidates, 0.1, 1.0, box)
    inside = free.feasible(far)
    assert inside.shape == far.shape
    assert ((inside >= 0.0) & (inside <= 1.0)).all()
    domain = Domain.of(box, cells)
    snapped = DifferenceProblem(model, incumbent, candidates, 0.1, 1.0, domain)
    first = {round(x, 6) for x in snapped.feasible(far)[..., 0].flatten().tolist()}
    assert first == {0.1, 0.45, 0.85}


def test_failures_fall_with_delta():
    model, incumbent, candidates = fitted()
    results = [
        marginal_failure(model, incumbent, candidates, delta=delta, **SETTINGS)
        for delta in (0.05, 0.5, 5.0)
    ]
    estimates = [result.estimate for result in results]
    assert estimates[0] > estimates[1] > estimates[2]
    assert estimates[2] < 1e-3
    assert results[0].upper_bound > 0.05 >= results[2].upper_bound
    assert all(result.hyperparameter_status == "ok" for result in results)


def test_minimising_is_maximising_the_negative():
    model, incumbent, candidates = fitted()
    negated, other, _ = fitted(sign=-1.0)
    assert not torch.equal(other, incumbent)
    up = marginal_failure(model, incumbent, candidates, delta=0.4, **SETTINGS)
    down = marginal_failure(
        negated, incumbent, candidates, delta=0.4, weight=-1.0, **SETTINGS
    )
    assert down.num_draws == up.num_draws
    # The same random numbers; the fits may differ in the last digits.
    assert down.estimate == pytest.approx(up.estimate, rel=0.02)


def test_same_seed_gives_the_same_answer_and_another_seed_another():
    arguments = (*fitted(),)
    first, again, other = (
        marginal_failure(*arguments, delta=0.4, **{**SETTINGS, "seed": seed})
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_hopeless_check_ends_early():
    result = marginal_failure(*fitted(), delta=0.01, **SETTINGS)
    assert result.num_draws <= 128
    assert result.upper_bound >= result.estimate > 0.05


def test_an_irrelevant_coordinate_is_not_refused():
    def function(X):
        return (5.0 * X[..., :1]).sin()

    model, incumbent, candidates = fitted(n=20, d=2, sem=0.02, function=function)
    assert model.covar_module.base_kernel.lengthscale.max() > 5.0
    result = marginal_failure(model, incumbent, candidates, delta=1.0, **SETTINGS)
    assert result.hyperparameter_status == "ok"
    assert result.upper_bound <= 0.05


def refused(model, incumbent, candidates) -> tuple[str, str]:
    """The kind of a refusal, and its sentence."""
    result = marginal_failure(model, incumbent, candidates, delta=5.0, **SETTINGS)
    assert result.num_draws == 0
    assert result.upper_bound == 1.0
    return result.hyperparameter_status, result.hyperparameter_text


def test_too_few_observations_are_refused():
    status, text = refused(*fitted(n=9))
    assert status == "too_few_observations"
    assert "10 at 8" in text


def test_too_few_distinct_points_are_refused():
    _, incumbent, candidates = fitted(n=7)
    X = candidates[-7:].repeat(3, 1)
    Y = surface(X) + 0.1 * torch.randn(21, 1, generator=seeded()).double()
    repeated = fit_model(X, Y, torch.full_like(Y, 0.01))
    assert "7 distinct" in refused(repeated, incumbent, candidates)[1]


def test_an_output_scale_at_its_lower_bound_is_refused():
    model, incumbent, candidates = fitted()
    model.covar_module.outputscale = 0.01001
    status, text = refused(model, incumbent, candidates)
    assert status == "output_scale_at_bound"
    assert "at its lower bound" in text


def test_an_output_scale_at_its_upper_bound_is_not_refused():
    X = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
    Y = -((X - 0.4) ** 2)
    model = fit_model(X, Y, torch.full_like(Y, 1e-6))
    assert model.covar_module.outputscale > 99.0
    result = marginal_failure(model, X[4:5], X, delta=0.1, **SETTINGS)
    assert result.hyperparameter_status == "ok"
    assert result.upper_bound <= 0.05


def test_noise_that_explains_everything_is_refused():
    model, incumbent, candidates = fitted(n=20)
    model.likelihood.noise_covar.noise = torch.full((20,), 2.0, dtype=torch.float64)
    status, text = refused(model, incumbent, candidates)
    assert status == "noise_alone"
    assert "noise alone explains" in text


def test_the_chi_squared_test_refuses_constants_and_accepts_signals():
    Yvar = torch.full((40,), 0.04, dtype=torch.float64)
    noise = 0.2 * torch.randn(200, 40, generator=seeded(), dtype=torch.float64)
    share = sum(is_noise_alone(row, Yvar) for row in noise) / 200
    # 95 % by construction, four standard errors.
    assert abs(share - 0.95) < 4.0 * math.sqrt(0.95 * 0.05 / 200)
    assert not is_noise_alone(noise[0] + torch.linspace(0, 2, 40).double(), Yvar)


def sample_with(size: float, r_hat: float) -> HyperparameterSample:
    empty = torch.zeros(0, dtype=torch.float64)
    return HyperparameterSample(empty, empty, size, r_hat)


def test_chains_that_disagree_or_have_too_small_a_sample_size_are_refused():
    assert _diagnosis(sample_with(500.0, 1.5), 82.0).status == "chains_disagree"
    too_few = _diagnosis(sample_with(40.0, 1.0), 82.0)
    assert too_few.status == "too_few_draws"
    assert "effective sample size of 40" in too_few.text
    assert _diagnosis(sample_with(500.0, 1.0), 82.0) == ("ok", "")


class IndependentChains:
    """Hyperparameter chains without autocorrelation or content."""

    def __init__(self) -> None:
        self.num = 0

    def extend(self, num_samples: int) -> None:
        self.num = 64 * math.ceil(num_samples / 64)

    def sample(self, first: int = 0) -> HyperparameterSample:
        values = torch.zeros(self.num - first, dtype=torch.float64)
        return HyperparameterSample(values[:, None], values, float(self.num), 1.0)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_a_bad_incumbent_is_certified_no_more_often_than_alpha(monkeypatch, epsilon):
    alpha, num_runs = 0.05, 400
    problem = SimpleNamespace(candidates=torch.zeros(1, 2))
    rng = np.random.default_rng(0)

    def certified_share(probability: float) -> float:
        def bernoulli(problem, sample, tolerance, generator, is_enough):
            failed = rng.random(len(sample.outputscale)) < probability
            failure = torch.from_numpy(failed).double()
            return FunctionDraws(failure, 1, torch.zeros(1).double())

        monkeypatch.setattr("ax_pac.certificate.marginal.draw_failures", bernoulli)
        chains = (IndependentChains() for _ in range(num_runs))
        results = [
            _draw_until_decided(c, problem, epsilon, alpha, seeded()) for c in chains
        ]
        return sum(result.upper_bound <= epsilon for result in results) / num_runs

    error = 3.0 * math.sqrt(alpha * (1.0 - alpha) / num_runs)
    assert certified_share(epsilon) <= alpha + error
    assert certified_share(1.2 * epsilon) <= alpha
    assert certified_share(0.2 * epsilon) > 0.9


def test_what_is_left_out_is_added_in_full():
    model, incumbent, candidates = fitted()
    problem = DifferenceProblem(model, incumbent, candidates, 0.2, 1.0)
    chains = HyperparameterChains(
        problem.Z, problem.Y, problem.noise, generator=seeded()
    )
    chains.extend(2048)
    shares = [
        draw_failures(problem, chains.sample(), tolerance, seeded())
        .failure.mean()
        .item()
        for tolerance in (1e-5, 0.2)
    ]
    # At least as often, and by no more than what was left out.
    error = 4.0 * math.sqrt(0.25 / 2048)
    assert shares[0] - error < shares[1] < shares[0] + 2.0 * 0.2 + error


def test_what_is_clearly_above_epsilon_is_given_up_half_way_with_the_same_challenger():
    problem = DifferenceProblem(*fitted(d=4), delta=0.05, weight=1.0)
    chains = HyperparameterChains(
        problem.Z, problem.Y, problem.noise, generator=seeded()
    )
    chains.extend(256)
    looks = []

    def is_enough(failure: torch.Tensor) -> bool:
        looks.append(len(failure))
        return len(failure) >= 100

    every = draw_failures(problem, chains.sample(), 1e-3, seeded())
    some = draw_failures(problem, chains.sample(), 1e-3, seeded(), is_enough=is_enough)
    assert len(every.failure) == 256
    assert looks[-2] < 100 <= looks[-1] == len(some.failure) < 256
    assert torch.equal(some.failure, every.failure[: len(some.failure)])
    # In another order of summation.
    torch.testing.assert_close(some.pairwise, every.pairwise, rtol=1e-12, atol=1e-300)


def test_giving_up_half_way_refuses_and_reports_what_was_drawn():
    model, incumbent, candidates = fitted(n=40, d=4)
    failure = marginal_failure(model, incumbent, candidates, delta=0.01, **SETTINGS)
    assert failure.upper_bound > 0.05
    assert failure.num_draws < 64
    assert failure.effective_sample_size == failure.num_draws
    assert failure.estimate > 0.05


def test_a_few_draws_are_no_reason_to_give_up():
    def gives_up(num: int, before: int = 0) -> bool:
        drawn = (torch.ones(before).double(), 0.05, 0.05, 1.0, 500)
        return _is_hopeless_with(*drawn, torch.ones(num).double())

    assert [gives_up(1), gives_up(15), gives_up(16)] == [False, False, True]
    assert gives_up(1, before=64)


def test_the_challenger_is_the_candidate_most_likely_to_fail_over_all_hyperparameters():
    model, incumbent, candidates = fitted()
    result = marginal_failure(model, incumbent, candidates, delta=0.2, **SETTINGS)
    problem = DifferenceProblem(model, incumbent, candidates, 0.2, 1.0)
    chains = HyperparameterChains(
        problem.Z, problem.Y, problem.noise, generator=seeded()
    )
    chains.extend(1024)
    pairwise = draw_failures(problem, chains.sample(), 1e-3, seeded()).pairwise
    assert pairwise[result.challenger] > 0.7 * pairwise.max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"alpha": 1.0}, "alpha"),
        ({"weight": 2.0}, "weight"),
        ({"delta": -1.0}, "delta"),
        ({"candidates": torch.zeros(5, 3).double()}, "N x 2"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    model, incumbent, candidates = fitted()
    arguments = {"candidates": candidates, "delta": 0.1, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        marginal_failure(model, incumbent, **arguments)


def test_a_model_of_another_kind_is_refused():
    from botorch.models import SingleTaskGP

    _, incumbent, candidates = fitted()
    other = SingleTaskGP(candidates, surface(candidates))
    with pytest.raises(ValueError, match="known noise"):
        marginal_failure(other, incumbent, candidates, delta=0.1, **SETTINGS)


@pytest.mark.parametrize("delta", [0.4, -1.0])
def test_the_number_of_threads_is_given_back(delta):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with contextlib.suppress(ValueError):
            marginal_failure(*fitted(), delta=delta, **SETTINGS)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_a_first_look_refuses_what_is_far_above_epsilon_and_leaves_the_rest():
    model, incumbent, candidates = fitted(n=40, d=4)
    refused = MarginalCheck(model, incumbent, delta=0.01, **SETTINGS)
    refusal = refused.first_look(candidates)
    assert refusal is not None
    assert refusal.estimate > 0.05
    assert refusal.upper_bound > 0.05
    assert refused.decided(candidates).upper_bound > 0.05
    assert (
        MarginalCheck(model, incumbent, delta=5.0, **SETTINGS).first_look(candidates)
        is None
    )


def test_the_check_is_the_same_with_and_without_a_first_look():
    model, incumbent, candidates = fitted()
    looked = MarginalCheck(model, incumbent, delta=0.4, **SETTINGS)
    looked.first_look(candidates)
    assert looked.decided(candidates) == marginal_failure(
        model, incumbent, candidates, delta=0.4, **SETTINGS
    )
