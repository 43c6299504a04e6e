"""Which layers are found, and which networks are refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from compression_adapters.decompositions import TruncatedSVD
from compression_adapters.layers.selection import (
    choose_linear,
    choose_low_rank,
    choose_pruning,
)
from compression_adapters.layers.survey import find_layers, survey_layers, unwrap
from compression_adapters.network.truncation import factorize_network, truncate_network


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


def reasons(network, choose=choose_low_rank, **options):
    _, skipped = survey_layers(network, choose, **options)
    return {layer.name: layer.reason for layer in skipped}


def test_each_layer_left_out_has_its_reason():
    tied = nn.Linear(8, 8)
    network = nn.ModuleDict(
        {
            "good": nn.Linear(8, 8),
            "small": nn.Linear(8, 1),
            "depthwise 1x1": nn.Conv2d(4, 4, 1, groups=4),
            "normed": parametrizations.weight_norm(nn.Linear(8, 8)),
            "masked": prune.l1_unstructured(nn.Linear(8, 8), "weight", 3),
            "one-dimensional": nn.Conv1d(4, 4, 3),
            "transposed": nn.ConvTranspose2d(4, 4, 3),
            "recurrent": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(8, 2),
            "tied": tied,
            "tied too": nn.Linear(8, 8),
        }
    )
    network["tied too"].weight = tied.weight
    layers, _ = survey_layers(network)
    assert [layer.name for layer in layers] == ["good"]
    why = reasons(network)
    assert why.pop("tied").startswith("shares its weight with 'tied too'")
    assert why.pop("tied too").startswith("shares its weight with 'tied'")
    assert "remove_parametrizations(layer, 'weight')" in why.pop("normed")
    assert "torch.nn.utils.prune.remove(layer, 'weight')" in why.pop("masked")
    assert "torch multiplies its weights" in why.pop("recurrent")
    assert why == {
        "small": "no rank makes it smaller",
        "depthwise 1x1": "no rank makes it smaller",
        "one-dimensional": "no decomposition supports Conv1d",
        "transposed": "no decomposition supports ConvTranspose2d",
        "attention.out_proj": "a subclass of nn.Linear, which may do something else",
    }


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_old_weight_norm_is_left_alone_with_a_reason():
    network = nn.Sequential(nn.Linear(8, 8), nn.utils.weight_norm(nn.Linear(8, 8)))
    assert "its weight is computed and not a parameter" in reasons(network)["1"]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("body.*", ["body.0", "body.2"]),
        (["head", "body.2"], ["body.2", "head"]),
        (nn.Conv2d, ["body.0"]),
        (lambda name, module: getattr(module, "groups", 1) == 2, ["body.0"]),
        (("head", nn.Conv2d), ["body.0", "head"]),
    ],
)
def test_layers_are_included_and_excluded_by_glob_type_and_predicate(selector, names):
    network = nn.ModuleDict(
        {
            "body": nn.Sequential(
                nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Linear(8, 8)
            ),
            "head": nn.Linear(8, 8),
        }
    )
    every = ["body.0", "body.2", "head"]
    included = find_layers(network, include=selector)
    assert [layer.name for layer in included] == names
    excluded = find_layers(network, exclude=selector)
    assert [layer.name for layer in excluded] == [n for n in every if n not in names]
    assert set(reasons(network, include=selector).values()) == {"not included"}
    assert set(reasons(network, exclude=selector).values()) == {"excluded"}


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("selector", ["haed", nn.Conv2d, lambda name, module: False])
def test_a_selector_that_matches_nothing_is_refused(argument, selector):
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=f"{argument}=.*matches no layer.*0, 1, 2"):
        find_layers(network, **{argument: ["0", selector]})


def test_parts_of_a_factored_layer_are_no_layers():
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 8))
    layers = find_layers(network)
    small = truncate_network(
        network, factorize_network(network, layers), layers, {"0": 4, "1": 2}
    )
    with pytest.raises(
        ValueError, match=r"(?s)No layer.*0 \(LowRankConv2d\): factored"
    ):
        find_layers(small)
    pruned = find_layers(small, choose_pruning)
    assert [(layer.name, layer.num_weights) for layer in pruned] == [
        ("0", 4 * 48),
        ("1", 2 * 16),
    ]


def test_a_lazy_layer_is_refused_by_name():
    network = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(ValueError, match="'0' is a LazyLinear that has seen no input"):
        find_layers(network, lambda name, m: TruncatedSVD() if name else None)


def test_wrappers_are_taken_off():
    inner = nn.Linear(8, 8)
    assert unwrap(nn.DataParallel(nn.DataParallel(inner))) is inner
    assert unwrap(inner) is inner


@pytest.mark.slow
def test_a_compiled_network_is_unwrapped():
    inner = nn.Linear(8, 8)
    assert unwrap(torch.compile(inner)) is inner


def test_groups_are_part_of_what_a_layer_weighs():
    (layer,) = find_layers(nn.Sequential(nn.Conv2d(8, 12, 3, groups=4)))
    assert (layer.weight_shape, layer.groups) == ((12, 2, 3, 3), 4)
    assert layer.weights_at(2) == 2 * (8 * 3 + 12 * 3)


def test_a_network_without_a_layer_to_compress_is_refused_with_reasons():
    with pytest.raises(ValueError, match=r"No layer to compress.*ReLU, Sequential"):
        find_layers(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"(?s)No layer.*0 \(Linear\): no rank makes"):
        find_layers(nn.Sequential(nn.Linear(8, 1)))


def test_a_decomposition_that_does_not_support_its_layer_is_refused_by_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"Layer '0'.*'svd' does not support Conv2d"):
        find_layers(network, lambda n, m: TruncatedSVD() if n else None)


def test_a_network_that_is_itself_the_layer_is_refused():
    with pytest.raises(ValueError, match=r"wrap it: nn.Sequential\(network\)"):
        find_layers(nn.Linear(4, 4))


def test_tied_weights_are_left_alone_with_a_warning():
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 8))
    network[2].weight = network[0].weight
    with pytest.warns(UserWarning, match="shares its weight") as warnings:
        layers = find_layers(network)
    assert [layer.name for layer in layers] == ["1", "3"]
    first, second = (str(warning.message) for warning in warnings)
    assert first.startswith("Layer '0' shares its weight with '2'")
    assert second.startswith("Layer '2' shares its weight with '0'")


def test_weights_tied_to_an_embedding_are_left_alone():
    network = nn.ModuleDict({"tokens": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    network["head"].weight = network["tokens"].weight
    with (
        pytest.warns(UserWarning, match="shares its weight") as warnings,
        pytest.raises(ValueError, match=r"(?s)No layer.*head \(Linear\): shares its"),
    ):
        find_layers(network)
    tokens, head = (str(warning.message) for warning in warnings)
    assert tokens.startswith("Layer 'tokens' shares its weight with 'head'")
    assert head.startswith("Layer 'head' shares its weight with 'tokens'")
    assert "both the embedding of tokens and the weight of an output layer" in tokens
    network["head"].weight = nn.Parameter(network["head"].weight.detach().clone())
    assert [layer.name for layer in find_layers(network)] == ["tokens", "head"]


def test_embeddings_that_do_more_than_look_up_are_left_alone_with_the_reason():
    network = nn.ModuleDict(
        {
            "plain": nn.Embedding(9, 4, padding_idx=0),
            "one column": nn.Embedding(9, 1),
            "renormalised": nn.Embedding(9, 4, max_norm=1.0),
            "sparse": nn.Embedding(9, 4, sparse=True, scale_grad_by_freq=True),
            "bag": nn.EmbeddingBag(9, 4),
        }
    )
    layers, _ = survey_layers(network)
    assert [layer.name for layer in layers] == ["plain"]
    assert reasons(network) == {
        "one column": "no rank makes it smaller",
        "renormalised": "an embedding with max_norm",
        "sparse": "an embedding with sparse, scale_grad_by_freq",
        "bag": "no decomposition supports EmbeddingBag",
    }
    small = truncate_network(
        network, factorize_network(network, layers), layers, {"plain": 2}
    )
    assert reasons(small, choose_pruning)["plain"] == "factored already"


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))


def test_transposed_linear_layers_take_part():
    network = nn.Sequential(Conv1D(6, 4), Conv1D(1, 6))
    (layer,) = find_layers(network)
    assert (layer.name, layer.weight_shape, layer.max_rank) == ("0", (4, 6), 2)
    assert [layer.name for layer in find_layers(network, choose_linear)] == ["0"]
    assert reasons(network) == {"1": "no rank makes it smaller"}
    other = nn.Sequential(Conv1D(6, 4))
    other[0].nf = 4  # not what Hugging Face's is
    assert reasons(other) == {"0": "no decomposition supports Conv1D"}
