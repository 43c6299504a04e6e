"""Means, standard errors and floors, against NumPy and against simulation."""

import math

import numpy as np
import pytest
import torch

from compression_adapters.evaluation.estimates import (
    SMALLEST_SEM,
    MeanSEM,
    apply_sem_floor,
    binomial_sem_floor,
    mean_and_sem,
    pairwise_mean_and_sem,
    relative_sem_floor,
)


def assert_coverage(hits: np.ndarray, nominal: float, bias: float) -> None:
    """Coverage within `bias` of nominal, plus four binomial standard errors."""
    error = 4.0 * math.sqrt(nominal * (1.0 - nominal) / len(hits))
    assert abs(hits.mean() - nominal) < bias + error


def test_mean_and_sem_equal_numpys():
    values = np.random.default_rng(0).exponential(size=50)
    estimate = mean_and_sem(torch.from_numpy(values))
    assert estimate.mean == pytest.approx(values.mean(), rel=1e-14)
    sem = values.std(ddof=1) / math.sqrt(50)
    assert estimate.sem == pytest.approx(sem, rel=1e-14)


def test_mean_and_sem_are_computed_in_double_precision():
    values = torch.tensor([1e8, 1e8 + 8, 1e8 + 16], dtype=torch.float32)
    assert mean_and_sem(values) == pytest.approx((1e8 + 8, 8 / math.sqrt(3)), rel=1e-12)


def test_mean_and_sem_of_equal_values_is_exactly_zero_spread():
    values = torch.full((50,), 0.1, dtype=torch.float64)
    assert mean_and_sem(values) == (0.1, 0.0)


def test_estimate_holds_python_floats_and_passes_as_a_tuple():
    mean, sem = mean_and_sem(torch.rand(5))
    assert type(mean) is float
    assert type(sem) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor(1.0), r"shape \(m,\).*got shape \(\)"),
        (torch.ones(1), r"at least 2.*got shape \(1,\)"),
        (torch.ones(3, 2), r"got shape \(3, 2\)"),
        (torch.tensor([1.0, math.nan, 2.0]), "1 of 3 entries are NaN"),
        (torch.tensor([1.0, math.inf]), "1 of 2 entries"),
    ],
)
def test_mean_and_sem_refuse_what_has_no_standard_error(values, message):
    with pytest.raises(ValueError, match=message):
        mean_and_sem(values)


def test_standard_error_of_the_mean_covers_at_its_nominal_rate():
    # 2000 repetitions of m = 50 normal values; a t interval is exact there.
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 50, generator=rng) * 3 + 7
    t95 = 2.0096  # Student's t, 49 degrees of freedom
    estimates = [mean_and_sem(row) for row in draws]
    hits = np.array([abs(e.mean - 7) <= t95 * e.sem for e in estimates])
    assert_coverage(hits, 0.95, bias=0.0)


def test_standard_error_of_skewed_losses_covers_nearly_at_its_nominal_rate():
    rng = np.random.default_rng(1)
    draws = rng.exponential(size=(2000, 50))
    estimates = [mean_and_sem(torch.from_numpy(row)) for row in draws]
    hits = np.array([abs(e.mean - 1) <= 2.0096 * e.sem for e in estimates])
    # Edgeworth: the skewness 2 of an exponential costs about two points at m = 50.
    assert_coverage(hits, 0.95, bias=0.03)


def test_pairwise_estimate_equals_the_leave_one_out_jackknife():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    h = np.abs(x[:, None] - x) ** 1.5

    def u(keep):
        sub = h[np.ix_(keep, keep)]
        return sub[~np.eye(len(keep), dtype=bool)].mean()

    everything = np.arange(12)
    left_out = np.array([u(np.delete(everything, i)) for i in everything])
    variance = 11 / 12 * ((left_out - left_out.mean()) ** 2).sum()
    estimate = pairwise_mean_and_sem(torch.from_numpy(h))
    assert estimate.mean == pytest.approx(u(everything), rel=1e-12)
    assert estimate.sem == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_pairwise_estimate_of_a_sum_is_the_first_order_one():
    # h(x, y) = (x + y) / 2 is the mean; its jackknife is the usual SEM.
    x = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pairs = pairwise_mean_and_sem((x[:, None] + x) / 2)
    assert pairs == pytest.approx(mean_and_sem(x), rel=1e-12)


def test_pairwise_estimate_ignores_the_diagonal():
    h = torch.rand(6, 6)
    h = h + h.T
    other = h.clone().fill_diagonal_(math.nan)
    assert pairwise_mean_and_sem(h) == pairwise_mean_and_sem(other)


def test_pairwise_standard_error_covers_nearly_at_its_nominal_rate():
    # Gini's mean difference of normal values: E|x - y| = 2 / sqrt(pi).
    rng = torch.Generator().manual_seed(3)
    truth, hits, estimates, sems = 2 / math.sqrt(math.pi), [], [], []
    for row in torch.randn(1000, 40, generator=rng, dtype=torch.float64):
        estimate = pairwise_mean_and_sem((row[:, None] - row).abs())
        estimates.append(estimate.mean)
        sems.append(estimate.sem)
        hits.append(abs(estimate.mean - truth) <= 2.0227 * estimate.sem)
    assert_coverage(np.array(hits), 0.95, bias=0.02)
    # The SEM is the spread of the estimate over repetitions: relative error of a
    # standard deviation from 1000 draws, 1 / sqrt(2000), four times over.
    assert np.mean(sems) == pytest.approx(np.std(estimates), rel=4 / math.sqrt(2000))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(4, 5), r"square.*got shape \(4, 5\)"),
        (torch.ones(3, 3), r"at least 4; got shape \(3, 3\)"),
        (torch.ones(4), r"got shape \(4,\)"),
        (torch.arange(16.0).reshape(4, 4), "must be symmetric.*9"),
        (torch.full((4, 4), math.nan), "12 of 16 entries are NaN"),
    ],
)
def test_pairwise_estimate_refuses_what_is_no_kernel_matrix(matrix, message):
    with pytest.raises(ValueError, match=message):
        pairwise_mean_and_sem(matrix)


