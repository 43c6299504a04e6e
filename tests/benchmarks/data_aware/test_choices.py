"""Rules, the path and a search on both factors of a network of two layers."""

from __future__ import annotations

import pytest

from benchmarks.data_aware.choices import (
    RULES,
    run_path,
    run_rule,
    run_search,
    run_taken,
)


@pytest.mark.parametrize("factors", ["data", "weights"])
@pytest.mark.parametrize("method", RULES)
def test_a_rule_is_measured_at_its_ratios(tiny, method, factors):
    settings = {"network": tiny, "factors": factors, "method": method}
    found = run_rule(0, {**settings, "ratios": (0.3, 0.6), "images": 100})
    assert 1 <= len(found["points"]) <= 2
    assert all(0.0 < point["ratio"] <= 0.8 for point in found["points"])
    # The path looks at the whole network, too.
    expected = {"greedy": 9 * 2 * 500, "sensitivity": 2 * 50, "path": (1 + 3 * 2) * 50}
    assert found["images"] == expected.get(method, 0)


def test_rules_on_fitted_factors_lose_less_at_the_same_ratio(tiny):
    settings = {"network": tiny, "method": "fraction", "ratios": (0.3,), "images": 100}
    losses = {
        factors: run_rule(0, {**settings, "factors": factors})["points"][0]["loss"]
        for factors in ("data", "weights")
    }
    assert losses["data"] < losses["weights"]


def test_a_price_is_chosen_by_evaluations_and_nothing_is_certified(tiny):
    found = run_path(0, {"network": tiny, "factors": "data", "gamma": 0.5})
    assert found["stop_reason"] == "no_search"
    assert not found["holds"]
    assert found["evaluations"] == len(found["trials"]) > 1
    assert found["cpu_seconds"] > 0.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_search_is_measured_as_searched_and_as_returned(tiny):
    settings = {"network": tiny, "factors": "data", "gamma": 0.5}
    found = run_search(
        0, {**settings, "delta": 0.5, "relative": False, "max_trials": 12}
    )
    assert found["holds"]
    assert found["evaluations"] <= 12
    assert set(found["returned"]) == {"loss", "top1"}


def test_a_size_is_met_without_a_search(tiny):
    found = run_taken(0, {"network": tiny, "factors": "data", "ratio": 0.5})
    assert 0.3 < found["ratio"] <= 0.5
    assert found["evaluations"] == 1
