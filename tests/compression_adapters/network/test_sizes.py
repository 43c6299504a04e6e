"""Sizes counted by hand, by torch and by the bytes of a real file."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from compression_adapters import (
    DECOMPOSITIONS,
    choose_low_rank,
    choose_pruning,
    compression_problem,
    factorize_network,
    find_layers,
    truncate_network,
)
from compression_adapters.network.checkpoint import WEIGHTS_FILE, save_compressed
from compression_adapters.network.counts import compression_ratio, whole_network_ratio
from compression_adapters.network.macs import count_macs
from compression_adapters.network.sizes import (
    LayerSizes,
    count_bytes,
    count_multiply_adds,
    count_weights,
)
from compression_adapters.rank_space.parameters import bin_edges

IMAGES = torch.randn(60, 4, 12, 12, generator=torch.Generator().manual_seed(0))


def network(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (
            nn.Sequential(
                nn.Conv2d(4, 12, 3, stride=2, padding=1),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                nn.Conv2d(12, 12, 3, padding=1, bias=False),
                nn.Flatten(),
                nn.Linear(12 * 36, 10),
            )
            .to(dtype)
            .eval()
        )


def stored(net, layers, ranks, folder):
    """Bytes of the tensors in the file of a saved network, from its own header."""
    save_compressed(net, layers, ranks, folder)
    content = (folder / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return sum(
        end - start for start, end in (v["data_offsets"] for v in header.values())
    )


def cuts(layers):
    """All ranks one, a mixture, and the largest."""
    yield {layer.name: 1 for layer in layers}
    yield {
        layer.name: "dense" if i % 2 else layer.max_rank // 2
        for i, layer in enumerate(layers)
    }
    yield {layer.name: layer.max_rank for layer in layers}


def test_weights_are_the_ratios_of_the_tables_of_the_paper():
    net = network()
    layers = find_layers(net)[:2]
    size = count_weights(net, layers)
    whole = replace(size, size_of="network")
    for ranks in cuts(layers):
        assert size.ratio(ranks) == compression_ratio(layers, ranks)
        assert whole.ratio(ranks) == pytest.approx(
            whole_network_ratio(net, layers, ranks), rel=1e-12
        )


@pytest.mark.parametrize("kind", ["svd", "low_rank_conv", "channel_conv", "tucker"])
def test_multiply_adds_are_those_of_the_network_that_is_kept(kind):
    net = network()

    def choose(name, module):
        wanted = DECOMPOSITIONS[kind]
        return wanted if wanted.supports(module) else choose_low_rank(name, module)

    layers = find_layers(net, choose)
    size = replace(count_multiply_adds(net, layers, IMAGES[:2]), size_of="network")
    factors = factorize_network(net, layers)
    assert size.before == count_macs(net, IMAGES[:1])
    for ranks in cuts(layers):
        small = truncate_network(net, factors, layers, ranks)
        assert size.after(ranks) == count_macs(small, IMAGES[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_are_those_of_the_file_of_a_factored_network(dtype, tmp_path):
    net = network(dtype)
    layers = find_layers(net)
    size = replace(count_bytes(net, layers), size_of="network")
    factors = factorize_network(net, layers)
    for i, ranks in enumerate(cuts(layers)):
        small = truncate_network(net, factors, layers, ranks)
        assert size.after(ranks) == stored(small, layers, ranks, tmp_path / str(i))


def test_bytes_are_those_of_the_file_of_a_pruned_network(tmp_path):
    net = network()
    layers = find_layers(net, choose_pruning)
    size = replace(count_bytes(net, layers), size_of="network")
    factors = factorize_network(net, layers)
    for rank in (5, 200, 900, 999):
        ranks = {layer.name: min(rank, layer.max_rank) for layer in layers}
        small = truncate_network(net, factors, layers, ranks)
        assert size.after(ranks) == stored(small, layers, ranks, tmp_path / str(rank))


def test_a_rank_as_large_as_one_with_a_smaller_error_is_no_choice():
    sizes = LayerSizes((1, 2, 3, 4, 5, "dense"), (1.0, 4.0, 3.0, 3.0, 8.0, 6.0))
    assert sizes.worthwhile(range(1, 6)) == (1, 4)
    assert sizes.worthwhile(range(1, 6), dense=False) == (1, 4, 5)
    assert sizes.worthwhile(range(1, 6), margin=0.55) == (1,)
    assert sizes.worthwhile([5]) == ()


def test_layers_that_leave_become_the_rest_of_the_network():
    net = network()
    layers = find_layers(net)
    size = replace(count_weights(net, layers), size_of="network")
    few = size.only([layers[0].name])
    ranks = {layer.name: "dense" for layer in layers} | {layers[0].name: 2}
    assert few.before == size.before
    assert few.after(ranks) == size.after(ranks)
    assert replace(few, size_of="layers").before == layers[0].num_weights


def test_what_has_no_size_is_refused_by_name():
    net = network()
    size = count_weights(net, find_layers(net)[:1])
    with pytest.raises(ValueError, match="no entry for layer '0'; it has none"):
        size.ratio({})
    with pytest.raises(ValueError, match=r"Layer '0': rank must be one of 1 to dense"):
        size.ratio({"0": 10_000})
    with pytest.raises(ValueError, match="one size for each option"):
        LayerSizes((1, "dense"), (1.0,))


@pytest.mark.parametrize("size", ["weights", "multiply-adds", "bytes"])
@pytest.mark.parametrize("size_of", ["layers", "network"])
def test_the_tables_of_a_problem_add_up_to_its_ratio(size, size_of):
    problem = compression_problem(
        network(), IMAGES, gamma=1.0, size=size, size_of=size_of, exclude="3"
    )
    tables, edges = problem.ratio_tables(), {}
    for u in (0.0, 0.3, 0.8, 1.0):
        point = {p.name: u for p in problem.parameters}
        total = problem.ratio_constant
        for p in problem.parameters:
            edges = bin_edges([p])[p.name]
            place = next(i for i, e in enumerate(edges[1:]) if u < e or e == 1.0)
            total += tables[p.name][place]
        assert total == pytest.approx(problem.ratio(problem.ranks(point)), rel=1e-12)
        found = problem.evaluate(point, seed=0)["compression_ratio"]
        assert found.mean == problem.ratio(problem.ranks(point))
    assert (problem.ratio_constant > 0.0) == (size_of == "network")
