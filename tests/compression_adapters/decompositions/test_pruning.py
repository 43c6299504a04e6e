"""Magnitude pruning, against a sort by hand."""

import pytest
import torch
from torch import nn

from compression_adapters import factorize_network, find_layers, truncate_network
from compression_adapters.calibration.gather import gather_moments, rows_of
from compression_adapters.decompositions import (
    CP,
    ChannelConv,
    LowRankConv,
    MagnitudePruning,
    TruncatedSVD,
    Tucker,
    parts_of,
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


def squares_of(layer, inputs):
    return gather_moments(nn.Sequential(layer), {"0": "squares"}, inputs)["0"]


FACTORED = [
    (lambda: nn.Linear(20, 12), TruncatedSVD(), (50, 20)),
    (lambda: nn.Conv2d(6, 8, 1), TruncatedSVD(), (8, 6, 5, 5)),
    (lambda: nn.Conv2d(6, 8, 3, padding=1), LowRankConv(), (8, 6, 7, 7)),
    (lambda: nn.Conv2d(6, 8, 3, groups=2, stride=2), LowRankConv(), (8, 6, 9, 9)),
    (lambda: nn.Conv2d(6, 8, 3), ChannelConv(), (8, 6, 7, 7)),
    (lambda: nn.Conv2d(6, 8, 3, groups=2), ChannelConv(), (8, 6, 7, 7)),
    (lambda: nn.Conv2d(6, 8, 3), Tucker(), (8, 6, 7, 7)),
    (lambda: nn.Conv2d(6, 8, 3), CP(), (8, 6, 7, 7)),
]


@pytest.fixture
def factored(make, decomposition):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = make()
        yield decomposition.truncate(decomposition.factorize(layer), 3)


@pytest.mark.parametrize(("make", "decomposition", "shape"), FACTORED)
def test_squares_of_a_factored_layer_are_those_of_all_its_parts(factored, shape):
    inputs = torch.randn(shape) + 0.3
    moments = squares_of(factored, inputs)
    seen, means, x = [], [], inputs
    with torch.no_grad():
        for part in parts_of(factored):
            rows = rows_of(part, x).double()
            seen.append(rows.square().mean(1).flatten())
            means.append(rows.mean(1).flatten())
            x = part(x)
        torch.testing.assert_close(x, factored(inputs))
    torch.testing.assert_close(
        moments.second.flatten(), torch.cat(seen), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        moments.mean.flatten(), torch.cat(means), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("make", "decomposition", "shape"), FACTORED)
def test_a_weight_contributes_the_norm_of_what_the_output_loses_without_it(
    factored, shape
):
    factored = factored.double()
    first, *_ = parts_of(factored)
    inputs = torch.randn(shape, dtype=torch.float64)
    moments = squares_of(factored, inputs)
    factors = pruning.factorize(factored, moments)
    last = parts_of(factored)[-1]
    with torch.no_grad():
        x = inputs
        for part in parts_of(factored)[:-1]:
            x = part(x)
        spread = rows_of(last, x).var(1, correction=0)
        groups = len(spread)
        own = last.weight.flatten(1).unflatten(0, (groups, -1)).square()
        ridge = 1e-3 * spread.mean(1, keepdim=True)
        by_hand = (own * (spread + ridge)[:, None]).sum()
    values = pruning.singular_values(factors)
    parts = len(parts_of(factored))
    total = float(values.square().sum())
    assert total >= float(by_hand)
    if parts == 2:  # the first part's, whose gain is the norm of the second's columns
        spread = rows_of(first, inputs).var(1, correction=0)
        ridge = 1e-3 * spread.mean(1, keepdim=True)
        weights = first.weight.detach().flatten(1).unflatten(0, (groups, -1))
        gain = last.weight.detach().unflatten(0, (groups, -1)).square()
        gain = gain.sum(1).flatten(2).sum(2) if gain.ndim > 3 else gain.sum(1)
        others = weights.square() * gain[:, :, None] * (spread + ridge)[:, None]
        assert total == pytest.approx(float(by_hand + others.sum()), rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_with_moments_it_loses_less_where_inputs_differ_in_size(bias):
    layer = linear(bias=bias)
    inputs = torch.randn(500, 50).abs() * torch.linspace(0.1, 3, 50)
    moments = squares_of(layer, inputs)
    errors = [
        (pruning.truncate(factors, 200)(inputs) - layer(inputs)).norm().item()
        for factors in (pruning.factorize(layer, moments), pruning.factorize(layer))
    ]
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize(("make", "decomposition", "shape"), FACTORED)
def test_a_factored_layer_keeps_its_mean_output_and_loses_less(factored, shape):
    inputs = torch.randn(shape).abs() + 0.5
    plain, fitted = (
        pruning.truncate(factors, pruning.max_rank(factored) // 3)
        for factors in (
            pruning.factorize(factored),
            pruning.factorize(factored, squares_of(factored, inputs)),
        )
    )
    with torch.no_grad():
        errors = [cut(inputs) - factored(inputs) for cut in (fitted, plain)]
    assert float(errors[0].norm()) < float(errors[1].norm())
    if getattr(factored, "padding", (0, 0)) == (0, 0):
        channels = -3 if hasattr(factored, "padding") else -1
        mean = errors[0].movedim(channels, -1).flatten(0, -2).mean(0)
        # Not exact of k x k: the second part sees some of the first one's outputs more
        # often than others.
        assert float(mean.abs().max()) < 0.05 * float(factored(inputs).std())


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
