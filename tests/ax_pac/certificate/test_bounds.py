"""The bound of a mean by betting: coverage at every look, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ax_pac.certificate.bounds import (
    betting_upper,
    clopper_pearson_upper,
    is_hopeless,
    log_wealth,
)


def constant(value: float, num: int) -> torch.Tensor:
    return torch.full((num,), value, dtype=torch.float64)


def values_of_mean(kind: str, mean: float, shape: tuple[int, int]) -> torch.Tensor:
    rng = np.random.default_rng(0)
    if kind == "zeros and ones":
        return torch.from_numpy((rng.random(shape) < mean).astype(float))
    concentration = {"narrow": 50.0, "wide": 1.0}[kind]
    values = rng.beta(mean * concentration, (1 - mean) * concentration, shape)
    return torch.from_numpy(values)


@pytest.mark.parametrize("mean", [0.05, 0.3])
@pytest.mark.parametrize("kind", ["zeros and ones", "narrow", "wide"])
def test_looking_at_every_value_the_bound_fails_at_most_as_often_as_alpha(kind, mean):
    alpha, num_runs = 0.05, 1000
    runs = values_of_mean(kind, mean, (num_runs, 1000))
    # The wealth at the true mean, at every look: where it exceeds 1 / alpha, the bound
    # is below the mean.
    stakes = [1.0, 0.7, 0.5, 0.35, 0.25, 0.18]
    paths = [torch.log1p(stake * (mean - runs)).cumsum(-1) for stake in stakes]
    wealth = torch.stack(paths).logsumexp(0) - math.log(len(stakes))
    assert wealth[0, -1].item() == pytest.approx(log_wealth(runs[0], mean))
    failures = int((wealth.amax(-1) > -math.log(alpha)).sum())
    assert failures / num_runs <= alpha + 3.0 * math.sqrt(alpha / num_runs)


def test_bound_is_the_smallest_mean_that_is_refuted():
    values = values_of_mean("wide", 0.03, (1, 800))[0]
    bound = betting_upper(values, 1e-3)
    assert log_wealth(values, bound, 1.0) >= -math.log(1e-3)
    assert log_wealth(values, bound - 1e-4, 1.0) < -math.log(1e-3)
    assert float(values.mean()) < bound < 0.1


def test_values_that_scatter_little_are_bounded_more_closely_than_failures():
    num, alpha = 1000, 1e-4
    counted = clopper_pearson_upper(30, num, alpha)
    zeros_and_ones = torch.cat([constant(1.0, 30), constant(0.0, num - 30)])
    assert betting_upper(constant(0.03, num), alpha) < counted - 0.01
    # On counts it is a little wider than the exact bound, the price of any look.
    assert counted < betting_upper(zeros_and_ones, alpha) < counted + 0.015


def test_a_smaller_sample_size_gives_a_larger_bound_and_none_at_all_gives_one():
    values = constant(0.02, 1000)
    bounds = [betting_upper(values, 1e-3, ratio) for ratio in (1.0, 0.5, 0.1, 0.0)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1] < bounds[2] < bounds[3] == 1.0
    half = betting_upper(values[:500], 1e-3)
    assert bounds[1] == pytest.approx(half, abs=1e-4)
    assert betting_upper(values[:0], 1e-3) == 1.0


def test_hopeless_is_what_cannot_be_refuted_with_all_values():
    assert is_hopeless(constant(0.06, 64), 0.05, 1e-3, 1.0, 2000)
    assert not is_hopeless(constant(0.01, 64), 0.05, 1e-3, 1.0, 2000)
    # The same values can be hopeless because there will be too few of them.
    assert is_hopeless(constant(0.01, 64), 0.05, 1e-3, 1.0, 100)
