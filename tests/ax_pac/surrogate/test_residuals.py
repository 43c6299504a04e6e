"""Residuals that say that the surrogate is too sure, and those that do not."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from ax_pac import certify, fit_model
from ax_pac.surrogate.mcmc import (
    JITTER,
    MEAN_VARIANCE,
    HyperparameterSample,
    matern,
)
from ax_pac.surrogate.residuals import SIGNIFICANCE, _figures, misfit

N, D = 30, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(lengthscale: float = 0.4, number: int = 1) -> HyperparameterSample:
    return HyperparameterSample(
        torch.full((number, D), lengthscale, dtype=torch.float64),
        torch.ones(number, dtype=torch.float64),
        1.0,
        1.0,
    )


def covariance(Z: Tensor, Yvar: Tensor, lengthscale: float = 0.4) -> Tensor:
    squared = 5.0 * torch.cdist(Z, Z).square() / lengthscale**2
    return matern(squared) + MEAN_VARIANCE + torch.diag(Yvar + JITTER)


def drawn(seed: int, noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """Outcomes that the model of `sample` draws, half of them repetitions."""
    rng = seeded(seed)
    Z = torch.rand(N // 2, D, generator=rng, dtype=torch.float64).repeat(2, 1)
    Yvar = torch.full((N,), noise**2, dtype=torch.float64)
    normal = torch.randn(N, generator=rng, dtype=torch.float64)
    return Z, torch.linalg.cholesky(covariance(Z, Yvar)) @ normal, Yvar


def test_a_residual_is_the_distance_from_what_the_others_predict() -> None:
    Z, Y, Yvar = drawn(0)
    K = covariance(Z, Yvar)
    _, _, residuals = _figures(Z, Y, Yvar, sample(), seeded())
    for i in (0, 7, N - 1):
        others = [j for j in range(N) if j != i]
        weights = torch.linalg.solve(K[others][:, others], K[others, i])
        mean = weights @ Y[others]
        deviation = (K[i, i] - weights @ K[others, i]).sqrt()
        assert residuals[0, i] == pytest.approx(float((Y[i] - mean) / deviation))


def test_a_model_that_is_right_is_seldom_faulted() -> None:
    """Five tests of 400 models: at most the 99.9 % quantile of a binomial."""
    faults = sum(
        misfit(*drawn(seed), sample(), seeded(seed)) is not None for seed in range(400)
    )
    assert faults <= binom.ppf(0.999, 400, 5 * SIGNIFICANCE)


def test_an_outlier_is_found_and_named() -> None:
    Z, Y, Yvar = drawn(1, noise=0.01)
    Y[4] += 2.0
    fault = misfit(Z, Y, Yvar, sample(), seeded())
    assert fault is not None
    # The repetition of the outlier is as far from what the others say.
    assert fault.worst in (4, 4 + N // 2)
    assert "too sure" in fault.sentence


def test_standard_errors_of_half_the_size_are_found_in_repetitions() -> None:
    Z, Y, Yvar = drawn(2, noise=0.1)
    fault = misfit(Z, Y, Yvar / 16.0, sample(), seeded())
    assert fault is not None
    assert fault.kind == "noise"
    assert "standard errors" in fault.sentence


def test_a_function_rougher_than_the_model_is_found() -> None:
    Z, Y, Yvar = drawn(3)
    fault = misfit(Z, Y, Yvar, sample(lengthscale=3.0), seeded())
    assert fault is not None
    assert fault.kind == "residuals"


@pytest.mark.parametrize("where", [(0.0, 1.0), (1.0, 0.0)])
def test_only_residuals_where_values_are_good_count_as_growing(
    where: tuple[float, float],
) -> None:
    """The same scatter at the good end, and at the bad end."""
    Z = torch.linspace(0, 1, 40, dtype=torch.float64).unsqueeze(-1).expand(-1, D)
    Z = Z.contiguous()
    Yvar = torch.full((40,), 1e-2, dtype=torch.float64)
    scatter = 0.25 * torch.randn(40, generator=seeded(5), dtype=torch.float64)
    bad, good = where
    size = torch.where(Z[:, 0] > 0.5, good, bad)
    Y = 3.0 * Z[:, 0] + 0.4 * size * scatter.sign() + 0.3 * size * scatter
    _, _, residuals = _figures(Z, Y, Yvar, sample(), seeded())
    observed, replicated, _ = _figures(Z, Y, Yvar, sample(), seeded())
    probability = float((replicated[2] >= observed[2]).double().mean())
    assert (probability < 0.05) == (good > bad)
    assert residuals.isfinite().all()


def test_what_residuals_say_does_not_depend_on_the_order_of_observations() -> None:
    Z, Y, Yvar = drawn(6)
    order = torch.randperm(N, generator=seeded(1))
    first, _, _ = _figures(Z, Y, Yvar, sample(), seeded())
    second, _, _ = _figures(Z[order], Y[order], Yvar[order], sample(), seeded())
    assert torch.allclose(first, second)


@pytest.mark.parametrize("level", ["joint", "marginal"])
def test_a_certificate_is_withheld_where_noise_is_understated(level: str) -> None:
    """Repetitions of a point disagree by ten times their standard errors."""
    X = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1).repeat(2, 1)
    noise = 0.02 * torch.randn(24, 1, generator=seeded(0), dtype=torch.float64)
    Y = -((X - 0.4) ** 2) + noise
    bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    options = {"delta": 0.3, "epsilon": 0.2, "level": level, "seed": 0}
    honest = fit_model(X, Y, torch.full_like(Y, 0.02**2))
    assert certify(honest, X, bounds, **options).holds
    understated = fit_model(X, Y, torch.full_like(Y, 0.002**2))
    certificate = certify(understated, X, bounds, **options)
    assert not certificate.certifiable
    assert certificate.hyperparameter_status == "noise_understated"
    assert "no claim can be made yet: the model is too sure" in certificate.reason
    assert 0.0 <= certificate.challenger[0] <= 1.0
