"""Bins of [0, 1]: every rank reachable, both ways exact."""

import math

import numpy as np
import pytest
import torch

from compression_adapters.decompositions import TruncatedSVD
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.scales import (
    ENCODINGS,
    MINIMAL_WIDTH_SHARE,
    RankScale,
    rank_scale,
)

FC3 = [((1000, 784), 439), ((1000, 1000), 500), ((10, 1000), 9)]


def layer(max_rank, shape=(1000, 784)):
    return LayerSpec("fc", TruncatedSVD(), shape, max_rank, math.prod(shape))


def spectrum(size, decay=0.97):
    return decay ** torch.arange(size, dtype=torch.float64)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("at_max", ["dense", "factor"])
@pytest.mark.parametrize(("shape", "max_rank"), FC3)
@pytest.mark.parametrize("min_rank", [1, 10])
def test_every_outcome_is_reachable_and_exact(
    encoding, at_max, shape, max_rank, min_rank
):
    scale = rank_scale(
        layer(max_rank, shape),
        encoding=encoding,
        at_max=at_max,
        min_rank=min_rank,
        singular_values=spectrum(min(shape), decay=0.9),
    )
    outcomes = [*range(min(min_rank, max_rank), max_rank + 1)]
    outcomes += ["dense"] if at_max == "dense" else []
    assert len(scale.edges) == len(outcomes) + 1
    for rank, low, high in zip(
        outcomes, scale.edges[:-1], scale.edges[1:], strict=True
    ):
        assert scale.rank_from_unit(scale.unit_from_rank(rank)) == rank
        assert scale.rank_from_unit(low) == rank
        assert scale.rank_from_unit(math.nextafter(high, 0.0)) == rank
    assert scale.rank_from_unit(0.0) == outcomes[0]
    assert scale.rank_from_unit(1.0) == outcomes[-1]


def test_linear_bins_have_equal_widths():
    scale = rank_scale(layer(9), encoding="linear")
    np.testing.assert_allclose(np.diff(scale.edges), 0.1, rtol=1e-12)


def test_log_bins_follow_their_formula():
    scale = rank_scale(layer(9), encoding="log", min_rank=2)
    expected = np.log(np.arange(2, 12) / 2) / math.log(11 / 2)
    np.testing.assert_allclose(scale.edges, expected, rtol=1e-12)
    # Dense is as wide as rank 10 would be, not the single point 1.0.
    assert scale.edges[-1] - scale.edges[-2] == pytest.approx(
        math.log(11 / 10) / math.log(11 / 2)
    )


def test_energy_coordinate_is_the_share_of_squared_singular_values():
    s = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
    scale = rank_scale(layer(3), encoding="energy", singular_values=s)
    # Energies 4/8, 5/8, 6/8, and dense the rest; mixed with equal widths.
    share = np.array([4, 1, 1, 2]) / 8
    expected = (1 - MINIMAL_WIDTH_SHARE) * share + MINIMAL_WIDTH_SHARE / 4
    np.testing.assert_allclose(np.diff(scale.edges), expected, rtol=1e-12)


def test_energy_folds_low_ranks_into_the_first_bin_and_high_ones_into_the_last():
    s = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
    scale = rank_scale(
        layer(3), encoding="energy", at_max="factor", min_rank=2, singular_values=s
    )
    expected = (1 - MINIMAL_WIDTH_SHARE) * np.array([5, 3]) / 8
    np.testing.assert_allclose(
        np.diff(scale.edges), expected + MINIMAL_WIDTH_SHARE / 2, rtol=1e-12
    )


def test_energy_keeps_ranks_of_zero_singular_values_reachable():
    s = torch.zeros(20)
    s[0] = 1e-30
    scale = rank_scale(layer(9), encoding="energy", singular_values=s)
    assert [scale.rank_from_unit(scale.unit_from_rank(r)) for r in range(1, 10)] == [
        *range(1, 10)
    ]


def test_a_floor_above_the_maximal_rank_is_clipped_to_it():
    scale = rank_scale(layer(9), min_rank=10)
    assert scale.min_rank == 9
    assert [scale.rank_from_unit(u) for u in (0.0, 1.0)] == [9, "dense"]
    alone = rank_scale(layer(9), min_rank=10, at_max="factor")
    assert alone.edges == (0.0, 1.0)


