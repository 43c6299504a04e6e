"""The refit of last factors, against least squares by NumPy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compression_adapters import refit_in_sequence
from compression_adapters.calibration import refit as refit_file
from compression_adapters.decompositions import DECOMPOSITIONS
from compression_adapters.decompositions.svd import LowRankLinear
from compression_adapters.layers.selection import choose_low_rank, choose_pruning
from compression_adapters.layers.survey import find_layers
from compression_adapters.network.truncation import factorize_network, truncate_network


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def cut(network, rank=2, choose=choose_low_rank):
    """Cut all layers by their weights alone; return the network and their names."""
    layers = find_layers(network, choose)
    factors = factorize_network(network, layers)
    ranks = {layer.name: min(rank, layer.max_rank) for layer in layers}
    return truncate_network(network, factors, layers, ranks).eval(), list(ranks)


def error(one, two, inputs):
    with torch.no_grad():
        return (one(inputs) - two(inputs)).double().square().mean().item()


def by_numpy(z, y, weight, bias, ridge):
    """min |y - z H^T - b|^2 / n + rho |H - H_0|^2, as one system of plain lstsq."""
    n, p = z.shape
    centred = z - z.mean(0) if bias else z
    rho = ridge * np.trace(centred.T @ centred) / n / p
    rows = np.sqrt(n * rho) * np.eye(p)
    ones = np.ones((n, 1)) if bias else np.zeros((n, 0))
    left = np.block([[z, ones], [rows, np.zeros((p, ones.shape[1]))]])
    right = np.concatenate([y, rows @ weight.T])
    solved = np.linalg.lstsq(left, right, rcond=None)[0]
    return solved[:p].T, solved[p] if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [1e-12, 1e-3, 0.5])
def test_a_linear_layer_gets_the_least_squares_solution(bias, ridge):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 9, bias=bias)).double()
    small, names = cut(network, 3)
    inputs = 1.0 + torch.randn(200, 12, generator=rng(), dtype=torch.float64)
    new = refit_in_sequence(network, small, names, inputs, ridge=ridge)
    with torch.no_grad():
        z = F.linear(inputs, small[0].right).numpy(force=True)
        y = network(inputs).numpy(force=True)
    weight, shift = by_numpy(z, y, small[0].left.numpy(force=True), bias, ridge)
    np.testing.assert_allclose(
        new[0].left.numpy(force=True), weight, rtol=1e-6, atol=1e-9
    )
    if bias:
        np.testing.assert_allclose(
            new[0].bias.numpy(force=True), shift, rtol=1e-6, atol=1e-9
        )
    assert torch.equal(new[0].right, small[0].right)


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 6, (3, 5), dilation=(1, 2), padding="same", bias=False),
    nn.Conv2d(4, 8, 3, groups=2, padding=(0, 1)),
    nn.Conv2d(6, 8, 1),
]


@pytest.mark.parametrize("name", ["low_rank_conv", "tucker", "cp"])
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_a_convolution_gets_the_least_squares_solution_by_groups(name, conv):
    decomposition = DECOMPOSITIONS[name]
    if not decomposition.supports(conv):
        pytest.skip("not supported")
    conv = copy.deepcopy(conv).double()
    network = nn.Sequential(conv)
    small, names = cut(network, 2, lambda path, module: decomposition if path else None)
    inputs = torch.randn(60, conv.in_channels, 9, 8, generator=rng()).double() + 0.5
    new = refit_in_sequence(network, small, names, inputs, ridge=1e-12)
    last, renewed = list(small[0].children())[-1], list(new[0].children())[-1]
    with torch.no_grad():
        seen = nn.Sequential(*list(small[0].children())[:-1])(inputs)
        y = network(inputs)
    groups, kernel = last.groups, last.weight.shape[2:]
    # Patches by shifts, without unfold.
    mode = "constant" if last.padding_mode == "zeros" else last.padding_mode
    seen = F.pad(seen, last._reversed_padding_repeated_twice, mode=mode)
    height, width = y.shape[2:]
    patches = torch.stack(
        [
            seen[
                :,
                :,
                r * last.dilation[0] :: last.stride[0],
                c * last.dilation[1] :: last.stride[1],
            ][:, :, :height, :width]
            for r in range(kernel[0])
            for c in range(kernel[1])
        ],
        2,
    )  # n c k h w
    for g in range(groups):
        own = (
            patches.chunk(groups, 1)[g].permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2)
        )
        target = y.chunk(groups, 1)[g].permute(0, 2, 3, 1).flatten(0, 2)
        weight = last.weight.chunk(groups)[g].flatten(1).numpy(force=True)
        expected, shift = by_numpy(
            own.numpy(force=True),
            target.numpy(force=True),
            weight,
            last.bias is not None,
            1e-12,
        )
        found = renewed.weight.chunk(groups)[g].flatten(1).numpy(force=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
        if shift is not None:
            found = renewed.bias.chunk(groups)[g].numpy(force=True)
            np.testing.assert_allclose(found, shift, rtol=1e-5, atol=1e-8)


def deep(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 36, 20),
        nn.ReLU(),
        nn.Linear(20, 20),
    ).eval()


def test_a_network_loses_less_on_the_calibration_inputs_and_on_others():
    network = deep()
    small, names = cut(network, 4)
    inputs = torch.randn(300, 3, 6, 6, generator=rng())
    others = torch.randn(300, 3, 6, 6, generator=rng(1))
    new = refit_in_sequence(network, small, names, inputs)
    assert error(new, network, inputs) < 0.8 * error(small, network, inputs)
    assert error(new, network, others) < 0.8 * error(small, network, others)


def test_each_layer_is_fitted_to_what_the_layers_before_it_have_become():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    small, names = cut(network, 2)
    inputs = torch.randn(100, 8, generator=rng()).double()
    # The order is that of the forward pass, not that of the names.
    new = refit_in_sequence(network, small, names[::-1], inputs, ridge=1e-12)
    with torch.no_grad():
        z = F.linear(new[:2](inputs), small[2].right).numpy(force=True)
        y = network(inputs).numpy(force=True)
    weight, _ = by_numpy(z, y, small[2].left.numpy(force=True), True, 1e-12)
    np.testing.assert_allclose(
        new[2].left.numpy(force=True), weight, rtol=1e-6, atol=1e-9
    )


class Shared(nn.Module):
    """One layer called twice, and two that see the same input."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(10, 10), nn.Linear(10, 10)
        self.again, self.unused = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x):
        x = torch.sigmoid(self.query(x)) * self.key(x)
        return self.again(torch.tanh(self.again(x)))


