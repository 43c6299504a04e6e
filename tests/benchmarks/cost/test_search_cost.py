"""The cost of whole searches: the stand-in, the plan and the page."""

from __future__ import annotations

import pytest

from benchmarks.cost import search_cost
from benchmarks.cost.search_cost import StandIn, render_search_cost
from benchmarks.harness.traces import Trace


@pytest.mark.parametrize("d", search_cost.MOST_SECONDS)
def test_the_stand_in_is_its_known_part_and_an_error_that_is_not_negative(d):
    problem = StandIn(d, seed=0)
    known = problem.known.on(tuple((k, tuple(v)) for k, v in problem.edges.items()))
    dense = dict.fromkeys(problem.edges, 1.0)
    assert problem.observe(dense, 0)[0] == pytest.approx(1.0)
    assert known(dense) == pytest.approx(1.0)
    for point in problem.first_points():
        value, sem = problem.observe(point, 1)
        assert value >= known(point) > 0.0
        assert sem > 0.0


def test_every_bar_is_in_the_plan():
    assert {job["d"] for job, _ in search_cost.plan(1)} == {*search_cost.MOST_SECONDS}


def test_the_page_tells_refused_checks_from_those_that_certify():
    result = {
        "trials": 5,
        "holds": True,
        "failure_probability": 0.04,
        "reached": ["pairwise", "marginal", "marginal"],
        "draws": [0, 16, 500],
        "seconds": [0.1, 0.2, 0.3, 0.9],
    }
    trace = Trace("search_cost", {"d": 8}, 0, result, [], {"revision": "abc"})
    row = "| 8 | 1/1 | 5 | 0.30 (0.30-0.30) | 0.20 | 0.30 | <= 0.15 |"
    assert row in render_search_cost([trace])
