"""Rules that choose ranks without a search, on a network of a few layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.networks.rank_rules import (
    at_ratio,
    energy_rule,
    evbmf_rank,
    evbmf_rule,
    fraction_rule,
    greedy_rule,
    path_rule,
    sensitivity_rule,
)
from compression_adapters import CompressionProblem, compression_problem
from compression_adapters import compression_ratio as ratio_of


@pytest.fixture
def problem() -> CompressionProblem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3),
            nn.Flatten(),
        )
        inputs = torch.randn(80, 3, 8, 8)
    # The last layer is close to rank 2, the one before is not.
    with torch.no_grad():
        kernel = network[4].weight.permute(1, 2, 0, 3).reshape(72, 72)
        left, values, right = torch.linalg.svd(kernel)
        values[2:] *= 0.01
        kernel = (left * values) @ right
        network[4].weight.copy_(kernel.reshape(24, 3, 24, 3).permute(2, 0, 1, 3))
    return compression_problem(network.eval(), inputs, gamma=1.0)


RULES = {
    "fraction": fraction_rule,
    "energy": energy_rule,
    "evbmf": evbmf_rule,
    "greedy": lambda problem: greedy_rule(problem, seed=0),
    "sensitivity": lambda problem: sensitivity_rule(problem, seed=0),
    "path": path_rule,
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_share_of_weights_that_it_is_asked_for(problem, name):
    rule = RULES[name](problem)
    ratios = [ratio_of(problem.layers, at_ratio(problem, rule, r)) for r in (0.3, 0.6)]
    assert ratios == pytest.approx([0.3, 0.6], abs=0.06)


# Not `evbmf`: it takes random weights for noise, and the first layers have no others.
@pytest.mark.parametrize("name", ["energy", "greedy", "sensitivity", "path"])
def test_a_rule_that_looks_at_the_layers_cuts_the_one_of_low_rank_most(problem, name):
    ranks = at_ratio(problem, RULES[name](problem), 0.5)
    layers = {layer.name: layer.max_rank for layer in problem.layers}
    share = {
        name: 1.0 if rank == "dense" else rank / layers[name]
        for name, rank in ranks.items()
    }
    assert share["4"] < 0.5 * share["2"]


def test_evbmf_finds_the_rank_of_a_noisy_matrix():
    rng = np.random.default_rng(0)
    for rank in (0, 3, 12):
        signal = rng.normal(size=(60, rank)) @ rng.normal(size=(rank, 90))
        noisy = signal + 0.5 * rng.normal(size=(60, 90))
        values = np.linalg.svd(noisy, compute_uv=False)
        assert evbmf_rank(values, 60, 90) == rank
        assert evbmf_rank(values, 90, 60) == rank
