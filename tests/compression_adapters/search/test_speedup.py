"""A speed in place of gamma, by a clock that disagrees with the table of times."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from compression_adapters import (
    CompressionOptions,
    MeanSEM,
    compress,
    compress_to,
    find_layers,
)
from compression_adapters.network.latency import LatencyComparison
from compression_adapters.search import result as results
from compression_adapters.search import speedup
from tests.helpers.networks import pool, small_network
from tests.helpers.times import MACHINE, TICK, by_weights, table_of

FAST = {"delta": 0.2, "epsilon": 0.1, "level": "pairwise", "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:Very small noise values")
REST = 60 * TICK


def table():
    return table_of(find_layers(small_network()), by_weights, rest=REST)


@pytest.fixture
def slower(monkeypatch):
    """A machine on which compressed networks take so much longer than predicted."""

    def measuring(factor):
        def measured(before, after, inputs, *, seconds, predicted, table):
            counts = [
                sum(p.numel() for p in network.parameters() if p.ndim > 1)
                for network in (before, after)
            ]
            times = [REST + TICK * count for count in counts]
            times[1] *= factor
            ratio = times[1] / times[0]
            return LatencyComparison(
                *times, ratio, ratio, ratio, 11, MACHINE, predicted, table.machine
            )

        monkeypatch.setattr(results, "compare_latency", measured)

    return measuring


def warned(**options):
    """A result, and what its user was warned of; Ax warns of its own as well."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compress(small_network(), pool(), **options)
    return found, "\n".join(str(w.message) for w in caught if w.category is UserWarning)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_measured_time_meets_the_target_whatever_was_predicted(slower, factor):
    slower(factor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that prediction and measurement differ
        found = compress(small_network(), pool(), speedup=2.0, size=table(), **FAST)
    assert found.latency.ratio <= 0.5
    assert found.latency.speedup >= 2.0
    counted = sum(p.numel() for p in found.network.parameters() if p.ndim > 1)
    assert found.latency.after == pytest.approx(factor * (REST + TICK * counted))
    assert found.problem.measure.size_of == "network"
    assert found.latency.predicted == pytest.approx(found.size_ratio)
    assert found.certificate.holds == bool(
        found.gammas.set_index("gamma").loc[found.problem.gamma, "certified"]
    )


def test_a_prediction_that_is_off_is_said(slower):
    slower(1.3)
    _, said = warned(speedup=2.0, size=table(), **FAST)
    assert "Predicted " in said
    assert "measured " in said
    assert "most likely" in said


def test_what_cannot_be_reached_gives_the_fastest_and_says_so(slower):
    slower(1.0)
    found, said = warned(speedup=20.0, size=table(), **FAST)
    assert "A speedup of 20 cannot be reached" in said
    assert set(found.ranks.values()) == {1}
    assert not found.certificate.holds
    assert "speedup of 20 cannot be reached" in found.certificate.reason
    smallest = REST + TICK * (50 + 35)
    assert found.latency.ratio == pytest.approx(smallest / (REST + TICK * 750))


@pytest.mark.parametrize("factor", [1.0, 1.3])
@pytest.mark.filterwarnings("ignore:Predicted")
def test_without_a_search_the_path_is_followed_until_a_network_is_fast(slower, factor):
    slower(factor)
    found = compress(
        small_network(), pool(), speedup=2.5, size=table(), search=False, **FAST
    )
    assert found.latency.ratio <= 0.4
    assert found.stop_reason == "no_search"
    assert "path" in found.certificate.reason


def test_a_gamma_a_size_and_a_loss_count_the_time_too(slower):
    slower(1.0)
    options = {**FAST, "size": table(), "size_of": "network"}
    found = compress(small_network(), pool(), ratio="40%", search=False, **options)
    assert found.size_ratio <= 0.4
    assert found.latency.ratio == pytest.approx(found.size_ratio, rel=1e-6)
    found = compress(small_network(), pool(), gamma=0.5, **options)
    row = found.trials.iloc[0]
    ranks = {name: row[f"rank_{name}"] for name in ("0", "2")}
    assert row["compression_ratio"] == pytest.approx(found.problem.ratio(ranks))
    assert row["objective"] == pytest.approx(
        0.5 * row["loss"] + row["compression_ratio"]
    )
    assert {"size", "size_before"} <= set(found.layers)
    assert found.layers["size_before"].sum() == pytest.approx(750 * TICK)
    assert compress(small_network(), pool(), gamma=0.5, **FAST).latency is None


def test_the_certificate_knows_the_times_and_their_constant(slower):
    from compression_adapters.search.known_part import known_part

    slower(1.0)
    found = compress(
        small_network(),
        pool(),
        gamma=0.5,
        size=table(),
        size_of="network",
        **FAST,
    )
    known = known_part(found.problem)
    from compression_adapters.rank_space.parameters import bin_edges

    on = known.on(tuple(bin_edges(found.problem.parameters).items()))
    assert known.constant == pytest.approx(60 / 810)
    assert on(found.parameterization) == pytest.approx(found.size_ratio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedup": 1.0}, "speedup must be a number above 1"),
        ({"speedup": "2x"}, "speedup must be a number above 1"),
        ({"speedup": 2.0, "gamma": 1.0}, "exactly one of gamma, ratio"),
        ({"speedup": 2.0, "size": "bytes"}, "speedup is about time"),
        ({"speedup": 2.0, "db": "a.db"}, "continued from a database might ask for an"),
        ({"speedup": 2.0, "objective": "rate"}, "needs objective='ratio'"),
    ],
)
def test_an_invalid_speedup_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), **options)


