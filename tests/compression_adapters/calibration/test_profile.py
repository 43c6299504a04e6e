"""What a profile counts, against counts by hand."""

import pytest
import torch
from torch import nn

from compression_adapters import (
    DECOMPOSITIONS,
    choose_pruning,
    compression_problem,
    factorize_network,
    find_layers,
    profile,
    truncate_network,
)
from compression_adapters.network.macs import count_macs


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.shared = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.norm = nn.Conv1d(6, 6, 1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.shared(self.shared(x))
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x.transpose(1, 2))


def row(table, name):
    return table.set_index("layer").loc[name]


def test_multiply_adds_are_those_counted_by_hand():
    found = profile(Network().train(), torch.zeros(3, 4, 8, 10))
    places = 4 * 5
    conv = row(found.layers, "conv")
    assert conv["max_rank"] == 7
    assert conv["weights"] == 6 * 4 * 9
    assert conv["macs"] == 6 * 4 * 9 * places
    # Rank 1: 4 x 3 weights at 4 x 10 places, then 6 x 3 weights at 4 x 5 places.
    assert conv["rank_min"] == 1
    assert conv["macs_min"] == 4 * 3 * 4 * 10 + 6 * 3 * places
    shared = row(found.layers, "shared")
    assert shared["macs"] == 2 * 36 * places
    assert shared["weights"] == 36
    assert row(found.layers, "unused")[["macs", "macs_max"]].isna().all()
    projections = (3 + 1) * 36 * places
    attention = 2 * 6 * places**2
    total = conv["macs"] + shared["macs"] + 36 * places + projections + attention
    assert found.num_macs == total


def test_printing_shows_layers_totals_and_reasons():
    text = str(profile(Network(), torch.zeros(1, 4, 8, 8)))
    for expected in (
        *("6 x 4 x 3 x 3", "low_rank_conv", "not called", "3 layers in play, 288 of"),
        *("multiply-adds per sample", "no decomposition supports Conv1d"),
        *("attention.out_proj", "whole network at min, centre, max"),
    ):
        assert expected in text


def test_without_an_example_there_are_no_multiply_adds():
    found = profile(Network())
    assert found.num_macs is None
    assert not [name for name in found.layers if name.startswith("macs")]
    assert "multiply-adds" not in str(found)


@pytest.mark.parametrize("name", ["svd", "low_rank_conv", "tucker", "cp", "pruning"])
def test_counts_of_a_structure_are_those_of_the_network_that_has_it(name):
    decomposition = DECOMPOSITIONS[name]

    def choose(path, module):
        return decomposition if decomposition.supports(module) else None

    network = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    example = torch.zeros(1, 4, 6, 6)
    found = profile(network, example, choose=choose)
    layers = find_layers(network, choose)
    ranks = dict(zip(found.layers["layer"], found.layers["rank_centre"], strict=True))
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, ranks)
    rest = found.num_macs - found.layers["macs"].sum()
    assert count_macs(small, example) == rest + found.layers["macs_centre"].sum()


def test_a_profile_leaves_the_network_alone_and_decomposes_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("decomposed")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    network = Network()
    network.conv.eval()
    before = [module.training for module in network.modules()]
    with torch.inference_mode():
        profile(nn.DataParallel(network), torch.zeros(1, 4, 8, 8))
    assert [module.training for module in network.modules()] == before
    assert not network.conv._forward_pre_hooks
    assert network.conv.weight.grad is None


def test_half_precision_and_integer_inputs_are_counted():
    network = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8)).to(torch.bfloat16)
    found = profile(network, torch.zeros(2, 5, dtype=torch.int64))
    assert row(found.layers, "1")["macs"] == 5 * 64
    # A lookup multiplies nothing; its factors do, by the second one.
    tokens = row(found.layers, "0")
    assert tokens["decomposition"] == "embedding"
    assert (tokens["macs"], tokens["macs_min"]) == (0, 5 * 8 * tokens["rank_min"])


def test_nothing_to_compress_is_said_and_not_an_error():
    text = str(profile(nn.Sequential(nn.Linear(8, 1)), torch.zeros(1, 8)))
    assert text.startswith("No layer to compress.")
    assert "no rank makes it smaller" in text


def test_pruned_layers_multiply_their_zeros():
    network = nn.Sequential(nn.Linear(30, 20))
    found = row(profile(network, torch.zeros(1, 30), choose=choose_pruning).layers, "0")
    assert found["macs_min"] == found["macs"] == 600
    assert found["weights_min"] == 1


def test_a_network_that_is_not_batch_first_is_refused():
    with pytest.raises(ValueError, match="one output per sample"):
        profile(nn.Sequential(nn.Linear(8, 8), nn.Flatten(0)), torch.zeros(3, 8))


def test_errors_are_the_tails_of_the_factors_that_a_search_would_have():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10)).eval()
    inputs = torch.randn(400, 30) * 0.8 ** torch.arange(30.0)
    problem = compression_problem(network, inputs, gamma=1.0, calibrate=80)
    known = problem.calibration
    found = profile(network, calibrate=known.inputs, seed=known.seed).layers
    alone = profile(network, errors=True).layers
    for layer in problem.layers:
        values = layer.decomposition.singular_values(problem.factors[layer.name])
        squares = values.double().square()
        for point in ("min", "centre", "max"):
            rank = row(found, layer.name)[f"rank_{point}"]
            error = row(found, layer.name)[f"predicted_error_{point}"]
            assert error == pytest.approx(float(squares[rank:].sum() / squares.sum()))
            values = torch.linalg.svdvals(
                network.get_submodule(layer.name).weight.detach().double()
            )
            error = row(alone, layer.name)[f"predicted_error_{point}"]
            expected = float(values[rank:].square().sum() / values.square().sum())
            assert error == pytest.approx(expected, rel=1e-4, abs=1e-6)
    text = str(profile(network, errors=True, encoding="energy"))
    assert "predicted_error_centre" in text
    assert "%" in text
    assert not [c for c in profile(network).layers if c.startswith("predicted")]


@pytest.mark.parametrize("calibrate", [500, torch.zeros(0, 30)])
def test_calibration_inputs_that_are_no_inputs_are_refused(calibrate):
    network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
    with pytest.raises(TypeError, match="calibrate must be a tensor of inputs"):
        profile(network, calibrate=calibrate)