def test_all_calls_of_a_layer_count_and_layers_with_one_input_share_a_pass():
    torch.manual_seed(0)
    network = Shared().double().eval()
    small, names = cut(network, 3)
    passes = []
    small.query.register_forward_hook(lambda *_: passes.append(1))
    inputs = torch.randn(40, 10, generator=rng()).double()
    new = refit_in_sequence(network, small, names, inputs, ridge=1e-12)
    # To find the order, for query and key together, and for the layer called twice.
    assert len(passes) == 3
    assert error(new, network, inputs) < error(small, network, inputs)
    assert torch.equal(new.unused.left, small.unused.left)
    with torch.no_grad():
        first = torch.sigmoid(new.query(inputs)) * new.key(inputs)
        # What the layer was called with before it was refitted.
        second = torch.tanh(small.again(first))
        dense = torch.sigmoid(network.query(inputs)) * network.key(inputs)
        y = torch.cat(
            [network.again(dense), network.again(torch.tanh(network.again(dense)))]
        )
        z = F.linear(torch.cat([first, second]), small.again.right)
    weight, _ = by_numpy(
        z.numpy(force=True),
        y.numpy(force=True),
        small.again.left.numpy(force=True),
        True,
        1e-12,
    )
    np.testing.assert_allclose(
        new.again.left.numpy(force=True), weight, rtol=1e-6, atol=1e-9
    )


