"""The price path against an exhaustive minimum for every price."""

import itertools
import math

import pytest
import torch
from torch import nn

from compression_adapters import compression_problem
from compression_adapters.evaluation.loss_curves import loss_curves
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.network.counts import compression_ratio
from compression_adapters.rank_space.parameters import parameterization_from_ranks
from compression_adapters.rank_space.scales import DENSE

POOL = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6)
        )


def problem(**options):
    return compression_problem(network(), POOL, gamma=1.0, **options)


def best_by_hand(problem, price):
    """The least error plus price times size, over all combinations of ranks."""
    errors = loss_curves(problem)
    scales = {p.layers[0]: p.scales[0] for p in problem.parameters}
    choices = [[*scales[layer.name].ranks, DENSE] for layer in problem.layers]
    names = [layer.name for layer in problem.layers]

    def value(combination):
        ranks = dict(zip(names, combination, strict=True))
        error = sum(0.0 if r == DENSE else errors[n][r] for n, r in ranks.items())
        return error + price * compression_ratio(problem.layers, ranks)

    return min(value(c) for c in itertools.product(*choices)), value


@pytest.mark.parametrize("calibrate", [0, 60])
def test_every_price_gives_the_least_of_all_networks(calibrate):
    p = problem(calibrate=calibrate)
    path = price_path(p)
    for price in (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 1e3):
        least, value = best_by_hand(p, price)
        found = value(tuple(path.networks[path.at_price(price)].values()))
        assert found == pytest.approx(least, rel=1e-9)


def test_the_path_goes_from_the_smallest_network_to_the_dense_one():
    path = price_path(problem())
    assert set(path.networks[0].values()) == {1}
    assert set(path.networks[-1].values()) == {DENSE}
    table = path.table
    assert table["compression_ratio"].is_monotonic_increasing
    assert table["predicted_loss"].is_monotonic_decreasing
    assert table["price"].is_monotonic_decreasing
    assert table["price"].iloc[0] == math.inf
    assert table["predicted_loss"].iloc[-1] == 0.0
    assert len(table) == len(path) == len(path.networks)


def test_a_ratio_gives_the_largest_network_within_it_and_a_network_can_be_built():
    path = price_path(problem())
    position = path.at_ratio(0.5)
    sizes = path.table["compression_ratio"]
    assert sizes.iloc[position] <= 0.5 < sizes.iloc[position + 1]
    assert path.at_ratio(float(sizes.iloc[3])) == 3
    built = path.network(position)
    kept = sum(p.numel() for p in built.parameters() if p.ndim == 2)
    all_weights = sum(layer.num_weights for layer in path.problem.layers)
    assert kept / all_weights == pytest.approx(float(sizes.iloc[position]))
    assert path.problem.ranks(path.point(position)) == path.networks[position]


def test_a_ratio_below_the_smallest_network_is_refused_with_its_size():
    path = price_path(problem(min_rank=3))
    with pytest.raises(ValueError, match=r"smallest network .* has [\d.]+%"):
        path.at_ratio(0.01)


def test_tied_layers_move_together():
    p = problem(tie=lambda name: "all")
    for ranks in price_path(p).networks:
        assert p.ranks(price_path(p).problem and {"all": _unit(p, ranks)}) == ranks


def _unit(problem, ranks):
    from compression_adapters.rank_space.parameters import parameterization_from_ranks

    return parameterization_from_ranks(ranks, problem.parameters)["all"]


def test_sizes_are_spread_geometrically_without_the_dense_network():
    path = price_path(problem())
    positions = path.spread(4, smallest=0.2)
    sizes = path.table["compression_ratio"].iloc[positions]
    assert len(positions) == 4
    assert len(path) - 1 not in positions
    ratios = (sizes.to_numpy()[1:] / sizes.to_numpy()[:-1]).tolist()
    assert all(1.2 < ratio < 2.0 for ratio in ratios)


def test_a_layer_of_zeros_has_no_error_and_is_cut_first():
    silent = network()
    with torch.no_grad():
        silent[2].weight.zero_()
    path = price_path(compression_problem(silent, POOL, gamma=1.0, include=["0", "2"]))
    assert all(ranks["2"] == 1 for ranks in path.networks)


def predicted(path, ranks):
    """The sum of the layers' losses, by hand."""
    return sum(
        0.0 if rank == DENSE else path.losses[name][rank]
        for name, rank in ranks.items()
    )


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("start", ["smallest", "middle", "largest"])
def test_a_network_is_moved_to_a_ratio_and_no_step_that_helps_is_left(ratio, start):
    p = problem()
    path = price_path(p)
    place = {"smallest": 0, "middle": len(path) // 2, "largest": len(path) - 1}[start]
    ranks = path.moved(path.networks[place], ratio)
    assert p.ratio(ranks) <= ratio * (1.0 + 1e-9)
    scales = {q.layers[0]: q.scales[0] for q in p.parameters}
    for name, scale in scales.items():
        for other in (*scale.ranks, DENSE):
            changed = {**ranks, name: other}
            fits = p.ratio(changed) <= ratio
            assert (
                not fits or predicted(path, changed) >= predicted(path, ranks) - 1e-12
            )
    if p.ratio(path.networks[place]) <= ratio:
        assert predicted(path, ranks) <= predicted(path, path.networks[place])
    if ratio == 1.0:
        assert predicted(path, ranks) == 0.0


def test_what_fits_nowhere_becomes_the_smallest_network():
    path = price_path(problem())
    assert path.moved(path.networks[-1], 1e-6) == path.networks[0]


def test_tied_layers_are_moved_together():
    p = problem(tie=lambda name: "all")
    path = price_path(p)
    ranks = path.moved(path.networks[-1], 0.4)
    assert p.ratio(ranks) <= 0.4
    assert p.ranks(parameterization_from_ranks(ranks, p.parameters)) == ranks
