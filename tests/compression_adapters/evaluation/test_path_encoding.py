"""The encoding `path`: tied layers run along their own price path."""

import itertools
import math

import pytest
import torch
from torch import nn

from compression_adapters import compress, compression_problem, rank_parameters
from compression_adapters.evaluation import path_encoding
from compression_adapters.evaluation.price_path import Option, price_path
from compression_adapters.rank_space.parameters import (
    bin_edges,
    layer_ranks,
    parameterization_from_ranks,
)
from compression_adapters.rank_space.scales import DENSE
from compression_adapters.search.settings import problem_settings

POOL = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 14)),
            *(nn.Tanh(), nn.Linear(14, 6), nn.Tanh(), nn.Linear(6, 9)),
        )


def problem(**options):
    options = {"encoding": "path"} | options
    return compression_problem(network(), POOL, gamma=1.0, **options)


def in_pairs(name):
    return "first" if name in ("0", "2") else "second"


def networks_of(p):
    """The network of every bin of a problem with one coordinate."""
    (parameter,) = p.parameters
    return parameter.ranks_of_bins(bin_edges(p.parameters)[parameter.name])


@pytest.mark.parametrize("options", [{}, {"round_to": 2}, {"min_rank": 3}])
@pytest.mark.parametrize("at_max", ["dense", "factor"])
def test_one_coordinate_for_all_layers_is_the_price_path(options, at_max):
    whole = price_path(problem(encoding="log", at_max=at_max, **options))
    tied = problem(tie=lambda name: "all", at_max=at_max, **options)
    assert networks_of(tied) == list(whole.networks)


@pytest.mark.parametrize("tie", [None, in_pairs, lambda name: "all"])
def test_the_price_path_is_the_same_however_many_layers_share_a_coordinate(tie):
    whole, tied = price_path(problem(encoding="log")), price_path(problem(tie=tie))
    assert tied.networks == whole.networks
    sizes = [path.table["compression_ratio"].tolist() for path in (whole, tied)]
    assert sizes[0] == pytest.approx(sizes[1])


def test_a_bin_is_half_as_wide_as_the_size_grows_and_half_as_the_loss_falls():
    p = problem(tie=lambda name: "all")
    edges = bin_edges(p.parameters)["all"]
    sizes = [p.ratio(ranks) for ranks in networks_of(p)]
    losses = price_path(p).table["predicted_loss"].tolist()
    assert losses[-1] == 0.0  # dense, whose bin is as wide as the others on average
    losses[-1] = losses[-2]
    grown, fallen = (
        [abs(math.log(b / a)) for a, b in itertools.pairwise(values)]
        for values in (sizes, losses)
    )
    steps = len(grown)
    widths = [
        (grow * steps / (steps + 1) / sum(grown) + fall / sum(fallen)) / 2.0
        for grow, fall in zip(grown, fallen, strict=True)
    ]
    widths.append(1.0 / (steps + 1) / 2.0)
    assert [b - a for a, b in itertools.pairwise(edges)] == pytest.approx(widths)


def test_networks_whose_time_no_rank_shortens_still_have_room_for_their_losses():
    """By size alone the first of them, which lose nearly all, would share a corner."""
    sizes, losses = [1.0, 1.001, 1.002, 1.4, 2.0], [60.0, 8.0, 2.0, 0.5, 0.0]
    states = [(Option(s, x, {}),) for s, x in zip(sizes, losses, strict=True)]
    edges = path_encoding._edges(states)
    assert edges[0] == 0.0
    assert edges[-1] == 1.0
    assert edges[2] > 0.3
    without = path_encoding._edges([(Option(s, 0.0, {}),) for s in sizes])
    assert without[2] < 0.01


def test_of_a_layer_alone_only_the_corners_of_its_hull_have_bins():
    whole, p = price_path(problem(encoding="log")), problem()
    for parameter in p.parameters:
        (layer,), (scale,) = parameter.layers, parameter.scales
        walked = list(dict.fromkeys(ranks[layer] for ranks in whole.networks))
        assert [*scale.ranks, DENSE] == walked


def test_a_point_and_the_ranks_of_its_bin_convert_both_ways():
    p = problem(tie=in_pairs)
    for first, second in itertools.product([0.0, 0.3, 0.71, 1.0], repeat=2):
        ranks = layer_ranks({"first": first, "second": second}, p.parameters)
        point = parameterization_from_ranks(ranks, p.parameters)
        assert layer_ranks(point, p.parameters) == ranks


def test_a_rank_that_loses_nothing_still_leaves_the_dense_layer():
    zero = nn.Linear(12, 10)
    nn.init.zeros_(zero.weight)
    p = compression_problem(
        nn.Sequential(zero, nn.Tanh(), nn.Linear(10, 8)),
        POOL,
        gamma=1.0,
        encoding="path",
        tie=lambda name: "all",
    )
    assert networks_of(p)[-1] == {"0": DENSE, "2": DENSE}


@pytest.mark.parametrize("number", [1, 2, 3, 10])
def test_coordinates_group_the_layers_in_their_order_by_size(number):
    p = problem(encoding="log", coordinates=number)
    groups = [parameter.layers for parameter in p.parameters]
    assert len(groups) <= number
    assert [name for group in groups for name in group] == ["0", "2", "4", "6"]
    weights = {layer.name: layer.num_weights for layer in p.layers}
    shares = [sum(weights[n] for n in group) for group in groups]
    # No group exceeds its share by more than the layer at each of its ends.
    assert max(shares) <= sum(weights.values()) / number + max(weights.values())
    whole = price_path(problem(encoding="log"))
    assert price_path(p).networks == whole.networks


@pytest.mark.parametrize(
    "options",
    [
        *({"coordinates": 0}, {"coordinates": 2.0}),
        *(
            {"coordinates": 2, "tie": in_pairs},
            {"coordinates": 2, "encoding": "energy"},
        ),
    ],
)
def test_coordinates_that_are_none_or_grouped_twice_are_refused(options):
    with pytest.raises(ValueError, match="coordinates"):
        problem(**({"encoding": "log"} | options))


def test_a_search_begins_on_the_path_and_ends_with_a_certificate():
    found = compress(
        network(),
        POOL,
        gamma=1.0,
        encoding="path",
        tie=in_pairs,
        delta=0.2,
        max_trials=25,
        seed=0,
        progress=False,
    )
    assert found.certificate.holds
    assert set(found.ranks) == {"0", "2", "4", "6"}
    assert "no network that 2 coordinates of 4 layers give is better" in str(found)


def test_the_coordinates_are_the_same_when_they_are_built_again():
    one, other = (problem_settings(problem(tie=in_pairs)) for _ in range(2))
    assert one == other
    log = problem_settings(problem(encoding="log", tie=in_pairs))
    assert one["encoding of the ranks"] != log["encoding of the ranks"]


def test_what_cannot_be_encoded_along_the_path_is_refused():
    with pytest.raises(ValueError, match="use one of them"):
        problem(tie="threshold")
    layers = problem(encoding="log").layers
    with pytest.raises(ValueError, match="compression_problem"):
        rank_parameters(layers, encoding="path")
