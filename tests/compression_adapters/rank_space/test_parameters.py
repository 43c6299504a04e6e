"""Parameters, their names, and ranks both ways."""

import keyword
from itertools import pairwise

import pytest

from compression_adapters.decompositions import TruncatedSVD
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.parameters import (
    RankParameter,
    bin_edges,
    layer_ranks,
    parameterization_from_ranks,
    rank_parameters,
)
from compression_adapters.rank_space.scales import ENCODINGS, RankScale


def layers(*names, max_rank=12):
    return [LayerSpec(n, TruncatedSVD(), (30, 20), max_rank, 600) for n in names]


def names_of(*layer_names):
    return [parameter.name for parameter in rank_parameters(layers(*layer_names))]


def test_parameter_names_are_identifiers():
    assert names_of("layer4.0.conv1", "0", "1.fc", "lambda", "with-dash") == [
        "layer4__0__conv1",
        "layer_0",
        "layer_1__fc",
        "layer_lambda",
        "with_dash",
    ]


@pytest.mark.parametrize(
    "layer_names",
    [
        ("a.b", "a__b"),
        ("a__b", "a.b"),
        ("a.b", "a__b", "a__b_2"),
        ("a__b_2", "a.b", "a__b"),
        ("0", "layer_0"),
        ("a-b", "a_b", "a b"),
        ("é", "è"),
    ],
)
def test_different_layers_never_share_a_parameter_name(layer_names):
    names = names_of(*layer_names)
    assert len(set(names)) == len(layer_names)
    assert all(n.isidentifier() and n.isascii() for n in names)
    assert not any(keyword.iskeyword(n) for n in names)
    assert names == names_of(*layer_names)


def test_a_suffixed_name_gives_way_to_the_layer_that_came_first():
    assert names_of("a.b", "a__b") == ["a__b", "a__b_2"]


def test_tied_layers_share_a_coordinate_each_through_its_own_scale():
    members = layers("block.0") + layers("block.1", max_rank=5) + layers("head")
    space = rank_parameters(members, tie=lambda name: name.split(".")[0])
    assert [p.name for p in space] == ["block", "head"]
    assert space[0].layers == ("block.0", "block.1")
    ranks = layer_ranks({"block": 0.8, "head": 0.0}, space)
    assert ranks["head"] == 1
    assert ranks["block.0"] == space[0].scales[0].rank_from_unit(0.8)
    assert ranks["block.1"] == space[0].scales[1].rank_from_unit(0.8)
    assert ranks["block.0"] != ranks["block.1"]


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e != "energy"])
def test_ranks_and_points_convert_both_ways(encoding):
    space = rank_parameters(layers("a", "b"), encoding=encoding)
    for rank in [*range(1, 13), "dense"]:
        wanted = {"a": rank, "b": 3}
        assert layer_ranks(parameterization_from_ranks(wanted, space), space) == wanted


def test_ranks_of_tied_layers_convert_back_where_a_coordinate_exists():
    space = rank_parameters(
        layers("a") + layers("b", max_rank=5), tie=lambda name: "all"
    )
    for u in (0.0, 0.21, 0.5, 0.77, 1.0):
        ranks = layer_ranks({"all": u}, space)
        assert layer_ranks(parameterization_from_ranks(ranks, space), space) == ranks


def test_ranks_of_tied_layers_without_a_common_coordinate_are_refused():
    space = rank_parameters(layers("a", "b"), tie=lambda name: "all")
    with pytest.raises(
        ValueError, match=r"'all': no coordinate gives.*'a': 1, 'b': 12"
    ):
        parameterization_from_ranks({"a": 1, "b": 12}, space)


def test_missing_and_unknown_names_are_listed():
    space = rank_parameters(layers("a", "b"))
    with pytest.raises(ValueError, match=r"parameter.*missing: b; unknown: c"):
        layer_ranks({"a": 0.5, "c": 0.5}, space)
    with pytest.raises(ValueError, match=r"layer.*missing: a, b; unknown: none"):
        parameterization_from_ranks({}, space)


def test_a_coordinate_that_cannot_be_used_is_named():
    space = rank_parameters(layers("a"))
    with pytest.raises(ValueError, match=r"Parameter 'a':.*got 1\.5"):
        layer_ranks({"a": 1.5}, space)


def test_a_rank_that_cannot_be_used_is_named():
    space = rank_parameters(layers("a"))
    with pytest.raises(ValueError, match="Layer 'a': rank must be 1 to 12 or 'dense'"):
        parameterization_from_ranks({"a": 13}, space)


def test_energy_without_singular_values_names_the_layer():
    with pytest.raises(ValueError, match="Layer 'a': encoding 'energy' needs"):
        rank_parameters(layers("a"), encoding="energy")


@pytest.mark.parametrize("encoding", ["linear", "log"])
def test_between_two_edges_tied_layers_keep_their_ranks(encoding):
    members = [*layers("a", max_rank=5), *layers("b", max_rank=12)]
    tied = rank_parameters(members, tie=lambda name: "all", encoding=encoding)
    edges = bin_edges(tied)["all"]
    assert edges[0] == 0.0
    assert edges[-1] == 1.0
    bins = list(pairwise(edges))
    assert all(low < high for low, high in bins)
    found = []
    for low, high in bins:
        inside = [low + share * (high - low) for share in (0.01, 0.5, 0.99)]
        ranks = [layer_ranks({"all": u}, tied) for u in inside]
        assert ranks[0] == ranks[1] == ranks[2]
        centre = parameterization_from_ranks(ranks[0], tied)["all"]
        assert centre == pytest.approx(inside[1], abs=1e-12)
        found.append(tuple(ranks[0].values()))
    assert len(set(found)) == len(found)


def test_edges_that_differ_by_rounding_are_one_edge():
    a, b = (0.0, 0.3, 1.0), (0.0, 0.3 + 1e-16, 1.0)
    scales = tuple(RankScale(1, 1, "dense", edges) for edges in (a, b))
    nudged = RankScale(1, 1, "dense", (0.0, 0.3 + 1e-14, 1.0))
    parameter = RankParameter("all", ("a", "b", "c"), (*scales, nudged))
    assert len(bin_edges([parameter])["all"]) == 3
