"""Which layers are found, and which networks are refused."""

import pytest
from torch import nn
from torch.nn.utils import parametrizations, prune

from compression_adapters.decompositions import TruncatedSVD
from compression_adapters.layers import choose_linear, find_layers


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


def test_linear_layers_are_found_in_network_order():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(30, 20), nn.Sequential(nn.ReLU(), nn.Linear(20, 10))
    )
    first, second = find_layers(network)
    assert (first.name, second.name) == ("1", "2.1")
    assert first.weight_shape == (20, 30)
    assert first.max_rank == 12
    assert first.num_weights == 600
    assert first.decomposition == TruncatedSVD()


def test_maximal_ranks_of_the_papers_fc3_are_the_papers():
    sizes = [(784, 1000), (1000, 1000), (1000, 10)]
    network = nn.Sequential(*(nn.Linear(*size) for size in sizes))
    assert [layer.max_rank for layer in find_layers(network)] == [439, 500, 9]


def test_choose_decides_by_name():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    layers = find_layers(
        network, lambda name, module: TruncatedSVD() if name == "1" else None
    )
    assert [layer.name for layer in layers] == ["1"]


def test_a_module_at_two_paths_is_one_layer():
    assert [layer.name for layer in find_layers(Shared())] == ["first"]


def test_attention_projections_and_other_subclasses_are_left_alone():
    network = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    assert [layer.name for layer in find_layers(network)] == ["linear1", "linear2"]


def test_layers_that_no_rank_makes_smaller_are_left_alone():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    assert [layer.name for layer in find_layers(network)] == ["0"]


def test_layers_whose_weight_is_computed_are_left_alone():
    normed = parametrizations.weight_norm(nn.Linear(8, 8))
    pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", 3)
    assert choose_linear("a", normed) is None
    assert choose_linear("a", pruned) is None


def test_a_network_without_a_layer_to_compress_is_refused():
    with pytest.raises(ValueError, match=r"No layer to compress.*ReLU, Sequential"):
        find_layers(nn.Sequential(nn.ReLU()))


def test_a_decomposition_that_does_not_support_its_layer_is_refused_by_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"Layer '0'.*'svd' does not support Conv2d"):
        find_layers(network, lambda n, m: TruncatedSVD() if n else None)


def test_a_network_that_is_itself_the_layer_is_refused():
    with pytest.raises(ValueError, match=r"wrap it: nn.Sequential\(network\)"):
        find_layers(nn.Linear(4, 4))


def test_tied_weights_are_refused_with_both_names():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    with pytest.raises(ValueError, match="'0' shares its weight with '2'"):
        find_layers(network)


def test_weights_tied_to_an_embedding_are_refused():
    network = nn.ModuleDict({"tokens": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    network["head"].weight = network["tokens"].weight
    with pytest.raises(ValueError, match="'head' shares its weight with 'tokens'"):
        find_layers(network)
