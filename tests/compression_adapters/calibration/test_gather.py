"""Moments of what layers see, against sums by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compression_adapters.calibration import gather
from compression_adapters.calibration.gather import gather_moments


def inputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_moments_of_a_linear_layer_are_those_of_its_inputs_over_all_batches():
    network = nn.Sequential(nn.Tanh(), nn.Linear(5, 3))
    x = inputs(120, 5)
    moments = gather_moments(network, {"1": "inputs"}, x)["1"]
    rows = torch.tanh(x).double()
    torch.testing.assert_close(
        moments.second[0], rows.T @ rows / 120, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(moments.mean[0], rows.mean(0), atol=1e-6, rtol=0)
    assert moments.count == 120
    assert moments.second.dtype == torch.float64


def test_moments_of_outputs_leave_the_bias_out():
    layer = nn.Linear(5, 3)
    x = inputs(60, 4, 5)
    moments = gather_moments(nn.Sequential(layer), {"0": "outputs"}, x)["0"]
    rows = (x @ layer.weight.detach().T).flatten(0, 1).double()
    torch.testing.assert_close(
        moments.second[0], rows.T @ rows / 240, atol=1e-6, rtol=0
    )
    assert moments.count == 240


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1},
        {"stride": (2, 1), "padding": (0, 2)},
        {"dilation": 2, "padding": "same"},
        {"groups": 2, "padding": 1, "padding_mode": "circular"},
        {"groups": 4},
    ],
)
def test_moments_of_patches_give_the_second_moment_of_every_output(geometry):
    # E[(w x)^2] = w E[x x^T] w^T, whatever the geometry of the patches is.
    layer = nn.Conv2d(4, 8, 3, bias=False, **geometry)
    x = inputs(20, 4, 7, 8)
    moments = gather_moments(nn.Sequential(layer), {"0": "inputs"}, x)["0"]
    weight = layer.weight.detach().double().unflatten(0, (layer.groups, -1)).flatten(2)
    second = (weight @ moments.second @ weight.mT).diagonal(dim1=1, dim2=2).flatten()
    outputs = layer(x).detach().double()
    torch.testing.assert_close(
        second, outputs.square().mean((0, 2, 3)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        moments.output_mean(weight).flatten(),
        outputs.mean((0, 2, 3)),
        rtol=1e-4,
        atol=1e-6,
    )


def test_products_in_blocks_are_the_whole_product(monkeypatch):
    rows = inputs(2, 30, 11)
    whole = gather.gram(rows)
    monkeypatch.setattr(gather, "_BLOCK", 4)
    torch.testing.assert_close(gather.gram(rows), whole)


class Direct(nn.Module):
    """Calls `forward` of one layer, another by keyword and twice, a third never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.b(input=self.b(input=self.a.forward(x))) + F.linear(
            x, self.c.weight
        )


def test_every_call_counts_and_a_layer_that_is_not_called_has_no_moments():
    network, x = Direct(), inputs(10, 4)
    moments = gather_moments(network, dict.fromkeys("abc", "inputs"), x)
    assert {name: m.count for name, m in moments.items()} == {"a": 10, "b": 20}
    assert "forward" not in vars(network.a)
    assert not network.a._forward_hooks


def test_fused_attention_is_seen_as_well():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    moments = gather_moments(layer, {"linear1": "inputs"}, inputs(6, 5, 8))
    assert moments["linear1"].count == 30


def test_only_a_part_of_many_rows_is_used_and_spread_over_the_batches(monkeypatch):
    monkeypatch.setattr(gather, "_FEWEST_ROWS", 200)
    network, x = nn.Sequential(nn.Linear(5, 3)), inputs(100, 40, 5)
    moments = gather_moments(network, {"0": "inputs"}, x)["0"]
    assert moments.count == 200
    rows = x.flatten(0, 1).double()
    # The error of a mean of 200 of 4,000 products with deviations of about 2.
    torch.testing.assert_close(
        moments.second[0], rows.T @ rows / 4000, atol=4 * 2 / 200**0.5, rtol=0
    )
    again = gather_moments(network, {"0": "inputs"}, x)["0"]
    assert torch.equal(again.second, moments.second)
    other = gather_moments(network, {"0": "inputs"}, x, seed=1)["0"]
    assert not torch.equal(other.second, moments.second)


def test_what_is_not_finite_is_refused_by_the_name_of_the_layer():
    class Overflow(nn.Module):
        def forward(self, x):
            return x / 0.0

    network = nn.Sequential(Overflow(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="Layer '1' saw or gave NaN or infinite"):
        gather_moments(network, {"1": "inputs"}, inputs(4, 4))


def test_half_precision_is_summed_in_double():
    layer = nn.Linear(4, 3).half()
    x = inputs(20, 4).half()
    moments = gather_moments(nn.Sequential(layer), {"0": "inputs"}, x)["0"]
    rows = x.double()
    torch.testing.assert_close(
        moments.second[0], rows.T @ rows / 20, rtol=1e-5, atol=1e-6
    )


def test_modes_are_restored_and_inputs_left_alone():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2.0)

    network = nn.Sequential(InPlace(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    x = inputs(10, 4)
    kept = x.clone()
    moments = gather_moments(network, {"2": "inputs"}, x)["2"]
    assert network[1].training
    assert torch.equal(x, kept)
    torch.testing.assert_close(moments.mean[0], 2 * x.double().mean(0))