@pytest.mark.parametrize("u", [-1e-9, 1.0 + 1e-9, math.nan, math.inf])
def test_a_coordinate_outside_the_unit_interval_is_refused(u):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\]; got {u}"):
        rank_scale(layer(9)).rank_from_unit(u)


@pytest.mark.parametrize("rank", [0, 10, "thick", True, 2.0])
def test_a_rank_that_is_not_in_the_scale_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be 2 to 9; got {rank!r}"):
        rank_scale(layer(9), min_rank=2, at_max="factor").unit_from_rank(rank)


def test_dense_is_refused_where_the_scale_ends_with_factors():
    with pytest.raises(ValueError, match="rank must be 1 to 9; got 'dense'"):
        rank_scale(layer(9), at_max="factor").unit_from_rank("dense")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "cubic"}, "log, energy, linear, path; got 'cubic'"),
        ({"at_max": "full"}, "'dense' or 'factor'; got 'full'"),
        ({"min_rank": 0}, "min_rank must be at least 1; got 0"),
        ({"encoding": "energy"}, "Layer 'fc'.*needs the layer's singular values"),
        (
            {"encoding": "energy", "singular_values": torch.ones(3)},
            "Layer 'fc'.*at least 9 finite",
        ),
        (
            {"encoding": "energy", "singular_values": torch.full((9,), math.nan)},
            "at least 9 finite",
        ),
        (
            {"encoding": "energy", "singular_values": torch.zeros(9)},
            "not defined for a weight of zeros",
        ),
    ],
)
def test_options_that_make_no_scale_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rank_scale(layer(9), **options)


@pytest.mark.parametrize(
    "edges", [(0.0, 1.0), (0.0, 0.5, 0.5, 1.0), (0.1, 0.5, 0.7, 1.0), (0, 0.5, 0.7, 2)]
)
def test_a_scale_with_wrong_edges_is_refused(edges):
    with pytest.raises(ValueError, match="edges must increase strictly"):
        RankScale(1, 2, "dense", edges)


def test_a_scale_without_ranks_is_refused():
    with pytest.raises(ValueError, match="1 <= min_rank <= max_rank; got 3 and 2"):
        RankScale(3, 2, "dense", (0.0, 1.0))


@pytest.mark.parametrize("encoding", ["linear", "log"])
@pytest.mark.parametrize("at_max", ["dense", "factor"])
@pytest.mark.parametrize(
    ("min_rank", "max_rank", "round_to", "expected"),
    [
        (1, 30, 8, [8, 16, 24]),
        (9, 32, 8, [16, 24, 32]),
        (1, 7, 8, [7]),
        (10, 15, 8, [15]),
        (1, 5, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_ranks_are_multiples_and_their_bins_go_both_ways(
    encoding, at_max, min_rank, max_rank, round_to, expected
):
    layer = LayerSpec("fc", None, (100, 100), max_rank, 10_000)
    scale = rank_scale(
        layer, encoding=encoding, at_max=at_max, min_rank=min_rank, round_to=round_to
    )
    outcomes = [*expected, *(["dense"] if at_max == "dense" else [])]
    assert [scale.rank_from_unit(u) for u in np.linspace(0, 1, 2001)][::2000] == [
        outcomes[0],
        outcomes[-1],
    ]
    for outcome in outcomes:
        assert scale.rank_from_unit(scale.unit_from_rank(outcome)) == outcome
    found = {scale.rank_from_unit(u) for u in np.linspace(0, 1, 2001)}
    assert found == set(outcomes)


def test_a_rounded_bin_takes_over_the_ranks_below_it():
    layer = LayerSpec("fc", None, (100, 100), 20, 10_000)
    fine = rank_scale(layer)
    rounded = rank_scale(layer, round_to=8)
    assert rounded.bin_of_rank(8) == (fine.bin_of_rank(1)[0], fine.bin_of_rank(8)[1])
    # The last one also has what is above it.
    assert rounded.bin_of_rank(16) == (fine.bin_of_rank(9)[0], fine.bin_of_rank(20)[1])
    assert rounded.bin_of_rank("dense") == fine.bin_of_rank("dense")


def test_rounding_refuses_what_it_cannot_do():
    layer = LayerSpec("fc", None, (100, 100), 20, 10_000)
    with pytest.raises(ValueError, match="round_to must be at least 1; got 0"):
        rank_scale(layer, round_to=0)
    with pytest.raises(ValueError, match="a multiple of 8 or 'dense'; got 9"):
        rank_scale(layer, round_to=8).unit_from_rank(9)
