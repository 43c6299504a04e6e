"""A search by another size is continued with the same size and the same times."""

import json

import pytest
import torch
from torch import nn

from ax_pac import open_client
from ax_pac.ax_internals import experiment_of, properties
from compression_adapters import compress, find_layers, load_compressed
from compression_adapters.network.recipe import recipe_of
from compression_adapters.search import result as results
from compression_adapters.search.stored_choices import table_of as stored_table
from tests.helpers.networks import pool, small_network
from tests.helpers.times import by_weights, table_of

pytest.importorskip("sqlalchemy")
SHORT = {
    **{"gamma": 0.5, "delta": 0.05, "epsilon": 0.05, "level": "pairwise"},
    **{"progress": False, "refit": False},
}


def table(scale=1.0):
    def seconds(layer, rank):
        return scale * by_weights(layer, rank) if rank == 1 else by_weights(layer, rank)

    return table_of(find_layers(small_network()), seconds, rest=1e-5)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """What was stored is asked for; the whole network is not timed here."""
    monkeypatch.setattr(results, "timed", lambda result, **_: result)
    monkeypatch.setattr("compression_adapters.api.timed", lambda result: result)


def test_times_are_kept_with_a_search_and_used_when_it_goes_on(tmp_path):
    options = {**SHORT, "db": tmp_path / "a.db", "size_of": "network"}
    first = compress(small_network(), pool(), size=table(), max_trials=4, **options)
    kept = stored_table(open_client(tmp_path / "a.db", "compression"))
    assert kept.to_dict() == table().to_dict()
    # Measured anew the times would be others; the search goes on with its own.
    again = compress(small_network(), pool(), size="latency", max_trials=7, **options)
    assert again.problem.measure.table.to_dict() == table().to_dict()
    assert len(again.trials) > len(first.trials)
    assert again.trials["compression_ratio"].iloc[:4].tolist() == pytest.approx(
        first.trials["compression_ratio"].tolist()
    )


def test_times_are_kept_with_a_client_and_used_when_it_goes_on(tmp_path):
    first = compress(small_network(), pool(), size=table(), max_trials=4, **SHORT)
    first.client.save_to_json_file(str(tmp_path / "a.json"))
    client = type(first.client).load_from_json_file(str(tmp_path / "a.json"))
    again = compress(
        small_network(), pool(), size="latency", client=client, max_trials=2, **SHORT
    )
    assert again.problem.measure.table.to_dict() == table().to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "weights"}, "made with size = 'latency', now size = 'weights'"),
        ({"size": "bytes"}, "made with size = 'latency', now size = 'bytes'"),
        ({"size_of": "network"}, "made with size_of = 'layers', now size_of = 'netw"),
        ({"size": table(0.9)}, "made with table of times = "),
    ],
)
def test_another_size_is_refused(change, message, tmp_path):
    options = {**SHORT, "db": tmp_path / "a.db", "max_trials": 3, "size": table()}
    compress(small_network(), pool(), **options)
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), **options | change)
    client = open_client(tmp_path / "a.db", "compression")
    del options["db"]
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), client=client, **options | change)


def test_a_search_of_yesterday_is_one_of_weights(tmp_path):
    options = {**SHORT, "db": tmp_path / "a.db", "max_trials": 3}
    compress(small_network(), pool(), **options)
    kept = open_client(tmp_path / "a.db", "compression")
    settings = properties(experiment_of(kept))["compression_problem"]
    assert not {"size", "size_of", "table of times"} & set(settings)
    with pytest.raises(ValueError, match="made with size = 'weights', now size"):
        compress(small_network(), pool(), **options, size="bytes")


def test_a_saved_network_says_by_which_size_it_was_chosen(tmp_path):
    found = compress(
        small_network(), pool(), size="bytes", size_of="network", max_trials=3, **SHORT
    )
    found.save(tmp_path / "small")
    recipe = json.loads((tmp_path / "small" / "recipe.json").read_text())
    assert recipe["format_version"] == 3
    (size,) = recipe["sizes"]
    assert size == found.problem.measure.to_dict_at(found.ranks)
    assert (size["size"], size["size_of"]) == ("bytes", "network")
    loaded = load_compressed(tmp_path / "small", small_network())
    assert recipe_of(loaded).sizes == (size,)
    weights = compress(small_network(), pool(), max_trials=3, **SHORT)
    weights.save(tmp_path / "plain")
    older = json.loads((tmp_path / "plain" / "recipe.json").read_text())
    assert older["format_version"] == 2  # data-aware factors, and nothing newer
    assert "sizes" not in older


def deep_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(*pair) for pair in ((12, 10), (10, 9), (9, 8), (8, 6))]
        return nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh())))


def inputs():
    return torch.randn(300, 12, generator=torch.Generator().manual_seed(0))


def own(layer):
    return layer


@pytest.mark.parametrize(("tie", "number"), [(own, 4), (None, 3)])
@pytest.mark.parametrize("stored_in", ["db", "json"])
def test_a_search_goes_on_with_the_coordinates_that_it_has(
    tmp_path, tie, number, stored_in
):
    options = dict(SHORT)
    if stored_in == "db":
        options["db"] = tmp_path / "a.db"
    first = compress(deep_network(), inputs(), tie=tie, max_trials=3, **options)
    if stored_in == "json":
        first.client.save_to_json_file(str(tmp_path / "a.json"))
        client = type(first.client).load_from_json_file(str(tmp_path / "a.json"))
        options["client"] = client
    again = compress(deep_network(), inputs(), max_trials=5, **options)
    assert len(first.problem.parameters) == len(again.problem.parameters) == number
    assert len(again.trials) > len(first.trials) == 3


def test_other_coordinates_than_the_stored_ones_are_refused(tmp_path):
    options = {**SHORT, "db": tmp_path / "a.db", "max_trials": 3}
    compress(deep_network(), inputs(), **options)
    with pytest.raises(ValueError, match=r"encoding.*path.*of each layer.s ranks"):
        compress(deep_network(), inputs(), tie=own, **options)
