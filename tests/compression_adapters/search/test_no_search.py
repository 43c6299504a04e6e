"""Networks taken from the price path without a search."""

import pytest
import torch
from torch import nn

from compression_adapters import compress
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.search.loop import EvaluationError
from tests.helpers.networks import pool

SETTINGS = {"search": False, "progress": False}


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 4)
        )


def on_path(result):
    path = price_path(result.problem)
    return path, path.networks.index(result.ranks)


def test_a_ratio_takes_the_largest_network_within_it_after_one_evaluation():
    result = compress(network(), pool(), ratio="50%", **SETTINGS)
    path, position = on_path(result)
    assert position == path.at_ratio(0.5)
    assert len(result.trials) == 1
    assert result.stop_reason == "no_search"
    kept = result.layers["weights"].sum() / result.layers["weights_before"].sum()
    assert kept <= 0.5


def test_nothing_is_certified_and_says_so():
    certificate = compress(network(), pool(), ratio=0.5, **SETTINGS).certificate
    assert not certificate.holds
    assert not certificate.certifiable
    assert "without a search" in certificate.reason


def test_a_gamma_takes_the_best_of_the_path_as_measured():
    result = compress(network(), pool(), gamma=2.0, **SETTINGS)
    path, position = on_path(result)
    assert 5 <= len(result.trials) <= 20
    sizes = path.table["compression_ratio"]
    measured = {
        i: 2.0 * result.problem.sample_losses(path.networks[i], seed=99).mean().item()
        + sizes.iloc[i]
        for i in range(len(path))
    }
    # Of the order of the noise of fifty samples.
    assert measured[position] <= min(measured.values()) + 0.05


def test_a_loss_takes_the_smallest_network_that_surely_loses_no_more():
    limit = 0.05
    result = compress(network(), pool(), loss_at_most=limit, **SETTINGS)
    path, position = on_path(result)
    assert result.loss.mean <= limit
    assert 0 < position < len(path) - 1
    with pytest.raises(ValueError, match="not surely below loss_at_most=1e-09"):
        compress(
            network(),
            pool(),
            loss_at_most=1e-9,
            at_max="factor",
            calibrate=0,
            **SETTINGS,
        )


def test_a_search_goes_on_from_its_client():
    first = compress(network(), pool(), gamma=1.0, **SETTINGS)
    whole = compress(
        network(),
        pool(),
        gamma=1.0,
        client=first.client,
        delta=0.2,
        level="pairwise",
        max_trials=10,
    )
    assert len(whole.trials) >= len(first.trials)
    assert whole.stop_reason in ("certified", "max_trials")
    assert whole.certificate.num_observations >= len(first.trials)


@pytest.mark.parametrize("extra", [{"workers": 2}, {"db": "search.db"}])
def test_what_only_a_search_has_is_refused(extra):
    with pytest.raises(ValueError, match="search=False takes a network"):
        compress(network(), pool(), gamma=1.0, **SETTINGS, **extra)


def test_a_client_is_refused():
    first = compress(network(), pool(), gamma=1.0, **SETTINGS)
    with pytest.raises(ValueError, match="leave the client out"):
        compress(network(), pool(), gamma=1.0, client=first.client, **SETTINGS)


def test_a_search_says_what_it_adds_to_the_path():
    options = {"gamma": 1.0, "delta": 0.2, "level": "pairwise", "max_trials": 12}
    result = compress(network(), pool(), **options)
    path = price_path(result.problem)
    gain = result.gain_over_path()
    if result.ranks in path.networks:
        assert gain == (0.0, 0.0)
    assert gain.mean >= -3 * gain.sem - 0.05
    beside = compress(network(), pool(), start="space-filling", **options)
    assert beside.gain_over_path() is None or beside.ranks in path.networks


def explosive(compressed, batch):
    """The squared distance, infinite where it is large, as in half precision."""
    losses = (compressed(batch.inputs) - batch.reference_outputs).square().sum(1)
    return torch.where(losses.mean() > 0.02, torch.inf, losses)


def test_a_network_that_cannot_be_evaluated_is_worse_than_any_other():
    result = compress(network(), pool(), gamma=1.0, loss=explosive, **SETTINGS)
    failed = result.trials["status"] == "FAILED"
    assert failed.sum() >= 3  # the small ones, one after another
    chosen = (
        result.trials.filter(like="rank_").eq(list(result.ranks.values())).all(axis=1)
    )
    assert not (failed & chosen).any()
    with pytest.raises(EvaluationError, match=r"cannot be evaluated: .* be finite"):
        compress(network(), pool(), ratio="15%", loss=explosive, **SETTINGS)


def test_the_dense_network_surely_loses_nothing():
    result = compress(network(), pool(), loss_at_most=1e-9, **SETTINGS)
    assert set(result.ranks.values()) == {"dense"}
