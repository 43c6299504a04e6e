"""Costs counted by hand, losses against the weights themselves."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compression_adapters import (
    choose_pruning,
    compress,
    compression_problem,
    factorize_network,
    find_layers,
    truncate_network,
)
from compression_adapters.network import costs
from compression_adapters.network.costs import (
    NetworkCost,
    compare_costs,
    layer_losses,
    measure_cost,
)
from compression_adapters.network.macs import drop_ranks_without_gain
from tests.helpers.networks import pool, small_network


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2),
            nn.Flatten(),
            nn.Linear(8 * 16, 10),
            nn.Linear(10, 10, bias=False),
        ).eval()


IMAGES = torch.randn(60, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def test_costs_are_those_counted_by_hand():
    network = convolutional()
    cost = measure_cost(network, IMAGES[:2], batch_sizes=(1, 3), repeats=2)
    weights = 8 * 4 * 9 + 8 * 16 * 10 + 100
    assert cost.weights == weights
    assert cost.macs == 8 * 4 * 9 * 16 + 8 * 16 * 10 + 100
    assert cost.bytes_dense == cost.bytes_sparse == 4 * (weights + 8 + 10)
    assert set(cost.latency) == {1, 3}
    assert all(seconds > 0 for seconds in cost.latency.values())


def test_pruned_layers_are_counted_by_what_is_left_and_stored_sparse():
    network = convolutional()
    layers = find_layers(network, choose_pruning, include="2")
    factors = factorize_network(network, layers)
    small = truncate_network(network, factors, layers, {"2": 100})
    before = measure_cost(network, IMAGES, batch_sizes=())
    after = measure_cost(small, IMAGES, batch_sizes=(), pruned=["2"])
    assert before.weights - after.weights == 1280 - 128
    assert after.macs == before.macs
    assert after.bytes_dense == before.bytes_dense
    # 128 values of four bytes, and a bitmap of 1280 / 8 bytes.
    assert before.bytes_dense - after.bytes_sparse == 4 * 1280 - (4 * 128 + 160)


def test_shared_weights_are_stored_once():
    layer = nn.Linear(8, 8, bias=False)
    cost = measure_cost(nn.Sequential(layer, layer), torch.zeros(1, 8), batch_sizes=())
    assert (cost.weights, cost.bytes_dense, cost.macs) == (64, 256, 128)


def test_latency_is_the_median_of_the_passes_after_the_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    # The multiply-adds are counted in the first pass; the second is the warm-up.
    seconds = iter((0.0, 64.0, 1.0, 8.0, 2.0))

    class Slow(nn.Module):
        def forward(self, x):
            now[0] += next(seconds)
            return x

    cost = measure_cost(Slow(), torch.zeros(1, 2), batch_sizes=(4,), repeats=3)
    assert cost.latency == {4: 2.0}
    assert next(seconds, None) is None


def test_a_network_that_is_no_faster_is_warned_of():
    before = NetworkCost(100, 100, 400, 400, {1: 0.010, 32: 0.2})
    faster = NetworkCost(50, 50, 200, 200, {1: 0.005, 32: 0.1})
    table = compare_costs(before, faster)
    assert table["ratio"].tolist() == [0.5] * 6
    assert table["before"].tolist()[-2:] == [10.0, 200.0]
    slower = NetworkCost(50, 50, 200, 200, {1: 0.011, 32: 0.1})
    with pytest.warns(UserWarning, match="not faster at batch size 1: .*round_to=8"):
        compare_costs(before, slower)


def test_nothing_to_measure_is_refused():
    with pytest.raises(
        ValueError, match=r"at least one input and one rep.*got 0 and 9"
    ):
        measure_cost(nn.Linear(2, 2), torch.zeros(0, 2))


def test_energy_and_error_of_a_matrix_add_up_to_one():
    network = convolutional().double()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    ranks = {"0": 3, "2": 4, "3": "dense"}
    small = truncate_network(network, factors, layers, ranks)
    table = layer_losses(network, small, layers, factors, ranks).set_index("layer")
    assert table.loc["3"].tolist() == [1.0, 0.0, 0.0]
    for name in ("0", "2"):
        energy, predicted, error = table.loc[name]
        assert energy + predicted == pytest.approx(1.0)
        assert 0 < energy < 1
        assert energy + error**2 == pytest.approx(1.0)
    values = torch.linalg.svdvals(network[2].weight.detach())
    energy = float(values[:4].square().sum() / values.square().sum())
    assert table.loc["2", "energy_kept"] == pytest.approx(energy)


def test_ranks_that_need_as_many_multiply_adds_as_dense_are_dropped():
    network = convolutional()
    layers = find_layers(network)
    dropped = drop_ranks_without_gain(network, layers, IMAGES[:1])
    by_name = {layer.name: layer for layer in dropped}
    # 4 x 3 weights at 4 x 9 places, 8 x 3 at 4 x 4; dense 8 x 4 x 9 at 4 x 4.
    assert by_name["0"].max_rank == (288 * 16 - 1) // (12 * 36 + 24 * 16)
    assert by_name["2"].max_rank == 9
    # A square layer at its maximal rank has as many weights as before.
    assert by_name["3"].max_rank == 4
    problem = compression_problem(network, IMAGES, gamma=1.0, skip_no_gain=True)
    assert [layer.max_rank for layer in problem.layers] == [5, 9, 4]
    pruned = find_layers(network, choose_pruning)
    assert drop_ranks_without_gain(network, pruned, IMAGES[:1]) == pruned


def test_a_network_without_any_gain_is_refused():
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"No layer gains from any rank.*Layers: 0"):
        drop_ranks_without_gain(network, find_layers(network), torch.zeros(1, 2))


@pytest.mark.filterwarnings("ignore:The compressed network is not faster")
@pytest.mark.filterwarnings("ignore:Very small noise values")
def test_a_result_reports_what_was_kept_and_what_it_costs():
    result = compress(
        *(small_network(), pool()),
        **{"gamma": 0.5, "delta": 0.5, "epsilon": 0.1, "round_to": 2},
        level="pairwise",
    )
    ranks = [rank for rank in result.ranks.values() if rank != "dense"]
    assert all(rank % 2 == 0 for rank in ranks)
    columns = {"energy_kept", "predicted_error", "local_error", "output_error"}
    assert columns <= set(result.layers)
    table = result.measure(batch_sizes=(2,), repeats=1)
    assert table["quantity"].tolist()[-1] == "milliseconds, batch 2"
    assert table["after"][0] <= table["before"][0]
    again = result.problem.network_loss(result.network, seed=5)
    assert again != result.loss
    spread = 6 * (again.sem**2 + result.loss.sem**2) ** 0.5
    assert abs(again.mean - result.loss.mean) < spread
