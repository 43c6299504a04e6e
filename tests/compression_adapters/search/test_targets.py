"""Targets in a user's words, met with evaluations that all gammas share."""

import dataclasses

import pytest
import torch

from compression_adapters import compress, compression_problem
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.options import SearchOptions
from compression_adapters.search import targets
from compression_adapters.search.client import reweighted_client
from compression_adapters.search.run import search_problem
from compression_adapters.search.targets import compress_at, compress_to
from tests.helpers.networks import pool, small_network

FAST = {"delta": 0.2, "epsilon": 0.1, "level": "pairwise"}
# Each search needs some proposals of the model.
SHORT = FAST | {"delta": 0.05}
OPTIONS = SearchOptions(**FAST)

pytestmark = pytest.mark.filterwarnings("ignore:Very small noise values")


@pytest.mark.parametrize("ratio", ["50%", 0.25])
def test_a_size_is_met_by_the_least_loss_found(ratio):
    options = {**SHORT, "refit": False}
    found = compress_to(small_network(), pool(), ratio=ratio, max_gammas=4, **options)
    target = 0.5 if ratio == "50%" else 0.25
    layers = found.layers
    came = layers["weights"].sum() / layers["weights_before"].sum()
    assert came <= target
    assert found.problem.gamma in set(found.gammas["gamma"])
    # It fills the size, and loses no more than what the price path has there.
    path = price_path(found.problem)
    assert path.moved(found.ranks, target) == found.ranks
    on_path = path.networks[path.at_ratio(target)]
    ours, theirs = (
        torch.cat([found.problem.sample_losses(r, seed=s) for s in range(8)]).mean()
        for r in (found.ranks, path.moved(on_path, target))
    )
    assert ours <= 1.05 * theirs


def test_a_loss_is_met_by_the_smallest_network_found():
    found = compress_to(
        small_network(), pool(), loss_at_most=0.5, max_gammas=4, **SHORT
    )
    assert found.loss.mean <= 0.5
    met = found.gammas[found.gammas["meets_target"]]
    layers = found.layers
    came = layers["weights"].sum() / layers["weights_before"].sum()
    assert came == pytest.approx(met["compression_ratio"].min())


def test_another_gamma_weighs_anew_what_was_measured():
    problem = compression_problem(small_network(), pool(), gamma=0.5)
    first = search_problem(problem, OPTIONS)
    other = dataclasses.replace(problem, gamma=2.0)
    client = reweighted_client(first.client, other)
    before = first.client._experiment.lookup_data().df
    after = client._experiment.lookup_data().df
    for (_, old), (_, new) in zip(before.iterrows(), after.iterrows(), strict=True):
        assert new["metric_name"] == old["metric_name"]
        if old["metric_name"] != "objective":
            assert (new["mean"], new["sem"]) == (old["mean"], old["sem"])
    losses = before[before["metric_name"] == "loss"]["mean"].to_numpy()
    ratios = before[before["metric_name"] == "compression_ratio"]["mean"].to_numpy()
    objectives = after[after["metric_name"] == "objective"]["mean"].to_numpy()
    assert objectives == pytest.approx(2.0 * losses + ratios)
    second = search_problem(other, OPTIONS, client=client)
    assert second.certificate.holds
    assert len(second.trials) >= len(first.trials)


def test_several_gammas_cost_little_more_than_one():
    found = compress_to(small_network(), pool(), ratio="25%", max_gammas=3, **SHORT)
    evaluations = found.gammas["evaluations"].tolist()
    alone = []
    for gamma in found.gammas["gamma"]:
        problem = compression_problem(small_network(), pool(), gamma=gamma)
        alone.append(len(search_problem(problem, SearchOptions(**SHORT)).trials))
    assert len(evaluations) >= 2
    # Sharing must save at least a third of what separate searches take.
    assert sum(evaluations) <= sum(alone) * 2 / 3


def test_a_target_that_no_gamma_meets_is_refused_with_what_was_reached():
    options = FAST | {"max_trials": 20}
    options |= {"at_max": "factor"}  # so that the dense network is no choice
    with pytest.raises(ValueError, match=r"(?s)No gamma.*compression_rat.*max_gammas"):
        compress_to(small_network(), pool(), loss_at_most=1e-9, max_gammas=1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either ratio or loss_at_most, or another target; got none"),
        ({"ratio": 0.5, "loss_at_most": 1.0}, "got ratio and loss_at_most"),
        ({"ratio": "half"}, "ratio must lie between 0 and 1.*got 'half'"),
        ({"ratio": 1.5}, "ratio must lie between 0 and 1.*got 1.5"),
        ({"ratio": "0%"}, "ratio must lie between 0 and 1.*got '0%'"),
        ({"loss_at_most": -1.0}, "loss_at_most must be positive; got -1.0"),
        ({"ratio": 0.5, "gamma": 1.0}, "gamma is what is searched"),
        ({"ratio": 0.5, "max_gammas": 0}, "max_gammas must be at least 1"),
    ],
)
def test_targets_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compress_to(small_network(), pool(), **options)


