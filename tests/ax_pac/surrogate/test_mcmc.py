"""The sampler of hyperparameters against dense grids, the prior and known chains."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from ax_pac.surrogate.mcmc import (
    JITTER,
    LENGTHSCALE_LOG_SD,
    LENGTHSCALE_MEDIAN,
    LONGEST_LENGTHSCALE,
    MEAN_VARIANCE,
    MOST_DEVIATIONS,
    OUTPUTSCALE_LOG_SD,
    HyperparameterChains,
    HyperparameterSample,
    effective_sample_size,
    group_r_hat,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample_hyperparameters(X, Y, Yvar, *, num_samples, **options):
    """Draws from new chains, with their diagnostics."""
    chains = HyperparameterChains(X, Y, Yvar, **options)
    chains.extend(num_samples)
    return chains.sample()


def data(n: int, d: int, sem: float = 0.1, seed: int = 0):
    generator = seeded(seed)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    Y = (6.0 * X[:, 0]).sin() + (X**2).sum(-1)
    Y = Y + sem * torch.randn(n, generator=generator, dtype=torch.float64)
    scale = Y.std()
    return X, (Y - Y.mean()) / scale, torch.full_like(Y, sem**2) / scale**2


def matern52(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Kernel by explicit differences, unlike the code under test."""
    r = (5.0 * (A[..., :, None, :] - B[..., None, :, :]).square().sum(-1)).sqrt()
    return (1.0 + r + r**2 / 3.0) * (-r).exp()


def grid_posterior_1d(X, Y, Yvar) -> tuple[torch.Tensor, torch.Tensor]:
    """Log parameters (whitened by the prior) and weights, by enumeration."""
    axis = torch.linspace(-5.0, 5.0, 121, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    lengths = LENGTHSCALE_MEDIAN * (LENGTHSCALE_LOG_SD * z[:, 0]).exp()
    lengths = lengths.clamp_max(LONGEST_LENGTHSCALE)
    s = (OUTPUTSCALE_LOG_SD * z[:, 1]).exp()
    K = s[:, None, None] * matern52(
        X / lengths[:, None, None], X / lengths[:, None, None]
    )
    K = K + MEAN_VARIANCE + torch.diag(Yvar + JITTER)
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(Y), K)
    return z, (normal.log_prob(Y) - 0.5 * z.square().sum(-1)).softmax(0)


def whitened(sample: HyperparameterSample, d: int) -> torch.Tensor:
    lengths = (
        sample.lengthscale / (LENGTHSCALE_MEDIAN * d**0.5)
    ).log() / LENGTHSCALE_LOG_SD
    s = sample.outputscale.log().unsqueeze(-1) / OUTPUTSCALE_LOG_SD
    return torch.cat([lengths, s], dim=-1)


def quantile(values, weights, level):
    order = values.argsort()
    return values[order][int((weights[order].cumsum(0) < level).sum())]


@pytest.mark.parametrize(("n", "sem"), [(6, 0.3), (12, 0.05)])
def test_draws_agree_with_a_dense_grid_in_one_dimension(n, sem):
    X, Y, Yvar = data(n, 1, sem)
    z, weights = grid_posterior_1d(X, Y, Yvar)
    sample = sample_hyperparameters(X, Y, Yvar, num_samples=4096, generator=seeded())
    drawn = whitened(sample, 1)
    size = sample.effective_sample_size
    for k in range(2):
        mean = (weights * z[:, k]).sum()
        sd = (weights * (z[:, k] - mean) ** 2).sum().sqrt()
        # Four standard errors of a mean, and of a share at a quantile.
        assert abs(drawn[:, k].mean() - mean) < 4.0 * sd / size**0.5
        for level in (0.1, 0.5, 0.9):
            share = (drawn[:, k] <= quantile(z[:, k], weights, level)).double().mean()
            error = 4.0 * (level * (1.0 - level) / size) ** 0.5
            # The grid's spacing of 1/12 moves a share by at most its density times it.
            assert abs(share - level) < error + 0.03


@pytest.mark.parametrize("d", [2, 16])
def test_draws_follow_the_prior_when_the_data_say_nothing(d):
    X, Y, _ = data(4, d)
    drawn = sample_hyperparameters(
        X, Y, torch.full_like(Y, 1e6), num_samples=2048, generator=seeded(1)
    )
    z, size = whitened(drawn, d), drawn.effective_sample_size
    # Standard normal in whitened logarithms, length scales at most the longest; four
    # and a half standard errors, as there are up to 17 of each.
    longest = math.log(LONGEST_LENGTHSCALE / (LENGTHSCALE_MEDIAN * d**0.5))
    longest /= LENGTHSCALE_LOG_SD
    beyond, density = norm.sf(longest), norm.pdf(longest)
    mean = torch.zeros(d + 1, dtype=torch.float64)
    mean[:d] = longest * beyond - density
    square = torch.ones(d + 1, dtype=torch.float64)
    square[:d] = 1.0 - beyond - longest * density + longest**2 * beyond
    assert (z.mean(0) - mean).abs().max() < 4.5 / size**0.5
    assert (z.var(0) - (square - mean**2)).abs().max() < 4.5 * (2.0 / size) ** 0.5
    assert drawn.r_hat < 1.05


