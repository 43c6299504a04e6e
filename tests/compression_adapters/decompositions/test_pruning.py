"""Magnitude pruning, against a sort by hand."""

import pytest
import torch
from torch import nn

from compression_adapters import factorize_network, find_layers, truncate_network
from compression_adapters.decompositions import (
    LowRankConv,
    MagnitudePruning,
    TruncatedSVD,
    sparse_bytes,
)

pruning = MagnitudePruning()


def linear(in_features=50, out_features=40, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(in_features, out_features, **options)


@pytest.mark.parametrize("rank", [1, 37, 500, 999, 1000])
def test_the_largest_weights_are_kept_unchanged(rank):
    layer = linear()
    small = pruning.truncate(pruning.factorize(layer), rank)
    flat = layer.weight.detach().flatten()
    kept = flat.abs().topk(2000 * rank // 1000).indices
    expected = torch.zeros(2000).index_copy(0, kept, flat[kept])
    assert type(small) is nn.Linear
    assert torch.equal(small.weight.flatten(), expected)
    assert torch.equal(small.bias, layer.bias)


def test_ties_do_not_change_how_many_weights_are_kept():
    layer = linear()
    nn.init.ones_(layer.weight)
    small = pruning.truncate(pruning.factorize(layer), 100)
    assert int(small.weight.count_nonzero()) == 200


def test_a_smaller_rank_keeps_a_subset():
    factors = pruning.factorize(linear())
    few, many = (pruning.truncate(factors, rank).weight != 0 for rank in (100, 300))
    assert not bool((few & ~many).any())


@pytest.mark.parametrize(
    ("layer", "decomposition"),
    [(nn.Linear(40, 30), TruncatedSVD()), (nn.Conv2d(8, 8, 3), LowRankConv())],
)
def test_a_factored_layer_is_pruned_with_all_its_factors(layer, decomposition):
    factored = decomposition.truncate(decomposition.factorize(layer), 5)
    factors = pruning.factorize(factored)
    small = pruning.truncate(factors, 100)
    assert type(small) is type(factored)
    before, after = (
        torch.cat([p.flatten() for p in module.parameters() if p.ndim >= 2])
        for module in (factored, small)
    )
    count = pruning.num_weights((len(before),), 100)
    limit = before.abs().sort(descending=True).values[count - 1]
    assert torch.equal(after, before.where(before.abs() >= limit, 0))


def test_pruning_follows_a_low_rank_stage():
    network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    layers = find_layers(network)
    ranks = {"0": 6, "2": "dense"}
    low_rank = truncate_network(
        network, factorize_network(network, layers), layers, ranks
    )
    stage = find_layers(low_rank, lambda n, m: pruning if pruning.supports(m) else None)
    assert [(layer.name, layer.num_weights) for layer in stage] == [
        ("0", 300),
        ("2", 200),
    ]
    small = truncate_network(
        low_rank, factorize_network(low_rank, stage), stage, {"0": 100, "2": 100}
    )
    kept = [int(p.count_nonzero()) for p in small.parameters() if p.ndim >= 2]
    assert sum(kept[:2]) == 100  # rank r of a layer with 300 weights keeps r
    assert kept[2] == 100


def test_bytes_of_a_sparse_format_are_those_of_the_smaller_one():
    # A bitmap of 1000 bytes against four bytes for each of 100 places.
    assert sparse_bytes(8000, 100, 4) == 100 * 4 + 400
    assert sparse_bytes(8000, 4000, 2) == 4000 * 2 + 1000


@pytest.mark.parametrize("rank", [0, 1001])
def test_an_illegal_rank_is_refused(rank):
    with pytest.raises(ValueError, match=f"1 to 1000 for magnitude.*got {rank}"):
        pruning.truncate(pruning.factorize(linear()), rank)
    with pytest.raises(ValueError, match=f"1 to 1000 for magnitude.*got {rank}"):
        pruning.empty(linear(), rank)
