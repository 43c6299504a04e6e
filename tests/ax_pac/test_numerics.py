"""Powers of ten: units, noise, tolerances and distances that a user may bring."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import Normalize
from botorch.models.transforms.outcome import Standardize
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from ax_pac import LogPACExpectedImprovement, PACAcquisition, certify, fit_model
from ax_pac.acquisition.difference import VARIANCE_FLOOR
from ax_pac.certificate.levels import absolute_delta
from ax_pac.surrogate.fit import SMALLEST_SPREAD

# GPyTorch raises a noise variance below 1e-6 of the data's to that, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Very small noise values")

SCALES = [1e-8, 1e-4, 1e4, 1e8]
DELTAS = [1e-6, 1e-4, 1e-2, 1.0]
DISTANCES = [0.0, *(10.0**-e for e in range(12, 0, -1))]


def data(n: int = 12, d: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points in the unit box and outcomes of order one."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    return X, (3.0 * X).sin().sum(-1, keepdim=True)


def known_model(
    X: Tensor,
    Y: Tensor,
    noise: float,
    *,
    lengthscale: float = 0.5,
    bounds: Tensor | None = None,
    standardize: bool = True,
) -> SingleTaskGP:
    """A model whose hyperparameters are given, in normalised and standardised units."""
    d = X.shape[-1]
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=d)).double()
    kernel.base_kernel.lengthscale = torch.full((1, d), lengthscale).double()
    kernel.outputscale = 1.0
    model = SingleTaskGP(
        X,
        Y,
        torch.full_like(Y, noise),
        covar_module=kernel,
        input_transform=None if bounds is None else Normalize(d, bounds=bounds),
        outcome_transform=(
            Standardize(1, min_stdv=SMALLEST_SPREAD) if standardize else None
        ),
    )
    model.mean_module.initialize(constant=0.0)
    return model.eval().requires_grad_(False)


def unit_box(d: int = 2) -> Tensor:
    return torch.stack([torch.zeros(d), torch.ones(d)]).double()


def candidates(n: int = 20, d: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.rand(n, 1, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("acquisition", [PACAcquisition, LogPACExpectedImprovement])
def test_scores_do_not_depend_on_the_unit_of_the_objective(scale, acquisition):
    X, Y = data()
    plain = acquisition(known_model(X, Y, 1e-4), X, 0.1)
    model = known_model(X, scale * Y, 1e-4 * scale**2)
    scaled = acquisition(model, X, 0.1 * scale)
    expected = plain(candidates())
    if acquisition is LogPACExpectedImprovement:
        expected = expected + torch.tensor(scale).double().log()
    # Rounding of the standardised outcomes, times a condition number below 1e5.
    torch.testing.assert_close(scaled(candidates()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_scores_do_not_depend_on_the_unit_of_the_box(scale, offset):
    X, Y = data()
    plain = PACAcquisition(known_model(X, Y, 1e-4, bounds=unit_box()), X, 0.1)
    moved, box = scale * (X + offset), scale * (unit_box() + offset)
    model = known_model(moved, Y, 1e-4, bounds=box)
    scaled = PACAcquisition(model, moved, 0.1)
    # An offset of a thousand boxes costs three digits of the coordinates.
    torch.testing.assert_close(
        scaled(scale * (candidates() + offset)),
        plain(candidates()),
        rtol=1e-6 if offset else 1e-8,
        atol=1e-8,
    )


@pytest.mark.parametrize("level", ["pairwise", "joint"])
@pytest.mark.parametrize(("delta", "holds"), [(0.02, False), (0.6, True)])
def test_the_decision_does_not_depend_on_units(level, delta, holds):
    X, Y = data()
    noise = 1e-3

    def certificate(outcome: float, box: float):
        bounds = box * unit_box()
        model = known_model(box * X, outcome * Y, noise * outcome**2, bounds=bounds)
        return certify(
            model,
            box * X,
            bounds,
            delta=delta * outcome,
            epsilon=0.05,
            level=level,
            seed=0,
        )

    plain = certificate(1.0, 1.0)
    assert plain.holds == holds
    for outcome, box in ((1e-8, 1.0), (1e8, 1.0), (1.0, 1e-8), (1.0, 1e8), (1e8, 1e8)):
        scaled = certificate(outcome, box)
        assert scaled.holds == holds
        # The search stops within its optimiser's tolerance.
        assert scaled.score == pytest.approx(plain.score, rel=1e-3, abs=1e-3)
        assert scaled.incumbent == pytest.approx([box * v for v in plain.incumbent])


@pytest.mark.parametrize("scale", SCALES)
def test_a_fit_does_not_depend_on_units(scale):
    X, Y = data()
    plain = fit_model(X, Y, torch.full_like(Y, 1e-4), unit_box())
    scaled = fit_model(
        scale * X, scale * Y, torch.full_like(Y, 1e-4 * scale**2), scale * unit_box()
    )
    first = PACAcquisition(plain, X, 0.1)(candidates())
    second = PACAcquisition(scaled, scale * X, 0.1 * scale)(scale * candidates())
    # Both fits stop within the optimiser's tolerance of one likelihood.
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_a_narrow_range_of_points_is_scaled_too():
    """Without bounds the box is the range of the points, however narrow."""
    X, Y = data()
    Yvar = torch.full_like(Y, 1e-4)
    plain, narrow = fit_model(X, Y, Yvar), fit_model(1e-9 * X, Y, Yvar)
    torch.testing.assert_close(
        PACAcquisition(narrow, 1e-9 * X, 0.1)(1e-9 * candidates()),
        PACAcquisition(plain, X, 0.1)(candidates()),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("noise", [1e-12, 1e-9, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("lengthscale", [5e-3, 0.5, 1e2])
def test_scores_and_gradients_are_finite_everywhere(noise, delta, lengthscale):
    X, Y = data()
    model = known_model(X, Y, noise, lengthscale=lengthscale)
    score = PACAcquisition(model, X, delta)
    improvement = LogPACExpectedImprovement(model, X, delta)
    direction = torch.tensor([[0.6, -0.8]]).double()
    near = [score.incumbent + r * direction for r in DISTANCES]
    points = torch.cat([torch.stack(near), candidates(), X.unsqueeze(-2)])
    for acquisition in (score, improvement):
        x = points.clone().requires_grad_()
        value = acquisition(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
    # Nothing beats itself: at the incumbent the gap is less than delta, always.
    assert score(near[0]).item() < 0


def test_a_larger_tolerance_is_never_harder_to_certify():
    X, Y = data()
    model = known_model(X, Y, 1e-3)
    points = candidates(200)
    scores = [PACAcquisition(model, X, delta)(points).max() for delta in DELTAS]
    assert all(a > b for a, b in itertools.pairwise(scores))


@pytest.mark.parametrize("scale", SCALES)
def test_the_variance_floor_is_relative_to_the_output_scale(scale):
    X, Y = data()
    Y = Y / Y.std()
    model = known_model(X, scale * Y, 1e-4 * scale**2)
    score = PACAcquisition(model, X, 0.1 * scale)
    # Prior variance one for candidate and incumbent each, so the floor is twice 1e-12.
    expected = -0.1 / (2 * VARIANCE_FLOOR) ** 0.5
    assert score(score.incumbent).item() == pytest.approx(expected, rel=1e-6)


def test_single_precision_is_refused_or_cast():
    X, Y = data()
    Yvar = torch.full_like(Y, 1e-4)
    for arguments in ((X.float(), Y, Yvar), (X, Y.float(), Yvar), (X, Y, Yvar.float())):
        with pytest.raises(ValueError, match=r"must be float64.*\.double"):
            fit_model(*arguments)
    model = known_model(X, Y, 1e-4)
    settings = {"delta": 0.1, "epsilon": 0.05, "level": "pairwise", "seed": 0}
    with pytest.raises(ValueError, match="must be float64"):
        certify(model, X.float(), unit_box(), **settings)
    with pytest.raises(ValueError, match="must be float64"):
        certify(known_model(X, Y, 1e-4).float(), X, unit_box(), **settings)
    # The box is exact in either precision here, so it is cast.
    assert certify(model, X, unit_box().float(), **settings) == certify(
        model, X, unit_box(), **settings
    )


class ExactDifference:
    """Mean and variance of `f(x) - f(incumbent)` to 50 digits."""

    def __init__(self, model: SingleTaskGP, incumbent: Tensor) -> None:
        self.lengthscale = _exact(model.covar_module.base_kernel.lengthscale[0])
        self.Z = [_exact(z) for z in model.train_inputs[0]]
        self.incumbent = _exact(incumbent[0])
        n = len(self.Z)
        K = mpmath.matrix(n, n)
        for i, j in itertools.product(range(n), repeat=2):
            K[i, j] = self.kernel(self.Z[i], self.Z[j])
        for i, noise in enumerate(_exact(model.likelihood.noise)):
            K[i, i] += noise
        self.inverse = K**-1
        self.alpha = self.inverse * mpmath.matrix(_exact(model.train_targets))

    def kernel(self, a: list[mpmath.mpf], b: list[mpmath.mpf]) -> mpmath.mpf:
        squares = ((x - y) / s for x, y, s in zip(a, b, self.lengthscale, strict=True))
        t = mpmath.sqrt(5 * sum(square**2 for square in squares))
        return (1 + t + t**2 / 3) * mpmath.exp(-t)

    def __call__(self, x: Tensor) -> tuple[mpmath.mpf, mpmath.mpf]:
        point = _exact(x[0])
        contrast = mpmath.matrix(
            [self.kernel(point, z) - self.kernel(self.incumbent, z) for z in self.Z]
        )
        prior = 2 - 2 * self.kernel(point, self.incumbent)
        explained = (contrast.T * self.inverse * contrast)[0]
        return (contrast.T * self.alpha)[0], prior - explained


def _exact(values: Tensor) -> list[mpmath.mpf]:
    return [mpmath.mpf(value) for value in values.tolist()]


@pytest.mark.parametrize("lengthscale", [5e-3, 0.05, 0.5, 5.0, 100.0])
@pytest.mark.parametrize("noise", [1e-2, 1e-6])
def test_scores_near_the_incumbent_are_those_of_exact_arithmetic(lengthscale, noise):
    """The error of `2 - 2 k` in double precision never reaches the score.

    The variance is wrong by about 1e-16 of the output scale (an absolute error, from
    `1 - k`), and is floored at 1e-12: where it is not floored its relative error is at
    most 1e-4, so the score's is half that. A series for `1 - k` would gain nothing.
    """
    X, Y = data()
    model = known_model(X, Y, noise, lengthscale=lengthscale, standardize=False)
    with mpmath.workdps(50):
        exact = None
        for delta in (1e-6, 1e-3, 1.0):
            score = PACAcquisition(model, X, delta)
            exact = exact or ExactDifference(model, score.incumbent)
            for distance in DISTANCES[1:]:
                x = score.incumbent + distance * torch.tensor([[0.6, -0.8]]).double()
                gap, variance = exact(x)
                floored = max(variance, mpmath.mpf(2 * VARIANCE_FLOOR))
                deviation = mpmath.sqrt(floored)
                expected = float((gap - delta) / deviation)
                # Where the gap is delta the score is zero and its error that of the
                # gap, 1e-9 of the signal at this conditioning.
                allowed = 1e-4 * abs(expected) + 1e-9 / float(deviation)
                assert abs(score(x).item() - expected) <= allowed


@pytest.mark.parametrize("scale", SCALES)
def test_a_relative_delta_is_a_share_in_any_unit(scale):
    X, Y = data()
    model = fit_model(X, scale * Y, torch.full_like(Y, (scale * 0.01) ** 2))
    best = model.posterior(X).mean.max().item()
    assert absolute_delta(model, X, 0.1) == pytest.approx(0.1 * best, rel=1e-6)
