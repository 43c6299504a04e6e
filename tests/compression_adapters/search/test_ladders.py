"""Searches that walk ladders: what they find, keep, load, continue and refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from compression_adapters import (
    LatencyTable,
    compress,
    compression_problem,
    load_compressed,
    price_path,
)
from compression_adapters.calibration.profile import profile
from compression_adapters.evaluation.loss_curves import relative_errors
from compression_adapters.layers.selection import best_of, choose_low_rank
from compression_adapters.layers.survey import find_layers
from compression_adapters.network.recipe import recipe_of
from compression_adapters.stages import Stage, compress_in_stages
from tests.helpers.times import by_weights, clock_of_weights, table_of

KINDS = ("low_rank_conv", "channel_conv", "tucker")
FAST = {
    **{"gamma": 0.5, "delta": 0.3, "epsilon": 0.05, "level": "pairwise"},
    "progress": False,
}


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 6),
        ).eval()


def pool(n=300):
    noise = torch.randn(n, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return noise + noise.roll(1, -1) + noise.roll(1, -2)


def separate(layer):
    """Give each layer a coordinate of its own."""
    return layer


@pytest.mark.parametrize("size", ["weights", "multiply-adds", "bytes"])
def test_every_price_gives_the_least_of_all_forms_of_all_layers(size):
    """Against a minimum over every decomposition at every rank, and dense."""
    problem = compression_problem(
        network(), pool(), gamma=1.0, choose="best", size=size, tie=separate
    )
    curves = {
        layer.name: relative_errors(layer, problem.factors[layer.name])
        for layer in problem.layers
    }
    path = price_path(problem, curves)
    alone = {
        kind: compression_problem(
            network(),
            pool(),
            gamma=1.0,
            size=size,
            tie=separate,
            choose=lambda name, module, kind=kind: (
                find(kind, module) or choose_low_rank(name, module)
            ),
        )
        for kind in KINDS
    }
    before = problem.measure.before
    for price in (0.01, 0.1, 0.3, 1.0, 3.0, 30.0):
        ranks = path.networks[path.at_price(price)]
        for layer in problem.layers:
            own = problem.measure.layers[layer.name]
            rank = ranks[layer.name]
            lost = 0.0 if rank == "dense" else curves[layer.name][rank]
            found = lost + price * own.at(rank) / before
            least = price * own.dense / before
            for other in alone.values():
                (same,) = (x for x in other.layers if x.name == layer.name)
                errors = relative_errors(same, other.factors[layer.name])
                sizes = other.measure.layers[layer.name]
                for number in range(1, same.max_rank + 1):
                    value = errors[number] + price * sizes.at(number) / before
                    least = min(least, value)
            # Outputs' moments and those of inputs agree up to the ridge.
            assert found <= least + 2e-3


def find(kind, module):
    from compression_adapters.decompositions import DECOMPOSITIONS

    found = DECOMPOSITIONS[kind]
    return found if found.supports(module) else None


def test_a_search_walks_the_rungs_and_its_network_is_loaded_without_them(tmp_path):
    found = compress(network(), pool(), choose="best", **FAST)
    table = found.layers
    assert {"kind", "rank", "rung"} <= set(table)
    for layer, row in zip(found.problem.layers, table.to_dict("records"), strict=True):
        rank = found.ranks[layer.name]
        assert (row["kind"], row["rank"]) == tuple(layer.form_of(rank))
        assert row["rung"] == rank
        assert row["weights"] == (
            layer.num_weights if rank == "dense" else layer.weights_at(rank)
        )
    found.save(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [(x["decomposition"], x["rank"]) for x in recipe["layers"]] == [
        (row["kind"], row["rank"]) for row in table.to_dict("records")
    ]
    # The format of networks without ladders, which older versions read too.
    assert recipe["format_version"] == 2
    loaded = load_compressed(tmp_path, network())
    with torch.no_grad():
        assert torch.equal(loaded(pool(20)), found.network(pool(20)))
    assert recipe_of(loaded) == recipe_of(found.network)


def test_a_stored_search_goes_on_and_another_choice_is_refused(tmp_path):
    pytest.importorskip("sqlalchemy")
    options = {**FAST, "db": tmp_path / "a.db", "refit": False}
    first = compress(network(), pool(), choose="best", **options)
    again = compress(network(), pool(), choose="best", **options)
    assert again.ranks == first.ranks
    assert len(again.trials) == len(first.trials)
    with pytest.raises(ValueError, match="was made with layers = "):
        compress(network(), pool(), **options)


def test_a_client_goes_on(tmp_path):
    first = compress(network(), pool(), choose="best", **FAST)
    more = compress(
        network(), pool(), choose="best", client=first.client, **FAST | {"delta": 0.25}
    )
    assert len(more.trials) >= len(first.trials)


def test_stages_cut_what_a_ladder_left():
    from compression_adapters import choose_pruning

    small, table = compress_in_stages(
        network(),
        pool(),
        [Stage("best", {"choose": "best"}), Stage("prune", {"choose": choose_pruning})],
        **FAST,
    )
    assert table["stage"].tolist() == ["best", "prune"]
    kinds = [entry.decomposition for entry in recipe_of(small).layers]
    assert set(kinds[:4]) <= {*KINDS, "svd"}
    assert kinds[4:] == ["pruning"] * (len(kinds) - 4)


def test_rungs_respect_the_options_of_ranks():
    problem = compression_problem(
        network(), pool(), gamma=1.0, choose="best", min_rank=2, round_to=2
    )
    for layer in problem.layers:
        if layer.ladder is not None:
            assert all(rung.rank % 2 == 0 for rung in layer.ladder.rungs)
    without_dense = compression_problem(
        network(), pool(), gamma=1.0, choose="best", at_max="factor"
    )
    top = without_dense.ranks({p.name: 1.0 for p in without_dense.parameters})
    assert "dense" not in top.values()


@pytest.mark.parametrize("encoding", ["log", "linear", "energy"])
@pytest.mark.parametrize("at_max", ["dense", "factor"])
def test_every_rung_has_a_bin_under_every_encoding(encoding, at_max):
    problem = compression_problem(
        network(),
        pool(),
        gamma=1.0,
        choose="best",
        encoding=encoding,
        at_max=at_max,
        tie=separate,
    )
    for layer, parameter in zip(problem.layers, problem.parameters, strict=True):
        (scale,) = parameter.scales
        outcomes = [*scale.ranks, *(["dense"] if at_max == "dense" else [])]
        assert outcomes[: layer.max_rank] == list(range(1, layer.max_rank + 1))
        for rank in outcomes:
            assert scale.rank_from_unit(scale.unit_from_rank(rank)) == rank


def test_under_log_sizes_grow_geometrically():
    problem = compression_problem(
        network(), pool(), gamma=1.0, choose="best", tie=separate
    )
    layer = problem.layers[1]
    (scale,) = problem.parameters[1].scales
    sizes = [*map(layer.weights_at, range(1, layer.max_rank + 1)), layer.num_weights]
    low, high = scale.bin_of_rank(1)
    first = (high - low) / torch.tensor(sizes[1] / sizes[0]).log()
    for rank in range(1, layer.max_rank):
        low, high = scale.bin_of_rank(rank)
        step = torch.tensor(sizes[rank] / sizes[rank - 1]).log()
        assert high - low == pytest.approx(float(first * step), rel=1e-4)


def test_ranks_without_gain_leave_every_ladder():
    problem = compression_problem(
        network(), pool(), gamma=1.0, choose="best", skip_no_gain=True
    )
    full = compression_problem(
        network(), pool(), gamma=1.0, choose="best", size="multiply-adds"
    )
    for layer in problem.layers:
        if layer.ladder is None:
            continue
        dense = full.measure.layers[layer.name].dense
        small = layer.decomposition.empty(
            network().get_submodule(layer.name), layer.max_rank
        )
        assert macs(small, layer.name) < dense


def macs(module, name):
    from compression_adapters.network.macs import count_macs

    x = pool(1)
    for step in network()[: int(name)]:
        x = step(x)
    with torch.no_grad():
        return count_macs(module, x)


def test_a_profile_shows_rungs_by_weights():
    table = profile(network(), pool(4), choose="best").layers.set_index("layer")
    problem = compression_problem(network(), pool(), gamma=1.0, choose="best")
    assert table.loc["2", "decomposition"] == "|".join(KINDS)
    # Of the weights alone, without inputs: about as many rungs as with them.
    assert 1 < table.loc["2", "max_rank"] <= 3 * problem.layers[1].max_rank
    assert table.loc["2", "weights_max"] <= table.loc["2", "weights"]
    assert table.loc["2", "rank_max"] == table.loc["2", "max_rank"]


def test_times_are_measured_for_every_decomposition(monkeypatch, tmp_path):
    layers = find_layers(network(), "best")
    with clock_of_weights(monkeypatch):
        problem = compression_problem(
            network(), pool(), gamma=1.0, choose="best", size="latency"
        )
    table = problem.measure.table
    spec = layers[1]
    times = table.layers[spec.name]
    assert [name for name, _ in times.kinds] == list(KINDS)
    assert sum(number for _, number in times.kinds) == spec.max_rank
    at = table.seconds_at(spec.name)
    for span in spec.spans:
        # By a clock that counts weights a time is a count, and the bias is one more.
        expected = 1e-6 * (spec.weights_at(span[0]) + 16)
        assert at(span[0]) == pytest.approx(expected)
    frame = table.frame()
    assert set(frame.loc[frame["layer"] == spec.name, "kind"]) == {*KINDS, "dense"}
    assert "tucker" in str(table)
    table.save(tmp_path / "times.json")
    record = json.loads((tmp_path / "times.json").read_text())
    assert record["format_version"] == 2
    same = LatencyTable.load(tmp_path / "times.json")
    assert same.to_dict() == table.to_dict()
    same.require_layers(layers)
    with pytest.raises(ValueError, match="has layer '0' as low_rank_conv"):
        same.require_layers(find_layers(network()))
    other = dict(record["layers"]["2"])
    other["kinds"] = [["low_rank_conv", 1], *other["kinds"][1:]]
    with pytest.raises(ValueError, match="no table of times, or a damaged one"):
        LatencyTable.from_dict(record | {"layers": {"2": other}})


def test_a_table_of_one_decomposition_each_is_written_as_before():
    table = table_of(find_layers(network()), by_weights)
    record = table.to_dict()
    assert record["format_version"] == 1
    assert all("kinds" not in entry for entry in record["layers"].values())
    assert LatencyTable.from_dict(record).to_dict() == record
    newer = record | {"format_version": 3}
    with pytest.raises(ValueError, match=r"reads up to 2\. Update ax-pac"):
        LatencyTable.from_dict(newer)


def test_slow_forms_are_no_rungs_whatever_they_lose():
    layers = find_layers(network(), "best")

    def seconds(layer, rank):
        if rank == "dense":
            return 1e-3
        kind, own = layer.form_of(rank)
        # One decomposition is as slow as the dense layer, another in steps of four.
        return {
            "low_rank_conv": 2e-3,
            "channel_conv": 1e-5 * (1 + -(-own // 4)),
        }.get(kind, 5e-4)

    problem = compression_problem(
        network(), pool(), gamma=1.0, choose="best", size=table_of(layers, seconds)
    )
    for layer in problem.layers:
        kinds = [layer.form_of(n).kind for n in range(1, layer.max_rank + 1)]
        assert "low_rank_conv" not in kinds
        seconds_of = problem.measure.layers[layer.name].sizes
        assert list(seconds_of) == sorted(seconds_of)


def test_best_of_keeps_the_layers_of_a_choice():
    def first(name, module):
        return choose_low_rank(name, module) if name == "2" else None

    assert [layer.name for layer in find_layers(network(), best_of(first))] == ["2"]
    with pytest.raises(ValueError, match="choose must be one of low_rank, best"):
        compress(network(), pool(), choose="bets", **FAST)


def test_a_speedup_walks_ladders(monkeypatch):
    from compression_adapters.network.latency import LatencyComparison
    from compression_adapters.search import result as results
    from tests.helpers.times import MACHINE

    def measured(before, after, inputs, *, seconds, predicted, table):
        return LatencyComparison(
            *(1.0, predicted, predicted, predicted, predicted, 11),
            MACHINE,
            predicted,
            table.machine,
        )

    monkeypatch.setattr(results, "compare_latency", measured)
    options = {k: v for k, v in FAST.items() if k != "gamma"}
    found = compress(
        network(),
        pool(),
        speedup=2.0,
        choose="best",
        size=table_of(find_layers(network(), "best"), by_weights),
        **options,
    )
    assert found.latency.ratio <= 0.5
    assert found.problem.ratio(found.ranks) == pytest.approx(found.latency.ratio)
    assert replace(found, latency=None).size_ratio <= 0.5