class AddsInPlace(nn.Module):
    """Two layers with the same tensor as input, which changes between them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x):
        x += self.one(x)
        return self.two(x)


def test_layers_with_an_input_that_changes_in_between_do_not_share_a_pass():
    torch.manual_seed(0)
    network = AddsInPlace().double().eval()
    small, names = cut(network, 3)
    inputs = torch.randn(100, 10, generator=rng()).double()
    new = refit_in_sequence(network, small, names, inputs, ridge=1e-12)
    with torch.no_grad():
        z = F.linear(inputs + new.one(inputs), small.two.right).numpy(force=True)
        y = network(inputs.clone()).numpy(force=True)
    weight, _ = by_numpy(z, y, small.two.left.numpy(force=True), True, 1e-12)
    np.testing.assert_allclose(
        new.two.left.numpy(force=True), weight, rtol=1e-6, atol=1e-9
    )


def test_where_nothing_is_lost_nothing_changes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).double()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    full = truncate_network(network, factors, layers, {"0": 8, "2": 8})
    dense = truncate_network(network, factors, layers, {"0": "dense", "2": "dense"})
    inputs = torch.randn(50, 8, generator=rng()).double()
    for small in (full, dense):
        new = refit_in_sequence(network, small, ["0", "2"], inputs)
        for one, two in zip(new.parameters(), small.parameters(), strict=True):
            assert one is not two
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_pruned_layers_and_those_that_change_their_output_are_left_alone():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 6)

        def forward(self, x):
            return 2 * self.last(x)

    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    small, names = cut(network[:1], 10, choose_pruning)
    small.append(Scaled())
    inputs = torch.randn(50, 6, generator=rng())
    new = refit_in_sequence(network, small, [*names, "1"], inputs)
    for one, two in zip(new.parameters(), small.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_same_seed_gives_the_same_network_and_rows_are_chosen_alike(monkeypatch):
    monkeypatch.setattr(refit_file, "_FEWEST_ROWS", 100)
    monkeypatch.setattr(refit_file, "MOST_BYTES", 1)
    monkeypatch.setattr(refit_file, "_PATCHES", 1000)
    network = deep()
    small, names = cut(network, 4)
    inputs = torch.randn(130, 3, 6, 6, generator=rng())
    one, two, other = (
        refit_in_sequence(network, small, names, inputs, seed=seed)
        for seed in (0, 0, 1)
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[0].horizontal.weight, other[0].horizontal.weight)
    # Rows of both networks that do not belong together would make it worse.
    assert error(one, network, inputs) < error(small, network, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_fitted_in_single(dtype):
    network = deep().to(dtype)
    small, names = cut(network, 4)
    inputs = torch.randn(200, 3, 6, 6, generator=rng()).to(dtype)
    new = refit_in_sequence(network, small, names, inputs)
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert error(new, network, inputs) < error(small, network, inputs)


def test_networks_hooks_modes_and_inputs_are_left_as_they_were():
    network = deep().train()
    small, names = cut(network, 4)
    small.train()
    before = [p.clone() for p in (*network.parameters(), *small.parameters())]
    inputs = torch.randn(20, 3, 6, 6, generator=rng())
    kept = inputs.clone()
    with torch.inference_mode():
        new = refit_in_sequence(network, small, names, inputs)
    assert network.training
    assert small.training
    assert torch.equal(inputs, kept)
    assert not any(m._forward_hooks for n in (network, small, new) for m in n.modules())
    after = (*network.parameters(), *small.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    (new(inputs).sum() * 1.0).backward()


def test_no_finite_solution_leaves_the_layer_as_it_was():
    network = nn.Sequential(nn.Linear(4, 4))
    right = torch.full((1, 4), 1e38)
    small = nn.Sequential(LowRankLinear(torch.ones(4, 1), right, torch.zeros(4)))
    new = refit_in_sequence(network, small, ["0"], 1e3 * torch.ones(20, 4))
    assert torch.equal(new[0].left, small[0].left)