def test_a_speedup_is_not_a_target_of_compress_to():
    with pytest.raises(ValueError, match="a target of its own"):
        compress_to(small_network(), pool(), speedup=2.0)


def test_a_table_of_another_machine_is_named_where_the_prediction_fails(slower):
    slower(1.5)
    elsewhere = replace(table(), machine=replace(MACHINE, device="a phone"))
    _, said = warned(ratio="50%", size=elsewhere, search=False, **FAST)
    assert "device a phone there and" in said


@pytest.mark.parametrize(
    ("shares", "kept", "said"),
    [([0.48], 0, ""), ([0.52, 0.47], 1, ""), ([0.55, 0.52], 1, "takes 52.0% of")],
)
def test_what_is_too_slow_at_the_last_measurement_gives_way(
    slower, monkeypatch, shares, kept, said
):
    slower(1.0)
    one = compress(
        small_network(), pool(), speedup=2.0, size=table(), search=False, **FAST
    )
    results_ = [replace(one, seed=i, loss=MeanSEM(1.0 + i, 0.1)) for i in (0, 1)]
    measured = iter(shares)

    def timed(result):
        return replace(result, latency=replace(one.latency, ratio=next(measured)))

    monkeypatch.setattr(speedup, "timed", timed)
    options = CompressionOptions.of(speedup=2.0, refit=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = speedup._kept(results_, options, 0.5)
    assert found.seed == kept  # in the order of their losses
    assert said in "\n".join(str(w.message) for w in caught)
    assert bool(caught) == bool(said)


def deep_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = (16, 24, 24, 24, 24, 8)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(
            *itertools.chain.from_iterable((layer, nn.Tanh()) for layer in layers)
        )


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 3),
        ({"coordinates": 2}, 2),
        ({"tie": lambda name: name}, 5),
        ({"encoding": "path"}, 5),
    ],
)
def test_layers_share_few_coordinates_unless_it_is_said_how(slower, options, number):
    slower(1.0)
    network = deep_network()
    times = table_of(find_layers(network), by_weights, rest=REST)
    inputs = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    found = compress(
        network, inputs, speedup=1.5, size=times, max_trials=14, **FAST, **options
    )
    assert len(found.problem.parameters) == number
    assert found.latency.ratio <= 1 / 1.5
