"""How a cut network is measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks.data_aware.subjects import (
    at_fraction,
    calibration_inputs,
    layers_of,
    measured_cut,
    subject,
)
from compression_adapters.network.truncation import factorize_network, truncate_network


def test_a_cut_is_compared_with_the_original_and_not_with_itself(tiny):
    data, layers = subject(tiny), layers_of(tiny)
    factors = factorize_network(data.network, layers)
    ranks = at_fraction(layers, 0.1)
    assert list(ranks.values()) == [1, 1]
    found = measured_cut(tiny, layers, factors, ranks, 100)
    small = truncate_network(data.network, factors, layers, ranks).eval()
    with torch.no_grad():
        expected = (small(data.test) - data.network(data.test)).square().sum(1).mean()
    # Single precision, summed over ten outputs.
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["top1_original"] == 1.0
    assert found["ratio"] == pytest.approx((44 + 30) / (480 + 200))


def test_calibration_inputs_are_of_the_pool_and_chosen_by_the_seed(tiny):
    one, same, other = (calibration_inputs(tiny, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    pool = {tuple(row) for row in subject(tiny).pool.tolist()}
    assert {tuple(row) for row in one.tolist()} <= pool
