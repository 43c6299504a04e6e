"""Truncated networks: the right weights in the right places, and nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from compression_adapters.decompositions import LowRankLinear, TruncatedSVD
from compression_adapters.layers.survey import find_layers
from compression_adapters.network.counts import (
    compression_ratio,
    layer_table,
    num_weights,
    whole_network_ratio,
)
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.truncation import (
    factorize_network,
    truncate_network,
    truncated,
)

RANKS = {"0": 3, "2": "dense", "4": 2}


class Shared(nn.Module):
    """One module at two paths, and under a parent that is itself at two paths."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.block = nn.Sequential(self.first, nn.ReLU())
        self.again = self.block

    def forward(self, x):
        return self.again(self.block(self.first(x)))


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 10)
    )


@pytest.fixture
def parts(network):
    layers = find_layers(network)
    return network, factorize_network(network, layers), layers


def full_ranks(layers):
    return {layer.name: min(layer.weight_shape) for layer in layers}


def test_full_rank_everywhere_reproduces_the_network(parts):
    network, factors, layers = parts
    inputs = torch.randn(5, 30)
    expected = network(inputs)
    with truncated(network, factors, layers, full_ranks(layers)):
        torch.testing.assert_close(network(inputs), expected)
    whole = truncate_network(network, factors, layers, full_ranks(layers))
    torch.testing.assert_close(whole(inputs), expected)


def test_truncated_weights_are_the_best_of_their_rank(parts):
    network, factors, layers = parts
    u, s, vh = torch.linalg.svd(network[0].weight.detach(), full_matrices=False)
    small = truncate_network(network, factors, layers, RANKS)
    torch.testing.assert_close(small[0].weight, (u[:, :3] * s[:3]) @ vh[:3])
    assert type(small[2]) is nn.Linear
    assert torch.equal(small[2].weight, network[2].weight)


def test_layers_are_put_back_the_same_objects(parts):
    network, factors, layers = parts
    before = list(network)
    with truncated(network, factors, layers, RANKS) as inside:
        assert inside is network
        assert isinstance(network[0], LowRankLinear)
        assert network[2] is before[2]
    assert all(a is b for a, b in zip(network, before, strict=True))


def test_layers_are_put_back_after_an_exception(parts):
    network, factors, layers = parts
    before = list(network)
    with (
        pytest.raises(RuntimeError, match="inside"),
        truncated(network, factors, layers, RANKS),
    ):
        raise RuntimeError("inside")
    assert all(a is b for a, b in zip(network, before, strict=True))


def test_an_illegal_rank_leaves_the_network_as_it_was(parts):
    network, factors, layers = parts
    before = list(network)
    with (
        pytest.raises(ValueError, match=r"Layer '4': rank must lie in 1 to 10.*got 11"),
        truncated(network, factors, layers, RANKS | {"4": 11}),
    ):
        pass
    assert all(a is b for a, b in zip(network, before, strict=True))


def test_a_shared_module_is_replaced_at_every_path_by_one_module():
    network = Shared()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    dense = network.first
    with truncated(network, factors, layers, {"first": 2}):
        assert isinstance(network.first, LowRankLinear)
        assert network.block[0] is network.first
        assert network.again[0] is network.first
    assert network.first is network.block[0] is network.again[0] is dense
    small = truncate_network(network, factors, layers, {"first": 2})
    assert isinstance(small.first, LowRankLinear)
    assert small.first is small.block[0] is small.again[0]
    assert len(list(small.parameters())) == 3
    inputs = torch.randn(3, 8)
    with truncated(network, factors, layers, {"first": 2}):
        torch.testing.assert_close(small(inputs), network(inputs))


def test_the_final_network_neither_mutates_nor_aliases(parts):
    network, factors, layers = parts
    before = copy.deepcopy(network.state_dict())
    left = factors["0"].left.clone()
    small = truncate_network(network, factors, layers, RANKS)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(factors["0"].left, left)
    assert torch.equal(
        truncate_network(network, factors, layers, RANKS)[2].weight, before["2.weight"]
    )


def test_the_final_network_owns_contiguous_memory_of_its_size_only(parts):
    network, factors, layers = parts
    small = truncate_network(network, factors, layers, RANKS)
    for parameter in small.parameters():
        assert parameter.is_contiguous()
        bytes_needed = parameter.numel() * parameter.element_size()
        assert parameter.untyped_storage().nbytes() == bytes_needed