def test_compress_takes_a_target_in_place_of_gamma():
    settings = FAST | {"max_trials": 8}
    result = compress(small_network(), pool(), ratio="50%", **settings)
    assert result.problem.gamma in set(result.gammas["gamma"])
    assert result.beside_incumbent is not None or result.gammas["meets_target"].any()
    assert result.layers["weights"].sum() <= 0.5 * result.layers["weights_before"].sum()
    spent = result.timings
    parts = sum(spent[k] for k in ("factorize", "fit", "propose", "evaluate"))
    assert parts <= spent["total"]
    assert compress(small_network(), pool(), gamma=0.5, **settings).gammas is None


def test_compress_takes_a_loss_in_place_of_gamma():
    settings = FAST | {"max_trials": 8}
    result = compress(small_network(), pool(), loss_at_most=0.5, **settings)
    assert result.loss.mean <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kl_divergence"}, "Expected one of gamma, ratio, .*; got none"),
        ({"gamma": 1.0, "ratio": 0.5}, "got gamma and ratio"),
        ({"ratio": 0.5, "loss_at_most": 1.0}, "got ratio and loss_at_most"),
        ({"ratio": "half"}, "ratio must lie between 0 and 1.*got 'half'"),
        ({"loss_at_most": 0.0}, "loss_at_most must be positive; got 0.0"),
        ({"ratio": 0.5, "client": object()}, r"\(ratio\) cannot continue a client"),
    ],
)
def test_compress_takes_one_of_gamma_and_the_targets(options, message):
    with pytest.raises(ValueError, match=message):
        compress(small_network(), pool(), **options)


def test_several_gammas_share_their_evaluations():
    gammas = (1.0, 0.25, 0.5)
    found = compress_at(small_network(), pool(), gammas=gammas, seed=3, **FAST)
    assert tuple(result.problem.gamma for result in found) == gammas
    assert all(result.certificate.holds for result in found)
    # The smallest gamma is a search of its own.
    alone = compress(small_network(), pool(), gamma=0.25, seed=3, **FAST)
    assert found[1].ranks == alone.ranks
    assert len(found[1].trials) == len(alone.trials)
    # What it has measured is weighed anew by the others.
    for result in found:
        first = result.trials.iloc[: len(alone.trials)]
        assert first["loss"].tolist() == alone.trials["loss"].tolist()
        weighed = result.problem.gamma * first["loss"] + first["compression_ratio"]
        assert first["objective"].tolist() == pytest.approx(weighed.tolist())
    apart = sum(
        len(compress(small_network(), pool(), gamma=g, seed=3, **FAST).trials)
        for g in gammas
    )
    assert max(len(result.trials) for result in found) < apart


def test_searches_for_a_target_are_named_by_their_number(monkeypatch):
    names = []

    def searched(problem, options, *, client=None, limit=None):
        names.append(options.name)
        return search_problem(
            problem, dataclasses.replace(options, db=None), client=client
        )

    monkeypatch.setattr(targets, "search_problem", searched)
    with pytest.raises(ValueError, match="No gamma that was tried meets the target"):
        compress_to(
            small_network(),
            pool(),
            loss_at_most=1e-9,
            max_gammas=3,
            name="mine",
            db="search.db",
            at_max="factor",  # so that the dense network is no choice
            max_trials=12,
            **FAST,
        )
    assert names == ["mine/1", "mine/2", "mine/3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gammas": ()}, r"at least one weight of the loss, all different; got \[\]"),
        ({"gammas": (1, 1.0)}, "all different"),
        ({"gammas": (1.0, -1.0)}, "gamma"),
        ({"gammas": (1.0,), "ratio": 0.5}, "gamma, targets and client.*got ratio"),
        ({"gammas": (1.0,), "num_samples": "auto"}, "got num_samples='auto'"),
    ],
)
def test_gammas_that_cannot_be_searched_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compress_at(small_network(), pool(), **options)
