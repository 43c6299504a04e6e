"""As many samples as cost what the optimiser costs, chosen once and recorded."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from compression_adapters import compress, compression_problem
from compression_adapters.search import auto as auto_search
from compression_adapters.search.run import search_problem
from compression_adapters.search.sample_size import (
    balanced_sample_size,
    most_samples,
)
from compression_adapters.search.targets import compress_to
from tests.helpers.networks import pool, small_network

SETTINGS = {
    **{"gamma": 0.5, "delta": 0.001, "epsilon": 0.01, "level": "pairwise"},
    **{"num_initial_trials": 3, "max_trials": 8},
}


@pytest.fixture
def times(monkeypatch):
    """Set the wall times that a choice is made from, per trial and per sample."""

    def set_to(overhead, per_sample):
        def searched(problem, options, **others):
            result = search_problem(problem, options, **others)
            proposed = (result.trials["node"] == "PAC").sum()
            seconds = {
                "fit": overhead * proposed / 4,
                "propose": overhead * proposed * 3 / 4,
                "evaluate": per_sample * len(result.trials) * problem.num_samples,
            }
            return replace(result, timings=result.timings | seconds)

        monkeypatch.setattr(auto_search, "search_problem", searched)

    return set_to


@pytest.mark.parametrize(
    ("overhead", "per_sample", "most", "expected"),
    [
        (0.5, 0.005, 400, 100),
        (0.5, 0.00499, 400, 100),
        (0.5, 1.0, 400, 50),
        (0.0, 1.0, 400, 50),
        (0.5, 1e-300, 400, 400),
    ],
)
def test_samples_cost_what_the_optimiser_costs(overhead, per_sample, most, expected):
    assert balanced_sample_size(overhead, per_sample, most) == expected


def test_times_that_were_not_measured_are_refused():
    for arguments in ((-1.0, 1.0, 400), (1.0, 0.0, 400), (1.0, 1.0, 49)):
        with pytest.raises(ValueError, match="Expected times that were measured"):
            balanced_sample_size(*arguments)


def test_at_most_the_pool_and_what_fits_into_memory():
    network = small_network()
    problem = compression_problem(network, pool(), gamma=1.0)
    assert most_samples(problem) == 400

    def generate(num_samples, rng):
        return torch.randn(num_samples, 20, generator=rng)

    endless = compression_problem(network, generate, gamma=1.0)
    assert most_samples(endless) == 2**28 // 80


def test_the_choice_is_made_from_measured_times(times):
    times(0.5, 0.0025)
    result = compress(small_network(), pool(), num_samples="auto", **SETTINGS)
    chosen = result.sample_size
    assert chosen.num_samples == result.problem.num_samples == 200
    assert (chosen.trials, chosen.most) == (6, 400)
    assert chosen.overhead_seconds == pytest.approx(0.5)
    assert chosen.seconds_per_sample == pytest.approx(0.0025)
    assert "200 samples per evaluation, chosen after 6 evaluations" in chosen.sentence()
    # The first evaluations are counted: 6 of 50 samples, then 8 of 200.
    assert result.timings["evaluate"] == pytest.approx((6 * 50 + 8 * 200) * 0.0025)


def test_with_the_same_times_a_search_is_the_one_with_that_many_samples(times):
    times(0.1, 0.001)
    auto = compress(small_network(), pool(), num_samples="auto", **SETTINGS)
    fixed = compress(small_network(), pool(), num_samples=100, **SETTINGS)
    assert auto.problem.num_samples == 100
    # Reference outputs that were computed in batches of other sizes differ by rounding.
    pd.testing.assert_frame_equal(auto.trials, fixed.trials, rtol=1e-5, atol=1e-6)
    assert fixed.sample_size is None


def test_where_samples_are_expensive_the_search_goes_on_with_the_evaluations_it_has(
    times,
):
    times(0.1, 1.0)
    auto = compress(small_network(), pool(), num_samples="auto", **SETTINGS)
    assert auto.sample_size.num_samples == auto.problem.num_samples == 50
    assert len(auto.trials) == SETTINGS["max_trials"]
    short = SETTINGS | {"max_trials": 6}
    same = compress(small_network(), pool(), num_samples="auto", **short)
    assert same.sample_size.num_samples == 50
    assert same.trials.equals(auto.trials.iloc[:6])


def test_a_search_that_is_continued_uses_its_choice_again(times, monkeypatch, tmp_path):
    times(0.1, 0.001)
    first = compress(small_network(), pool(), num_samples="auto", **SETTINGS)
    monkeypatch.setattr(auto_search, "_choose", None)
    path = str(tmp_path / "experiment.json")
    first.client.save_to_json_file(path)
    client = type(first.client).load_from_json_file(path)
    again = compress(
        small_network(),
        pool(),
        num_samples="auto",
        client=client,
        **SETTINGS | {"max_trials": 2},
    )
    assert again.sample_size == first.sample_size
    assert again.problem.num_samples == 100
    # It may end by its certificate before it has used both.
    assert 0 < len(again.trials) - len(first.trials) <= 2


def test_a_search_with_a_fixed_number_is_not_continued_with_auto():
    fixed = compress(small_network(), pool(), **SETTINGS | {"delta": 0.5})
    with pytest.raises(ValueError, match="did not choose its number of samples"):
        compress(
            small_network(),
            pool(),
            num_samples="auto",
            client=fixed.client,
            **SETTINGS,
        )


def test_a_search_that_ends_before_a_choice_says_that_there_was_none():
    easy = SETTINGS | {"delta": 5.0, "level": "pairwise"}
    result = compress(small_network(), pool(), num_samples="auto", **easy)
    assert result.certificate.holds
    assert result.sample_size is None
    assert result.problem.num_samples == 50


def test_all_gammas_of_a_target_share_one_number(times):
    times(0.1, 0.001)
    settings = {key: value for key, value in SETTINGS.items() if key != "gamma"}
    # Long enough for a choice after the first proposals.
    settings |= {"delta": 0.005, "calibrate": 0, "start": "space-filling"}
    found = compress_to(
        small_network(),
        pool(),
        loss_at_most=0.5,
        num_samples="auto",
        max_gammas=2,
        **settings,
    )
    assert len(found.gammas) == 2
    assert found.sample_size.num_samples == 100
    assert found.problem.num_samples == 100


def test_a_pool_smaller_than_the_least_number_is_refused():
    with pytest.raises(ValueError, match="30 inputs, fewer than the 50"):
        compress(small_network(), pool(30), num_samples="auto", **SETTINGS)