def test_binomial_floor_equals_its_formula():
    assert binomial_sem_floor(0.0, 50) == pytest.approx(
        math.sqrt(0.5 / 51 * (50.5 / 51) / 50), rel=1e-14
    )
    assert binomial_sem_floor(0.0, 50) == pytest.approx(binomial_sem_floor(1.0, 50))


def test_binomial_floor_keeps_rare_errors_covered():
    # p = 0.01, m = 50: 60 % of all trials see no error. With the empirical SEM those
    # intervals have length zero; with the floor, mean +- 2 SEM covers.
    p, m = 0.01, 50
    counts = np.random.default_rng(4).binomial(m, p, size=5000)
    floored, empirical = [], []
    for k in counts:
        values = torch.zeros(m)
        values[: int(k)] = 1.0
        raw = mean_and_sem(values)
        estimate = apply_sem_floor(raw, num_samples=m, binary=True)
        floored.append(abs(estimate.mean - p) <= 2 * estimate.sem)
        empirical.append(abs(raw.mean - p) <= 2 * raw.sem)
    # The nominal 95 % less four binomial errors, 0.012; P(k > 0) is 39.5 %.
    assert np.mean(floored) > 0.95 - 0.012
    assert np.mean(empirical) < 0.395 + 4 * math.sqrt(0.395 * 0.605 / 5000)


@pytest.mark.parametrize("mean", [-0.1, 1.1, math.nan])
def test_binomial_floor_refuses_means_outside_the_unit_interval(mean):
    with pytest.raises(ValueError, match="0/1 loss must lie in"):
        binomial_sem_floor(mean, 50)


def test_floors_refuse_a_single_sample():
    with pytest.raises(ValueError, match="num_samples must be at least 2; got 1"):
        binomial_sem_floor(0.0, 1)
    with pytest.raises(ValueError, match="num_samples must be at least 2; got 1"):
        relative_sem_floor(0.0, 1, [])


def test_relative_floor_is_the_median_relative_spread_at_this_scale():
    earlier = [MeanSEM(10.0, 1.0), MeanSEM(-20.0, 4.0), MeanSEM(5.0, 4.0)]
    assert relative_sem_floor(3.0, 50, earlier) == pytest.approx(0.2 * 3.0)


def test_relative_floor_of_a_zero_mean_uses_the_smallest_earlier_mean():
    earlier = [MeanSEM(10.0, 1.0), MeanSEM(40.0, 4.0), MeanSEM(0.0, 0.3)]
    assert relative_sem_floor(0.0, 50, earlier) == pytest.approx(0.1 * 10.0)


def test_relative_floor_without_earlier_trials_assumes_a_spread_of_one():
    assert relative_sem_floor(3.0, 36, []) == pytest.approx(0.5)
    unusable = [MeanSEM(0.0, 1.0), MeanSEM(2.0, 0.0)]
    assert relative_sem_floor(3.0, 36, unusable) == pytest.approx(0.5)


def test_relative_floor_without_any_scale_is_the_documented_constant():
    assert relative_sem_floor(0.0, 50, []) == SMALLEST_SEM > 0


def test_relative_floor_takes_rounding_of_a_dense_network_for_zero():
    earlier = [MeanSEM(600.0, 60.0), MeanSEM(40.0, 4.0), MeanSEM(3e-12, 2.0)]
    assert relative_sem_floor(2e-12, 50, earlier) == pytest.approx(4.0)


def test_relative_floor_refuses_a_mean_that_is_not_finite():
    with pytest.raises(ValueError, match="mean must be finite; got nan"):
        relative_sem_floor(math.nan, 50, [])


def test_a_positive_standard_error_of_a_loss_is_left_alone():
    estimate = MeanSEM(3.0, 1e-3)
    earlier = [MeanSEM(3.0, 1.0)]
    kept = apply_sem_floor(estimate, num_samples=50, binary=False, earlier=earlier)
    assert kept == estimate


def test_a_standard_error_of_rounding_is_replaced():
    estimate, earlier = MeanSEM(1e-12, 1e-13), [MeanSEM(40.0, 4.0)]
    floored = apply_sem_floor(estimate, num_samples=50, binary=False, earlier=earlier)
    assert floored == (1e-12, pytest.approx(4.0))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e-300])
@pytest.mark.parametrize("earlier", [[], [MeanSEM(0.0, 0.0)], [MeanSEM(1e-300, 1e-9)]])
def test_a_standard_error_of_zero_is_never_reported(binary, mean, earlier):
    estimate = MeanSEM(mean, 0.0)
    floored = apply_sem_floor(estimate, num_samples=50, binary=binary, earlier=earlier)
    assert floored.mean == mean
    assert 0.0 < floored.sem < math.inf
