"""Which ranks are worth a bin under a size, and which layers are left out."""

import pytest
import torch
from torch import nn

from compression_adapters import compression_problem, price_path
from compression_adapters.layers.survey import find_layers
from compression_adapters.rank_space.scales import RankScale
from tests.helpers.networks import pool, small_network
from tests.helpers.times import TICK, by_weights, table_of


def stepped(layer, rank):
    """Blocks of eight, as hardware has them; rank 4 is slower than rank 8."""
    if rank == "dense":
        return 6 * TICK
    if rank == 4:
        return 3 * TICK
    return TICK * (1 + -(-rank // 8))


def test_ranks_that_are_no_faster_than_a_larger_one_have_no_bin():
    network = small_network()
    table = table_of(find_layers(network), stepped)
    problem = compression_problem(network, pool(), gamma=1.0, size=table)
    first, last = (p.scales[0] for p in problem.parameters)
    # 1, 2 and 8 take as long, 4 longer; 9 and 12 both one more: 12 loses less.
    assert list(first.ranks) == [8, 12]
    # Measured at 1, 2 and 4 only: 3 lies between 2 and 4.
    assert list(last.ranks) == [2, 3, 4]
    assert first.rank_from_unit(0.0) == 8
    assert first.rank_from_unit(1.0) == "dense"
    assert problem.layers[0].max_rank == 12
    for scale in (first, last):
        for rank in (*scale.ranks, "dense"):
            assert scale.rank_from_unit(scale.unit_from_rank(rank)) == rank
    with pytest.raises(ValueError, match="without those that are never the best"):
        first.unit_from_rank(9)


def test_a_difference_within_the_precision_of_the_table_is_none():
    network = small_network()

    def nearly_flat(layer, rank):
        return TICK if rank == "dense" else TICK * (0.5 + 0.0001 * rank)

    problem = compression_problem(
        network, pool(), gamma=1.0, size=table_of(find_layers(network), nearly_flat)
    )
    assert [list(p.scales[0].ranks) for p in problem.parameters] == [[12], [4]]


def test_a_layer_that_no_rank_makes_faster_is_left_out_and_named():
    network = small_network()

    def slow_at_the_end(layer, rank):
        return by_weights(layer, rank) if layer.name == "0" else TICK

    table = table_of(find_layers(network), slow_at_the_end, rest=5 * TICK)
    with pytest.warns(UserWarning, match="seconds per batch, so that they are .*: 2"):
        problem = compression_problem(
            network, pool(), gamma=1.0, size=table, size_of="network"
        )
    assert [layer.name for layer in problem.layers] == ["0"]
    assert problem.measure.rest == pytest.approx(6 * TICK)
    assert problem.measure.before == pytest.approx(606 * TICK)
    path = price_path(problem)
    assert path.table["compression_ratio"].iloc[-1] == pytest.approx(1.0)
    assert path.table["compression_ratio"].iloc[0] == pytest.approx(56 / 606)


def test_where_no_layer_can_be_made_faster_there_is_no_search():
    network = small_network()
    table = table_of(find_layers(network), lambda layer, rank: TICK)
    with pytest.raises(ValueError, match="No rank makes any layer smaller in seconds"):
        compression_problem(network, pool(), gamma=1.0, size=table)


def test_multiples_are_kept_among_the_worthwhile_ranks():
    network = small_network()
    table = table_of(find_layers(network), by_weights)
    problem = compression_problem(
        network, pool(), gamma=1.0, size=table, round_to=3, include="0"
    )
    assert list(problem.parameters[0].scales[0].ranks) == [3, 6, 9]
    whole = compression_problem(
        network, pool(), gamma=1.0, size=table, at_max="factor", include="0"
    )
    assert whole.parameters[0].scales[0].rank_from_unit(1.0) == 12


def test_weights_skip_nothing_so_that_searches_of_yesterday_are_the_same():
    problem = compression_problem(small_network(), pool(), gamma=1.0)
    assert all(s.options is None for p in problem.parameters for s in p.scales)
    assert problem.measure.is_default


def test_depthwise_and_strided_layers_gain_multiply_adds_or_are_left_out():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    ).eval()
    images = torch.randn(60, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    problem = compression_problem(network, images, gamma=1.0, size="multiply-adds")
    # As `skip_no_gain` finds it: a rank of 8 or more takes more than the layer.
    assert problem.layers[0].max_rank == 7


@pytest.mark.parametrize("options", [(), (2, 1), (1, 13), (3, 3)])
def test_options_of_a_scale_are_ranks_that_rise(options):
    with pytest.raises(ValueError, match="options must be ranks among 1 to 12"):
        RankScale(1, 12, "dense", (0.0, 0.5, 1.0), 1, options)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"size": "latencies"}, "Did you mean 'latency'"),
        ({"size": "none.json"}, "none.json: there is no such file"),
        ({"size_of": "layer"}, "size_of must be 'layers', those in play"),
        ({"latency_batch": 0}, "latency_batch must be a whole number"),
        ({"latency_seconds": 0.0}, "latency_seconds must be positive"),
    ],
)
def test_an_invalid_size_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        compression_problem(small_network(), pool(), gamma=1.0, **keywords)
