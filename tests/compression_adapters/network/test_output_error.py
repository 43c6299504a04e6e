"""Errors of outputs, against the outputs themselves and what factors predict."""

import math

import pytest
import torch
from torch import nn

from compression_adapters import compression_problem, find_layers, layer_losses
from compression_adapters.network.output_error import output_errors
from compression_adapters.network.truncation import factorize_network, truncate_network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Linear(8, 8, bias=False)
        self.unused = nn.Linear(8, 8)

    def forward(self, x):
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.again(torch.tanh(self.again(x)))


def images(n=130, seed=0):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def networks():
    torch.manual_seed(0)
    network = Net().double().eval()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    ranks = {"conv": 3, "again": 2, "unused": 2}
    return network, truncate_network(network, factors, layers, ranks), list(ranks)


def test_errors_are_those_of_the_outputs_about_the_mean_where_there_is_a_bias(networks):
    network, small, names = networks
    inputs = images().double()
    found = output_errors(network, small, names, inputs)
    with torch.no_grad():
        y, cut = (n.conv(inputs).transpose(0, 1).flatten(1) for n in (network, small))
        centred = y - y.mean(1, keepdim=True)
        expected = (y - cut).square().sum() / centred.square().sum()
        assert found["conv"] == pytest.approx(float(expected), rel=1e-9)
        # Both calls, on the inputs of the original network, and without a bias.
        x = torch.relu(network.conv(inputs)).mean((2, 3))
        x = torch.cat([x, torch.tanh(network.again(x))])
        y, cut = network.again(x), small.again(x)
        expected = (y - cut).square().sum() / y.square().sum()
        assert found["again"] == pytest.approx(float(expected), rel=1e-9)
    assert math.isnan(found["unused"])


def test_networks_inputs_and_hooks_are_left_alone_and_copied_hooks_not_called(networks):
    network, small, names = networks
    network.train()
    calls = []
    small.conv.register_forward_hook(lambda *_: calls.append(1))
    network.conv.register_forward_hook(lambda *_: 1 / 0 if not calls else None)
    calls.append("original")
    inputs = images().double()
    kept = inputs.clone()
    output_errors(network, small, names, inputs)
    assert calls == ["original"]
    assert network.training
    assert torch.equal(inputs, kept)
    assert len(network.conv._forward_hooks) == 1


def test_what_factors_predict_is_what_other_inputs_show():
    torch.manual_seed(0)
    mix = torch.randn(20, 20) @ torch.diag(0.7 ** torch.arange(20.0))

    def inputs(seed, n=2000):
        rng = torch.Generator().manual_seed(seed)
        return 1.0 + torch.randn(n, 20, generator=rng) @ mix.T

    network = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    problem = compression_problem(network, inputs(0, 5000), gamma=1.0, calibrate=1000)
    point = {"layer_0": 0.7, "layer_2": 0.7}
    small, ranks = problem.compress(point), problem.ranks(point)
    given = (problem.network, small, problem.layers, problem.factors, ranks)
    table = layer_losses(*given, inputs(1)).set_index("layer")
    for name in ("0", "2"):
        predicted, measured = table.loc[name, ["predicted_error", "output_error"]]
        # 1,000 and 2,000 rows: both are within a few per cent of what they estimate.
        assert measured == pytest.approx(predicted, rel=0.25)
        assert 0 < measured < 0.5


def test_dense_layers_lose_nothing_and_half_precision_is_summed_in_double():
    network = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)).to(torch.bfloat16)
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    ranks = {"0": 5, "1": "dense"}
    small = truncate_network(network, factors, layers, ranks)
    inputs = torch.randn(60, 20).to(torch.bfloat16)
    table = layer_losses(network, small, layers, factors, ranks, inputs)
    assert table["output_error"][1] == table["predicted_error"][1] == 0.0
    assert 0 < table["output_error"][0] < 1