def test_the_best_outcome_is_not_next_to_impossible():
    """As it would be under most settings that the other outcomes suggest."""
    X, Y, Yvar = data(24, 2)
    highest, options = 5.0, {"num_samples": 512, "generator": seeded(2)}
    free = sample_hyperparameters(X, Y, Yvar, **options)
    guarded = sample_hyperparameters(X, Y, Yvar, **options, highest=highest)
    for sample, always in ((free, False), (guarded, True)):
        lengths = sample.lengthscale
        K = sample.outputscale[:, None, None] * matern52(
            X / lengths.unsqueeze(1), X / lengths.unsqueeze(1)
        )
        K = K + MEAN_VARIANCE + torch.diag(Yvar + JITTER)
        # The posterior mean of the constant.
        mean = MEAN_VARIANCE * torch.linalg.solve(K, Y.expand(len(K), -1)).sum(-1)
        height = (highest - mean) / sample.outputscale.sqrt()
        assert bool((height <= MOST_DEVIATIONS + 1e-6).all()) == always


def test_no_length_scale_is_longer_than_the_longest():
    """A coordinate without influence."""
    X, Y, Yvar = data(20, 2)
    Y = Y - Y + (6.0 * X[:, 0]).sin()
    drawn = sample_hyperparameters(X, Y, Yvar, num_samples=256, generator=seeded())
    longest = drawn.lengthscale.amax(0)
    assert longest[1] == LONGEST_LENGTHSCALE
    assert longest[0] < LONGEST_LENGTHSCALE


def test_start_does_not_matter():
    X, Y, Yvar = data(20, 2)
    far = (torch.full((2,), 50.0, dtype=torch.float64), 1e-2)
    one, other = (
        sample_hyperparameters(
            X, Y, Yvar, num_samples=2048, generator=seeded(3), initial=initial
        )
        for initial in (None, far)
    )
    a, b = whitened(one, 2), whitened(other, 2)
    error = (a.var(0) / one.effective_sample_size).sqrt()
    error = error + (b.var(0) / other.effective_sample_size).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4.0 * error).all()


def test_same_seed_gives_the_same_draws():
    X, Y, Yvar = data(12, 2)
    draws = [
        sample_hyperparameters(X, Y, Yvar, num_samples=64, generator=seeded(5))
        for _ in range(2)
    ]
    assert torch.equal(draws[0].lengthscale, draws[1].lengthscale)
    assert torch.equal(draws[0].outputscale, draws[1].outputscale)


def test_chains_can_be_run_on():
    X, Y, Yvar = data(12, 2)
    chains = HyperparameterChains(X, Y, Yvar, generator=seeded())
    chains.extend(64)
    early = chains.sample()
    chains.extend(200)
    late = chains.sample(first=64)
    assert chains.num_samples == 256
    assert len(early.lengthscale) == 64
    assert late.lengthscale.shape == (192, 2)
    assert torch.equal(chains.sample().lengthscale[:64], early.lengthscale)
    assert early.effective_sample_size <= 64


def autoregressive(rho: float, chains: int, length: int, seed: int = 0):
    generator = seeded(seed)
    states = [torch.randn(chains, generator=generator, dtype=torch.float64)]
    for _ in range(length - 1):
        noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        states.append(rho * states[-1] + (1.0 - rho**2) ** 0.5 * noise)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize(("rho", "length"), [(0.0, 50), (0.6, 50), (0.9, 8)])
def test_effective_sample_size_is_that_of_an_autoregressive_chain(rho, length):
    # Variance of the mean of `length` states of an AR(1) chain, exactly.
    lags = torch.arange(1, length, dtype=torch.float64)
    inflation = 1.0 + 2.0 * ((1.0 - lags / length) * rho**lags).sum()
    truth = min(64 * length / float(inflation), 64.0 * length)
    estimates = [
        effective_sample_size(autoregressive(rho, 64, length, seed))
        for seed in range(50)
    ]
    mean = sum(estimates) / len(estimates)
    # One estimate has 63 degrees of freedom (relative error .18); the mean of a
    # reciprocal chi-squared is 3 % high, the cap lowers it at rho = 0 by 7 %.
    assert mean == pytest.approx(truth, rel=0.1)


def test_effective_sample_size_is_capped_and_zero_for_constants():
    assert effective_sample_size(torch.ones(8, 5, dtype=torch.float64)) == 0.0
    antithetic = torch.tensor([[1.0, -1.0], [2.0, -2.1]], dtype=torch.float64)
    assert effective_sample_size(antithetic) == 4.0
    with pytest.raises(ValueError, match="two chains"):
        effective_sample_size(antithetic[:1])


def test_chains_that_never_move_count_once_each():
    stuck = torch.randn(64, 1, generator=seeded()).double().expand(64, 100)
    assert effective_sample_size(stuck) == pytest.approx(64, rel=0.02)


def test_r_hat_is_one_for_forgotten_starts_and_large_for_remembered_ones():
    start = torch.randn(64, generator=seeded(1)).double()
    forgotten = autoregressive(0.0, 64, 50)
    assert group_r_hat(forgotten, start) < 1.01
    assert group_r_hat(forgotten + 2.0 * start[:, None], start) > 1.5
    assert group_r_hat(torch.ones(64, 5).double(), start) == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, Y, V: (X, Y[:-1], V), "shape"),
        (lambda X, Y, V: (X.float(), Y, V), "X must be float64"),
        (lambda X, Y, V: (X, Y * math.nan, V), "Y must be float64 and finite"),
        (lambda X, Y, V: (X, Y, -V), "not be negative"),
    ],
)
def test_unusable_data_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HyperparameterChains(*change(*data(8, 2)), generator=seeded())
