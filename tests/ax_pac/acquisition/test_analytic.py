from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import ProbabilityOfImprovement
from botorch.acquisition.input_constructors import get_acqf_input_constructor
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.exceptions.warnings import InputDataWarning
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler

from ax_pac import PACAcquisition, fit_model, select_incumbent
from ax_pac.acquisition.difference import condition_on_pending, standardized_gap
from ax_pac.known import AdditiveFunction, KnownFunction
from tests.conftest import noisy_model


class OtherGP(SingleTaskGP):
    """The same model under a type that the closed form does not know."""


def as_other(model: SingleTaskGP) -> SingleTaskGP:
    """The same fitted model, scored through its 2 x 2 joint posterior."""
    model.__class__ = OtherGP
    return model


def random_points(n: int, *, seed: int) -> torch.Tensor:
    """Candidates in the unit square, `n x 1 x 2`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 2, generator=generator, dtype=torch.float64)


def minimising() -> ScalarizedPosteriorTransform:
    return ScalarizedPosteriorTransform(torch.tensor([-1.0], dtype=torch.float64))


def matern52(A: np.ndarray, B: np.ndarray, lengthscale: np.ndarray) -> np.ndarray:
    difference = (A[:, None, :] - B[None, :, :]) / lengthscale
    a = math.sqrt(5) * np.sqrt((difference**2).sum(-1))
    return (1 + a + a**2 / 3) * np.exp(-a)


def test_score_equals_posterior_written_by_hand(model_and_points):
    model, X = model_and_points
    delta = 0.07
    score = PACAcquisition(model, X, delta)
    candidates = torch.rand(5, 2, generator=torch.Generator().manual_seed(1)).double()

    kernel = model.covar_module
    lengthscale = kernel.base_kernel.lengthscale.detach().numpy()[0]
    outputscale = kernel.outputscale.item()
    Z, points = X.numpy(), np.vstack([candidates.numpy(), score.incumbent.numpy()])
    y = model.train_targets.numpy() - model.mean_module.constant.item()
    K = outputscale * matern52(Z, Z, lengthscale)
    K_noisy = K + np.diag(model.likelihood.noise.detach().numpy())
    k = outputscale * matern52(points, Z, lengthscale)
    mean = k @ np.linalg.solve(K_noisy, y)
    covariance = outputscale * matern52(points, points, lengthscale)
    covariance -= k @ np.linalg.solve(K_noisy, k.T)
    sd = model.outcome_transform.stdvs.item()
    variance = covariance[:-1, :-1].diagonal() + covariance[-1, -1]
    variance = variance - 2 * covariance[:-1, -1]
    expected = (sd * (mean[:-1] - mean[-1]) - delta) / (sd * np.sqrt(variance))

    # Ten points, condition number of the kernel matrix below 1e6: 1e-8 is generous.
    np.testing.assert_allclose(
        score(candidates.unsqueeze(-2)).detach().numpy(), expected, rtol=1e-8
    )


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("transform", [None, minimising()])
def test_closed_form_equals_joint_posterior(model_and_points, pending, transform):
    model, X = model_and_points
    X_pending = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double() if pending else None
    candidates = random_points(7, seed=2)
    closed = PACAcquisition(model, X, 0.05, transform, X_pending)(candidates)
    joint = PACAcquisition(as_other(model), X, 0.05, transform, X_pending)(candidates)
    # The joint posterior subtracts large terms; 1e-6 is far above its rounding error.
    torch.testing.assert_close(closed, joint, rtol=1e-6, atol=1e-8)


def test_score_equals_probability_of_improvement_when_incumbent_is_certain(
    model_and_points,
):
    model, X = model_and_points
    delta = 0.03
    best = model.posterior(select_incumbent(model, X)).mean.item()
    best_f = torch.tensor(best + delta, dtype=torch.float64)
    improvement = ProbabilityOfImprovement(model, best_f=best_f)
    candidates = random_points(6, seed=3)
    posterior = model.posterior(candidates.squeeze(-2))
    mean = torch.stack(
        [posterior.mean.squeeze(-1), torch.full((6,), best, dtype=torch.float64)], -1
    )
    covariance = torch.zeros(6, 2, 2, dtype=torch.float64)
    covariance[:, 0, 0] = posterior.variance.squeeze(-1)
    probability = torch.special.ndtr(standardized_gap(mean, covariance, delta))
    torch.testing.assert_close(probability, improvement(candidates), rtol=1e-8, atol=0)


def test_probability_equals_monte_carlo_on_the_joint_posterior(model_and_points):
    model, X = model_and_points
    score = PACAcquisition(model, X, 0.05)
    candidate = torch.tensor([[0.8, 0.9]]).double()
    probability = torch.special.ndtr(score(candidate)).item()
    posterior = model.posterior(torch.cat([candidate, score.incumbent]))
    draws = SobolQMCNormalSampler(torch.Size([4096]), seed=0)(posterior).squeeze(-1)
    share = (draws[:, 0] > draws[:, 1] + 0.05).double().mean().item()
    # Four binomial standard errors; quasi-random draws have less.
    assert abs(share - probability) < 4 * math.sqrt(0.25 / 4096)


@pytest.mark.parametrize("convert", [lambda model: model, as_other])
def test_score_and_gradient_stay_finite_towards_the_incumbent(
    model_and_points, convert
):
    model, X = model_and_points
    score = PACAcquisition(convert(model), X, 0.05)
    direction = torch.tensor([[0.6, 0.8]]).double()
    previous = math.inf
    for exponent in range(1, 13):
        x = (score.incumbent + 10.0**-exponent * direction).requires_grad_()
        value = score(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if exponent <= 4:
            # The wall around the incumbent: the score falls without bound.
            assert value.item() < previous
            previous = value.item()
    x = score.incumbent.clone().requires_grad_()
    value = score(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert value.item() < -1e3
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_score_does_not_depend_on_the_unit_of_the_objective(scale):
    X = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).double()
    Y = X.square().sum(-1, keepdim=True)
    Yvar = torch.full_like(Y, 1e-4)
    candidates = random_points(4, seed=1)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    plain = PACAcquisition(fit_model(X, Y, Yvar, bounds), X, 0.1)(candidates)
    scaled_model = fit_model(X, scale * Y, scale**2 * Yvar, bounds)
    scaled = PACAcquisition(scaled_model, X, 0.1 * scale)(candidates)
    # Both fits stop within the optimiser's tolerance of one likelihood.
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-3)


def test_minimising_the_negative_equals_maximising():
    X = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).double()
    Y = X.square().sum(-1, keepdim=True)
    Yvar = torch.full_like(Y, 1e-4)
    candidates = random_points(4, seed=1)
    up = PACAcquisition(fit_model(X, Y, Yvar), X, 0.1)
    down = PACAcquisition(fit_model(X, -Y, Yvar), X, 0.1, minimising())
    assert torch.equal(up.incumbent, down.incumbent)
    torch.testing.assert_close(up(candidates), down(candidates), rtol=1e-6, atol=1e-6)


def test_incumbent_is_the_highest_mean_not_the_luckiest_observation():
    X = torch.linspace(0, 1, 12).double().unsqueeze(-1)
    Y = 1.0 - (X - 0.5) ** 2
    Y[-1] += 0.6  # one lucky observation with a large, known noise
    Yvar = torch.full_like(Y, 1e-4)
    Yvar[-1] = 1.0
    incumbent = select_incumbent(fit_model(X, Y, Yvar), X)
    assert abs(incumbent.item() - 0.5) < 0.1
    assert int(Y.argmax()) == 11


def test_pending_points_leave_means_and_push_the_score_away(model_and_points):
    model, X = model_and_points
    free = PACAcquisition(model, X, 0.05)
    pending = torch.tensor([[0.95, 0.95]]).double()
    held = PACAcquisition(model, X, 0.05, X_pending=pending)
    assert held(pending).item() < free(pending).item()
    held.set_X_pending(None)
    torch.testing.assert_close(held(pending), free(pending))


def test_botorch_optimiser_and_input_constructor_accept_it(model_and_points, unit_box):
    model, X = model_and_points
    build = get_acqf_input_constructor(PACAcquisition)
    arguments = build(
        model=model, X_baseline=X, delta=0.05, training_data=None, bounds=unit_box
    )
    score = PACAcquisition(**arguments)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        candidate, value = optimize_acqf(
            score, unit_box, q=1, num_restarts=4, raw_samples=64
        )
    torch.testing.assert_close(score(candidate), value.reshape(1))


def test_standardized_gap_of_a_batch_has_its_shape():
    mean = torch.zeros(3, 4, 2).double()
    covariance = torch.eye(2).double().expand(3, 4, 2, 2)
    gap = standardized_gap(mean, covariance, 1.0)
    assert gap.shape == (3, 4)
    torch.testing.assert_close(gap, torch.full((3, 4), -1 / math.sqrt(2)).double())


@pytest.mark.parametrize("delta", [0.0, -0.1, math.nan, math.inf, "0.1", None])
def test_delta_out_of_range_is_refused(model_and_points, delta):
    model, X = model_and_points
    with pytest.raises(ValueError, match="delta must be a positive, finite number"):
        PACAcquisition(model, X, delta)


def test_single_precision_is_refused(model_and_points):
    model, X = model_and_points
    with pytest.raises(ValueError, match=r"visited points must be float64.*\.double"):
        PACAcquisition(model, X.float(), 0.1)
    with pytest.warns(InputDataWarning):
        single = SingleTaskGP(
            X.float(), X.float().sum(-1, keepdim=True), outcome_transform=Standardize(1)
        )
    with pytest.raises(ValueError, match="the model must be float64"):
        PACAcquisition(single, X, 0.1)


def test_a_model_without_data_is_refused(model_and_points):
    model, X = model_and_points
    with pytest.raises(ValueError, match="model without data has no incumbent"):
        PACAcquisition(model, X[:0], 0.1)


def test_several_outcomes_without_a_transform_are_refused(model_and_points):
    _, X = model_and_points
    model = SingleTaskGP(X, X, outcome_transform=Standardize(2))
    with pytest.raises(ValueError, match="2 outcomes: pass a posterior_transform"):
        PACAcquisition(model, X, 0.1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"constraints_tuple": (torch.eye(1), torch.ones(1))}, "outcome constraints"),
        ({"ref_point": torch.zeros(2)}, "several objectives"),
    ],
)
def test_constraints_and_objectives_are_refused_by_name(
    model_and_points, extra, message
):
    model, X = model_and_points
    build = get_acqf_input_constructor(PACAcquisition)
    with pytest.raises(ValueError, match=message):
        build(model=model, X_baseline=X, delta=0.05, **extra)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("num_pending", [0, 2])
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_gradients_in_closed_form_are_those_of_the_posterior(d, num_pending, weight):
    """Against autograd through BoTorch's joint posterior, which shares nothing."""
    model, X = noisy_model(d=d, n=9)
    transform = ScalarizedPosteriorTransform(torch.tensor([weight]).double())
    rng = torch.Generator().manual_seed(5)
    pending = torch.rand(num_pending, d, generator=rng, dtype=torch.float64)
    score = PACAcquisition(model, X, 0.1, transform, pending)
    conditioned = condition_on_pending(model, pending) if num_pending else model
    points = torch.rand(6, 1, d, generator=rng, dtype=torch.float64)
    fast, slow = (points.clone().requires_grad_() for _ in range(2))
    value = score(fast)
    pair = torch.cat([slow, score.incumbent.expand_as(slow)], dim=-2)
    posterior = conditioned.posterior(pair, posterior_transform=transform)
    covariance = posterior.distribution.covariance_matrix
    expected = standardized_gap(posterior.mean.squeeze(-1), covariance, 0.1)
    assert torch.allclose(value, expected, rtol=1e-6)
    value.asinh().sum().backward()
    expected.asinh().sum().backward()
    assert torch.allclose(fast.grad, slow.grad, rtol=1e-4, atol=1e-7)
    # Without a gradient the value is that of the accurate form, the same to rounding.
    assert torch.allclose(score(points), value.detach(), rtol=1e-8)


