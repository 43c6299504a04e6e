"""Tables of times by a clock that counts, their storage, and the interval of pairs."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from compression_adapters import factorize_network, find_layers
from compression_adapters.network import latency
from compression_adapters.network.latency import (
    LatencyComparison,
    LatencyTable,
    Machine,
    batch_of,
    compare_latency,
    measure_latency,
    ranks_to_measure,
)
from tests.helpers.networks import pool, small_network
from tests.helpers.times import MACHINE, TICK, by_weights, clock_of_weights, table_of


def test_every_time_is_that_of_the_real_module_at_its_rank(monkeypatch):
    network = small_network()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    before = {n: p.clone() for n, p in network.state_dict().items()}
    with clock_of_weights(monkeypatch):
        table = measure_latency(network, layers, factors, pool(50), progress=False)
    for layer in layers:
        times, bias = table.layers[layer.name], layer.weight_shape[0]
        assert times.ranks == (*ranks_to_measure(layer.max_rank), "dense")
        expected = [by_weights(layer, rank) + TICK * bias for rank in times.ranks]
        assert times.seconds == pytest.approx(expected, rel=1e-9)
        assert times.half_widths == pytest.approx([0.0] * len(expected), abs=1e-12)
    assert table.whole == pytest.approx(TICK * (20 * 30 + 30 + 30 * 5 + 5))
    assert table.rest == pytest.approx(0.0, abs=1e-12)
    assert (table.rounds, table.known) == (3, 1.0)
    assert table.layers["0"].input_shapes == ((50, 20),)
    assert table.machine.batch == 50
    after = network.state_dict()
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks


def test_a_layer_that_is_called_twice_counts_twice(monkeypatch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(20, 20), nn.Linear(20, 2)

        def forward(self, x):
            return self.last(self.first(self.first(x)))

    network = Twice().eval()
    layers = find_layers(network, include="first")
    factors = factorize_network(network, layers)
    with clock_of_weights(monkeypatch):
        table = measure_latency(network, layers, factors, pool(7), progress=False)
    assert table.layers["first"].seconds[-1] == pytest.approx(TICK * 2 * 420)
    assert table.layers["first"].input_shapes == ((7, 20), (7, 20))
    assert table.rest == pytest.approx(TICK * 42)


def test_it_ends_when_the_budget_does_and_says_how_much_is_known(monkeypatch):
    network = small_network()
    layers = find_layers(network)
    factors = factorize_network(network, layers)
    with clock_of_weights(monkeypatch):
        table = measure_latency(
            network, layers, factors, pool(50), seconds=1e-9, progress=False
        )
    assert table.rounds == 1
    # Most times are not known from one round; the dense ones are timed with each.
    assert 0.0 < table.known < 0.5


def test_a_time_is_known_when_the_interval_of_its_median_is_narrow():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 0.1, size=(2_000, 101))
    widths = [latency._half_width(row.tolist()) for row in draws]
    # 95 % of the medians lie within the half-width, up to the asymptotic formula.
    inside = np.abs(np.median(draws, axis=1) - 1.0) <= widths
    assert 0.92 <= inside.mean() <= 0.975
    assert latency._half_width([1.0]) == math.inf


@pytest.mark.parametrize("number", [11, 30, 101])
def test_the_interval_of_a_median_covers_it(number):
    rng = np.random.default_rng(1)
    draws = np.sort(rng.exponential(size=(4_000, number)), axis=1)
    found = [latency._median_interval(row.tolist()) for row in draws]
    inside = np.mean([low <= math.log(2.0) <= high for low, high in found])
    # At least 95 %, less three binomial errors; an order statistic more would not do.
    assert inside >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4_000)
    assert inside <= 0.999


def test_ranks_that_matter_are_multiples_of_eight_and_what_follows_them():
    ranks = ranks_to_measure(768)
    assert ranks[:9] == (1, 2, 4, 8, 9, 16, 17, 24, 25)
    assert ranks[-1] == 768
    multiples = [rank for rank in ranks[3:-1] if rank % 8 == 0]
    assert all(m + 1 in ranks for m in multiples)
    assert all(b <= 1.2 * a + 8.5 for a, b in pairwise(multiples))
    assert ranks_to_measure(1) == (1,)
    assert ranks_to_measure(3) == (1, 2, 3)


def test_times_between_two_ranks_lie_on_the_line():
    layers = find_layers(small_network())
    table = table_of(layers, by_weights)
    at = table.seconds_at("0")
    assert [at(rank) for rank in (3, 5, 12)] == pytest.approx(
        [TICK * 50 * 3, TICK * 50 * 5, TICK * 50 * 12]
    )


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = table_of(find_layers(small_network()), by_weights, rest=0.25)
    table.save(tmp_path / "times.json")
    again = LatencyTable.load(tmp_path / "times.json")
    assert again.to_dict() == table.to_dict()
    assert again.frame().equals(table.frame())
    assert "batch of 50" in str(again)
    assert list(tmp_path.iterdir()) == [tmp_path / "times.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version 99; this version .* Update ax-pac"),
        ({"format_version": None}, "no table of times, or a damaged one"),
        ({"layers": {}}, "no layers"),
        ({"whole": float("nan")}, "not finite"),
        ({"machine": {"device": "cpu"}}, "damaged one"),
    ],
)
def test_a_damaged_or_newer_table_is_refused(change, message, tmp_path):
    record = table_of(find_layers(small_network()), by_weights).to_dict() | change
    path = tmp_path / "times.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [2, 1, "dense"], "seconds": [1, 1, 1], "half_widths": [0, 0, 0]},
        {"seconds": [1.0]},
        {"ranks": [1, 2, 4], "seconds": [1, 1, 1], "half_widths": [0, 0, 0]},
    ],
)
def test_a_layer_of_a_table_has_one_time_for_each_rank(change):
    record = table_of(find_layers(small_network()), by_weights).to_dict()
    record["layers"]["0"] |= change
    with pytest.raises(ValueError, match="damaged one"):
        LatencyTable.from_dict(record)


def test_what_is_no_table_is_refused_with_its_path(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: there is no such file"):
        LatencyTable.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match=r"text.json is not valid JSON"):
        LatencyTable.load(tmp_path / "text.json")


def test_a_table_of_other_layers_is_refused_by_name():
    layers = find_layers(small_network())
    table = table_of(layers[:1], by_weights)
    with pytest.raises(ValueError, match="no layer '2'; its layers are 0"):
        table.require_layers(layers)
    other = [replace(layers[0], weight_shape=(31, 20))]
    with pytest.raises(ValueError, match=r"shape \(30, 20\).*here .*\(31, 20\)"):
        table.require_layers(other)
    larger = [replace(layers[0], max_rank=19)]
    with pytest.raises(ValueError, match=r"up to rank 12; here .* up to rank 19"):
        table.require_layers(larger)


def test_nothing_to_measure_is_refused():
    network = small_network()
    with pytest.raises(ValueError, match="0 layers, 50 inputs"):
        measure_latency(network, (), {}, pool(50))


def test_two_networks_are_compared_in_pairs(monkeypatch):
    network, half = small_network(), nn.Sequential(nn.Linear(20, 14), nn.Linear(14, 5))
    with clock_of_weights(monkeypatch):
        found = compare_latency(network, half, pool(50), predicted=0.5)
    ratio = (20 * 14 + 14 + 14 * 5 + 5) / (20 * 30 + 30 + 30 * 5 + 5)
    assert found.ratio == pytest.approx(ratio)
    assert found.low == pytest.approx(ratio)
    assert found.high == pytest.approx(ratio)
    assert found.speedup == pytest.approx(1.0 / ratio)
    assert found.pairs == 11
    assert json.loads(json.dumps(found.to_dict()))["predicted"] == 0.5


def comparison(**changes):
    values = {
        "before": 0.1,
        "after": 0.05,
        "ratio": 0.5,
        "low": 0.49,
        "high": 0.51,
        "pairs": 20,
        "machine": MACHINE,
        "predicted": 0.4,
        "table_machine": MACHINE,
        "table_known": 1.0,
    }
    return LatencyComparison(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predicted": 0.46}, None),
        ({"predicted": None}, None),
        ({"table_machine": replace(MACHINE, threads=8)}, "threads 8 there and 1 here"),
        ({"low": 0.4, "high": 0.6}, "itself is uncertain"),
        ({"table_known": 0.3}, "only 30% of the table"),
        ({}, "Predicted 40.0% .*, measured 50.0%; most likely what lies between"),
    ],
)
def test_a_prediction_that_is_off_is_reported_with_the_likely_reason(changes, message):
    found = comparison(**changes).disagreement
    if message is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=message):
            raise ValueError(found)


def test_a_batch_is_filled_in_the_format_of_its_images():
    images = torch.randn(3, 2, 4, 4).to(memory_format=torch.channels_last)
    batch = batch_of(images, 7)
    assert torch.equal(batch, images[[0, 1, 2, 0, 1, 2, 0]])
    assert Machine.of(nn.Conv2d(2, 2, 1), batch).memory_format == "channels_last"
    assert Machine.of(nn.Conv2d(2, 2, 1), torch.randn(3, 2, 4, 4)).memory_format == (
        "contiguous"
    )
    assert torch.equal(batch_of(images, 2), images[:2])


def test_a_gpu_is_timed_by_its_own_events_after_it_has_finished(monkeypatch):
    done = []

    class Event:
        """An event that is recorded when its work is done, not when it is made."""

        count = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.count += 1
            self.at = 3.0 * Event.count  # milliseconds

        def elapsed_time(self, other):
            assert done[-1] == Event.count, "read before the work was done"
            return other.at - self.at

    monkeypatch.setattr(latency.torch.cuda, "Event", Event)
    monkeypatch.setattr(
        latency.torch.cuda, "synchronize", lambda device: done.append(Event.count)
    )
    network = small_network()
    with latency._Watch(network, ["0", "2"], torch.device("cuda")) as watch:
        whole, layers = watch.run(pool(3))
    # Six events, 3 ms apart: start, around each of two layers, end.
    assert whole == pytest.approx(0.015)
    assert layers == pytest.approx({"0": 0.003, "2": 0.003})
