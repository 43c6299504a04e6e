"""A client is continued by the search that it belongs to, and by no other."""

from __future__ import annotations

import copy

import pytest
import torch
from ax.api.client import Client

from ax_pac.ax_internals import experiment_of, properties
from compression_adapters import compress
from compression_adapters.search.client import PROBLEM_PROPERTY
from tests.helpers.networks import pool, small_network

SETTINGS = {"gamma": 0.5, "delta": 0.5, "level": "pairwise", "max_trials": 8}


@pytest.fixture(scope="module")
def first():
    return compress(small_network(), pool(), **SETTINGS)


def in_json(client, folder):
    """The client as another process has it."""
    client.save_to_json_file(str(folder / "search.json"))
    return Client.load_from_json_file(str(folder / "search.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 50.0}, "made with gamma = 0.5, now gamma = 50.0"),
        ({"loss": "kl_divergence"}, "made with loss = 'squared_l2', now loss = 'kl_"),
        ({"min_rank": 2}, "made with encoding of the ranks"),
        ({"encoding": "linear"}, "made with encoding of the ranks"),
        ({"at_max": "factor"}, "made with encoding of the ranks"),
        ({"objective": "rate"}, "made with objective = 'ratio', now"),
    ],
)
def test_a_client_of_another_objective_is_refused(first, changes, message, tmp_path):
    for client in (first.client, in_json(first.client, tmp_path)):
        with pytest.raises(ValueError, match=f"{message}.*Search without `client`"):
            compress(small_network(), pool(), client=client, **SETTINGS | changes)


def test_a_client_of_another_network_is_refused(first):
    other = small_network()
    with torch.no_grad():
        other[2].weight.mul_(-3.0)
    with pytest.raises(ValueError, match="made with network = "):
        compress(other, pool(), client=first.client, **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 50.0}, "objective of its trial 0 is"),
        ({"at_max": "factor", "encoding": "linear"}, "compression_ratio of its trial"),
    ],
)
def test_a_client_of_version_0_1_is_known_by_its_trials(first, changes, message):
    client = copy.deepcopy(first.client)
    del properties(experiment_of(client))[PROBLEM_PROPERTY]
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), client=client, **SETTINGS | changes)


@pytest.mark.parametrize("changes", [{"delta": 0.4}, {"num_samples": 60}, {"seed": 3}])
def test_a_client_of_the_same_objective_is_continued(first, changes, tmp_path):
    client = in_json(first.client, tmp_path)
    result = compress(small_network(), pool(), client=client, **SETTINGS | changes)
    assert len(result.trials) >= len(first.trials)


def test_a_size_that_no_ranks_have_is_refused_before_the_search():
    with pytest.raises(ValueError, match=r"ratio is 0.01, and the smallest.*has 0.11"):
        compress(small_network(), pool(), ratio="1%", delta=0.5)