def test_at_the_incumbent_the_closed_form_is_finite():
    model, X = noisy_model()
    score = PACAcquisition(model, X, 0.1)
    point = score.incumbent.clone().unsqueeze(0).requires_grad_()
    score(point).asinh().sum().backward()
    assert bool(point.grad.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("known", [False, True])
def test_more_pending_points_are_added_to_those_that_there_are(model_and_points, known):
    model, X = model_and_points
    rng = torch.Generator().manual_seed(3)
    pending = torch.rand(6, 2, generator=rng, dtype=torch.float64)
    candidates = torch.rand(20, 1, 2, generator=rng, dtype=torch.float64)
    plane = AdditiveFunction(torch.tensor([0.3, -0.2]).double(), {}, 0.0)
    part = KnownFunction(plane, bends=plane.bends)
    options = {"known": part} if known else {}
    at_once = PACAcquisition(model, X, 0.05, X_pending=pending, **options)
    step_by_step = PACAcquisition(model, X, 0.05, X_pending=pending[:2], **options)
    for number in (3, 6):
        step_by_step.set_X_pending(pending[:number])
    # 1e-9: two ways to one Cholesky factor of a matrix with noise of .05^2.
    assert step_by_step(candidates) == pytest.approx(at_once(candidates), rel=1e-9)
    points = candidates.squeeze(-2).numpy()
    one, two = (a.score_with_gradient(points) for a in (at_once, step_by_step))
    assert one is not None
    assert two is not None
    for each, other in zip(one, two, strict=True):
        assert other == pytest.approx(each, rel=1e-7, abs=1e-9)
    # Fewer, or others, are not what there is and more.
    step_by_step.set_X_pending(pending[1:])
    again = PACAcquisition(model, X, 0.05, X_pending=pending[1:], **options)
    assert step_by_step(candidates) == pytest.approx(again(candidates), rel=1e-12)
    step_by_step.set_X_pending(None)
    free = PACAcquisition(model, X, 0.05, **options)
    assert step_by_step(candidates) == pytest.approx(free(candidates), rel=1e-12)