def test_the_final_network_trains_where_the_original_did(parts):
    network, factors, layers = parts
    network[4].requires_grad_(False)
    small = truncate_network(network, factors, layers, RANKS)
    assert all(p.requires_grad for p in small[0].parameters())
    assert not any(p.requires_grad for p in small[4].parameters())
    small(torch.randn(2, 30)).sum().backward()
    assert small[0].left.grad is not None


def test_factors_made_in_inference_mode_can_be_used_outside_it(network):
    layers = find_layers(network)
    with torch.inference_mode():
        factors = factorize_network(network, layers)
        small = truncate_network(network, factors, layers, RANKS)
    small(torch.randn(2, 30)).sum().backward()


def test_a_transformer_layer_keeps_its_fast_path():
    network = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    )
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"0.linear1": 3, "0.linear2": 2})
    small.eval()
    inputs = torch.randn(2, 5, 8)
    slow = small(inputs)
    with torch.inference_mode():
        fast = small(inputs)
    torch.testing.assert_close(fast, slow.detach(), rtol=1e-4, atol=1e-5)


def test_attention_and_encoder_layers_keep_working_around_factored_ones():
    network = nn.Transformer(
        8, 2, 1, 1, dim_feedforward=16, batch_first=True, dropout=0.0
    )
    layers = find_layers(network)
    assert {layer.name.rpartition(".")[2] for layer in layers} == {"linear1", "linear2"}
    factors = factorize_network(network, layers)
    inputs = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    expected = network(*inputs)
    small = truncate_network(network, factors, layers, full_ranks(layers))
    torch.testing.assert_close(small(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make_mask",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 3),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
)
def test_layers_whose_weight_is_computed_survive_beside_compressed_ones(make_mask):
    network = nn.Sequential(nn.Linear(8, 8), make_mask(nn.Linear(8, 8)))
    layers = find_layers(network)
    assert [layer.name for layer in layers] == ["0"]
    inputs = torch.randn(3, 8)
    network.eval()
    network(inputs)  # which leaves a computed weight behind
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"0": 8})
    torch.testing.assert_close(small(inputs), network(inputs))
    small(inputs).sum().backward()


def test_modes_of_all_modules_are_restored(network):
    network[2].eval()
    before = [module.training for module in network.modules()]
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before


def test_weights_are_counted_without_biases(parts):
    _, _, layers = parts
    assert num_weights(layers, RANKS) == 3 * 50 + 400 + 2 * 30
    assert compression_ratio(layers, RANKS) == pytest.approx(610 / 1200)


def test_dense_everywhere_has_ratio_one(parts):
    network, _, layers = parts
    ranks = dict.fromkeys(("0", "2", "4"), "dense")
    assert compression_ratio(layers, ranks) == 1.0
    assert whole_network_ratio(network, layers, ranks) == 1.0


def test_whole_network_ratio_counts_the_weights_of_the_compressed_network():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 12)
    )
    layers = find_layers(network, exclude="0")
    small = truncate_network(
        network, factorize_network(network, layers), layers, {"3": 2}
    )
    after, before = (
        sum(p.numel() for p in n.parameters() if p.ndim >= 2) for n in (small, network)
    )
    ratio = whole_network_ratio(network, layers, {"3": 2})
    assert ratio == pytest.approx(after / before)
    assert ratio == pytest.approx((36 + 56) / (36 + 192))


def test_layer_table_has_a_row_for_every_layer(parts):
    _, _, layers = parts
    table = layer_table(layers, RANKS)
    assert list(table.columns) == [
        "layer",
        "kind",
        "weight_shape",
        "max_rank",
        "rank",
        "weights",
        "weights_before",
        "ratio",
    ]
    assert table["layer"].tolist() == ["0", "2", "4"]
    assert table["rank"].tolist() == [3, "dense", 2]
    assert table["weights"].sum() == num_weights(layers, RANKS)
    assert table["ratio"].tolist() == pytest.approx([0.25, 1.0, 0.3])
    assert set(table["kind"]) == {TruncatedSVD().name}


def test_a_missing_rank_is_named(parts):
    network, factors, layers = parts
    with pytest.raises(ValueError, match="no entry for layer '2'; it has 0"):
        num_weights(layers, {"0": 3})
    with pytest.raises(ValueError, match="no entry for layer '2'"):
        truncate_network(network, factors, layers, {"0": 3})


def test_weights_that_are_not_finite_are_refused_by_layer(network):
    layers = find_layers(network)
    with torch.no_grad():
        network[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="Layer '2': weight holds NaN"):
        factorize_network(network, layers)


def test_a_layer_of_another_network_is_named(network):
    with pytest.raises(ValueError, match=r"\(Linear\) has no layer '0'"):
        factorize_network(nn.Linear(3, 3), find_layers(network))
