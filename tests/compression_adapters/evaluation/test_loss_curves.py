"""What each layer alone costs, against evaluations."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from compression_adapters import compression_problem
from compression_adapters.evaluation.loss_curves import (
    ERRORS,
    loss_curves,
    relative_errors,
)
from compression_adapters.evaluation.losses import squared_l2
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.rank_space.scales import DENSE

POOL = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(400) % 6


class Branches(nn.Module):
    """Two layers of one shape, one of which hardly counts."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.loud, self.quiet = nn.Linear(16, 6), nn.Linear(16, 6)

    def forward(self, x):
        return self.loud(x) + 0.01 * self.quiet(x)


def problem(network=None, **options):
    network = Branches() if network is None else network
    return compression_problem(network, POOL, gamma=1.0, **options)


def test_a_curve_goes_through_what_was_measured_and_never_rises():
    p = problem()
    whole = {layer.name: DENSE for layer in p.layers}
    for layer in p.layers:
        errors = relative_errors(layer, p.factors[layer.name])
        curve = loss_curves(p)[layer.name]
        assert len(curve) == len(errors)
        assert curve[-1] == 0.0
        assert all(a >= b for a, b in itertools.pairwise(curve))
        rank = next(k for k in range(1, len(errors)) if errors[k] <= ERRORS[0])
        values = [
            float(p.sample_losses({**whole, layer.name: rank}, seed=s).mean())
            for s in range(40)
        ]
        mean = sum(values) / 40
        # One evaluation of 50 samples against the mean of forty.
        assert curve[rank] == pytest.approx(mean, rel=0.5)


def test_the_layer_that_counts_is_kept_and_the_other_is_cut_first():
    p = problem()
    curves = loss_curves(p)
    # Squared losses of outputs that are a hundredth as large.
    assert curves["loud"][1] > 1e3 * curves["quiet"][1]
    for ranks in price_path(p).networks[1:-1]:
        assert ranks["loud"] == DENSE or ranks["quiet"] == 1
    errors = {x.name: relative_errors(x, p.factors[x.name]) for x in p.layers}
    alike = price_path(p, errors).networks
    assert any(ranks["loud"] != DENSE and ranks["quiet"] != 1 for ranks in alike)


def test_the_price_of_a_gamma_is_the_least_sum_of_losses_and_size():
    p = problem()
    path = price_path(p)
    loss, size = path.table["predicted_loss"], path.table["compression_ratio"]
    for gamma in (0.01, 0.1, 1.0, 10.0, 1e3):
        values = gamma * loss + size
        assert values[path.at_price(1.0 / gamma)] == pytest.approx(values.min())


def test_they_are_measured_once_for_all_gammas():
    calls = []

    def counted(network, batch):
        calls.append(None)
        return squared_l2(network, batch)

    p = problem(loss=counted)
    before = len(calls)
    one = loss_curves(p)
    assert 0 < len(calls) - before <= 1 + len(ERRORS) * len(p.layers)
    before = len(calls)
    assert loss_curves(replace(p, gamma=3.0)) is one
    assert len(calls) == before


def test_a_loss_that_the_whole_network_has_too_is_taken_off():
    p = problem(loss="cross_entropy", labels=LABELS)
    for curve in loss_curves(p).values():
        assert curve[-1] == 0.0
    # Whatever a cut gains by chance does not count against size.
    assert all(min(curve) >= 0.0 for curve in loss_curves(p).values())


def test_layers_that_never_lose_anything_count_as_the_least_sensitive_one():
    network = Branches()
    with torch.inference_mode():
        labels = network(POOL).argmax(1)
    p = problem(network, loss="top1_error", labels=labels)
    curves = loss_curves(p)
    errors = {x.name: relative_errors(x, p.factors[x.name]) for x in p.layers}
    assert curves["quiet"][1] > 0.0
    share = curves["quiet"][1] / errors["quiet"][1]
    assert share <= curves["loud"][1] / errors["loud"][1]


def test_a_loss_that_fails_leaves_the_errors_of_the_factors():
    ready = []

    def failing(network, batch):
        if ready:
            raise RuntimeError("out of order")
        return squared_l2(network, batch)

    p = problem(loss=failing)
    ready.append(None)
    for layer in p.layers:
        expected = relative_errors(layer, p.factors[layer.name])
        assert loss_curves(p)[layer.name] == pytest.approx(expected)
    assert not any(math.isnan(v) for c in loss_curves(p).values() for v in c)
