from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from ax.api.client import Client
from botorch.acquisition.analytic import (
    LogExpectedImprovement,
    _log_ei_helper,
)
from botorch.acquisition.input_constructors import get_acqf_input_constructor
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf

from ax_pac import (
    LogPACExpectedImprovement,
    PACAcquisition,
    PACExpectedImprovement,
    fit_model,
    latest_certificate,
    pac_generation_strategy,
)
from ax_pac.acquisition.expected_improvement import log_improvement
from ax_pac.experiment.records import certificate_records
from tests.helpers.ax_loops import experiment_of, new_client, run

BOTH = (PACExpectedImprovement, LogPACExpectedImprovement)


class OtherGP(SingleTaskGP):
    """The same model under a type that the closed form does not know."""


def minimising() -> ScalarizedPosteriorTransform:
    return ScalarizedPosteriorTransform(torch.tensor([-1.0], dtype=torch.float64))


def random_points(n: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 2, generator=generator, dtype=torch.float64)


def exact_log_improvement(u: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Value and derivative to 40 digits beyond what cancels."""
    with mpmath.workdps(60):
        x = mpmath.mpf(u)
        Phi = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
        improvement = mpmath.npdf(x) + x * Phi
        return mpmath.log(improvement), Phi / improvement


@pytest.mark.parametrize(
    "u", [40, 5, 1, 0, -0.5, -1, -1.001, -3, -10, -37, -59.99, -60, -60.01, -200, -1e3]
)
def test_log_improvement_and_its_gradient_are_exact(u):
    argument = torch.tensor(float(u), dtype=torch.float64, requires_grad=True)
    value = log_improvement(argument)
    (gradient,) = torch.autograd.grad(value, argument)
    exact, slope = exact_log_improvement(u)
    # The value: rounding. The slope at -60 differentiates 1 - |u| * Mills' ratio, which
    # is 1/u^2 = 3e-4, so it loses four digits of its small part.
    assert value.item() == pytest.approx(float(exact), rel=4e-15, abs=4e-16)
    assert gradient.item() == pytest.approx(float(slope), rel=1e-12)


def test_log_improvement_agrees_with_botorchs_and_stays_finite_further_out():
    u = -torch.logspace(-3, 100, 400, dtype=torch.float64)
    u = torch.cat([-u[:200], u]).requires_grad_()
    value = log_improvement(u)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    torch.testing.assert_close(value, _log_ei_helper(u), rtol=1e-13, atol=1e-13)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


def test_log_improvement_passes_gradcheck_in_every_branch():
    u = torch.tensor(
        [3.0, 0.2, -0.5, -2.0, -20.0, -59.0, -61.0, -500.0], dtype=torch.float64
    ).requires_grad_()
    assert torch.autograd.gradcheck(log_improvement, (u,), rtol=1e-5)


def test_known_values():
    # Standard normal tables: phi(0) = .398942, and h(1) = phi(1) + Phi(1) = 1.083316.
    values = log_improvement(torch.tensor([0.0, 1.0], dtype=torch.float64)).exp()
    assert values.tolist() == pytest.approx([0.398942280, 1.083315471], abs=1e-8)


@pytest.mark.parametrize("transform", [None, minimising()])
def test_improvement_equals_monte_carlo_on_the_joint_posterior(
    model_and_points, transform
):
    model, X = model_and_points
    delta = 0.05
    acquisition = PACExpectedImprovement(model, X, delta, transform)
    candidates = random_points(6, seed=4)
    sign = 1.0 if transform is None else -1.0
    rng = np.random.default_rng(0)
    num_draws = 200_000
    for x, value in zip(candidates, acquisition(candidates), strict=True):
        posterior = model.posterior(torch.cat([x, acquisition.score.incumbent]))
        mean = sign * posterior.mean.squeeze(-1).detach().numpy()
        covariance = posterior.distribution.covariance_matrix.detach().numpy()
        draws = rng.multivariate_normal(mean, covariance, num_draws)
        improvement = np.maximum(draws[:, 0] - draws[:, 1] - delta, 0.0)
        error = improvement.std() / math.sqrt(num_draws)
        # Five standard errors for six candidates; the floor is for candidates at which
        # no draw improves, whose improvement is below one draw's share of a deviation.
        floor = covariance[0, 0] ** 0.5 / num_draws
        assert abs(improvement.mean() - value.item()) < 5 * error + floor


def test_improvement_equals_botorchs_when_the_incumbent_is_certain():
    """Without noise the visited incumbent has neither variance nor covariance."""
    X = torch.rand(8, 2, generator=torch.Generator().manual_seed(3)).double()
    Y = (4 * X).sin().sum(-1, keepdim=True)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    model = fit_model(X, Y, torch.full_like(Y, 2e-6), bounds)
    best = model.posterior(X).mean.max().item()
    candidates = random_points(20, seed=5)
    expected = LogExpectedImprovement(model, best_f=best + 0.01)(candidates)
    actual = LogPACExpectedImprovement(model, X, 0.01)(candidates)
    worth = expected > -8
    assert worth.sum() > 3
    # What is left of the incumbent's uncertainty is the noise, 1.4e-3: a few hundredths
    # of the candidates' deviations.
    torch.testing.assert_close(actual[worth], expected[worth], rtol=0, atol=0.05)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("transform", [None, minimising()])
def test_closed_form_equals_joint_posterior(model_and_points, pending, transform):
    model, X = model_and_points
    X_pending = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double() if pending else None
    candidates = random_points(7, seed=2)
    arguments = (X, 0.05, transform, X_pending)
    closed = LogPACExpectedImprovement(model, *arguments)(candidates)
    model.__class__ = OtherGP
    joint = LogPACExpectedImprovement(model, *arguments)(candidates)
    # As for the score: the joint posterior subtracts large terms.
    torch.testing.assert_close(closed, joint, rtol=1e-6, atol=1e-7)


def test_the_log_form_is_the_logarithm_and_the_score_is_pac(model_and_points):
    model, X = model_and_points
    candidates = random_points(9, seed=6)
    plain = PACExpectedImprovement(model, X, 0.05)
    log = LogPACExpectedImprovement(model, X, 0.05)
    torch.testing.assert_close(plain(candidates).log(), log(candidates))
    score = PACAcquisition(model, X, 0.05)
    gap, deviation = score.pointwise_difference(candidates)
    torch.testing.assert_close((gap - 0.05) / deviation, score(candidates))
    expected = deviation.log() + log_improvement(score(candidates))
    torch.testing.assert_close(log(candidates), expected)


def test_gradients_pass_gradcheck(model_and_points):
    model, X = model_and_points
    model.requires_grad_(False)
    candidates = random_points(3, seed=7).requires_grad_()
    for acquisition in (cls(model, X, 0.05) for cls in BOTH):
        assert torch.autograd.gradcheck(acquisition, (candidates,), rtol=1e-4)


def test_nothing_is_expected_of_the_incumbent_and_everything_stays_finite(
    model_and_points,
):
    model, X = model_and_points
    log = LogPACExpectedImprovement(model, X, 0.05)
    plain = PACExpectedImprovement(model, X, 0.05)
    direction = torch.tensor([[0.6, 0.8]]).double()
    for distance in (0.0, *(10.0**-e for e in range(12, 0, -1))):
        x = (log.score.incumbent + distance * direction).requires_grad_()
        value = log(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if distance < 1e-3:
            assert value.item() < -1e3
            assert plain(x).item() == 0.0


def test_a_pending_point_promises_less(model_and_points):
    model, X = model_and_points
    pending = torch.tensor([[0.95, 0.95]]).double()
    for cls in BOTH:
        free = cls(model, X, 0.05)
        held = cls(model, X, 0.05, X_pending=pending)
        assert held(pending).item() < free(pending).item()
        assert torch.equal(held.X_pending, pending)
        held.set_X_pending(None)
        assert held.X_pending is None
        torch.testing.assert_close(held(pending), free(pending))


def test_botorch_optimiser_and_input_constructor_accept_both(
    model_and_points, unit_box
):
    model, X = model_and_points
    grid = torch.rand(4000, 1, 2, generator=torch.Generator().manual_seed(0)).double()
    for cls in BOTH:
        build = get_acqf_input_constructor(cls)
        acquisition = cls(
            **build(
                model=model, X_baseline=X, delta=0.05, training_data=None, bounds=None
            )
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            candidate, value = optimize_acqf(
                acquisition, unit_box, q=1, num_restarts=8, raw_samples=256
            )
            pair, _ = optimize_acqf(
                acquisition, unit_box, 2, 4, raw_samples=64, sequential=True
            )
        torch.testing.assert_close(acquisition(candidate), value.reshape(1))
        assert value.item() >= acquisition(grid).max().item()
        assert (pair[0] - pair[1]).norm() > 1e-3


def test_constraints_are_refused_by_name(model_and_points):
    model, X = model_and_points
    build = get_acqf_input_constructor(LogPACExpectedImprovement)
    with pytest.raises(ValueError, match="outcome constraints"):
        build(
            model=model,
            X_baseline=X,
            delta=0.05,
            constraints_tuple=(torch.eye(1), torch.ones(1)),
        )


@pytest.mark.parametrize("cls", BOTH)
def test_delta_out_of_range_is_refused(model_and_points, cls):
    model, X = model_and_points
    with pytest.raises(ValueError, match="delta must be a positive, finite number"):
        cls(model, X, 0.0)


def test_an_ax_loop_ends_by_its_certificate_and_survives_json(tmp_path):
    client = new_client(sampling="expected_improvement", level="joint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = run(client, max_trials=6)
        path = tmp_path / "client.json"
        client.save_to_json_file(str(path))
        loaded = Client.load_from_json_file(str(path))
        rest = run(loaded)
    assert len(first) + len(rest) < 40
    assert latest_certificate(loaded).holds
    best = min(sum((v - 0.3) ** 2 for v in p.values()) for p in first + rest)
    assert best < 0.1
    (record, *_) = certificate_records(experiment_of(loaded))
    assert record["settings"]["sampling"] == "expected_improvement"


def test_a_relative_delta_is_refused():
    with pytest.raises(ValueError, match="needs delta in objective units"):
        pac_generation_strategy(
            delta=0.1, epsilon=0.05, relative=True, sampling="expected_improvement"
        )
