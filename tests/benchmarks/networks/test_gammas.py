"""Several gammas from one run: the plan and what the page makes of the traces."""

from __future__ import annotations

from benchmarks.harness.traces import Trace
from benchmarks.networks import gammas
from benchmarks.networks.gammas import render_gammas


def rows(evaluations, excess):
    return [
        {
            "gamma": gamma,
            "holds": True,
            "evaluations": number,
            "ratio": 0.07,
            "objective": gamma + excess,
            "top1": 0.975,
        }
        for gamma, number in zip(gammas.GAMMAS, evaluations, strict=True)
    ]


def trace(seed, shared, alone):
    settings = {"level": "joint", "epsilon": 0.05}
    result = {"shared": rows(shared, 0.01 * seed), "alone": rows(alone, 0.0)}
    return Trace("gammas", settings, seed, result, [], {"revision": "abc"})


def test_each_level_is_run_on_the_seeds_that_are_asked_for():
    jobs = gammas.plan(2)
    assert [seed for _, seed in jobs] == [0, 1, 0, 1]
    assert all(gammas.minutes(job) > 0 for job in jobs)


def test_the_page_weighs_all_evaluations_against_those_of_one():
    page = render_gammas(
        [
            trace(0, [14, 14, 15, 19, 21], [14, 16, 18, 23, 29]),
            trace(2, [20, 21, 22, 25, 30], [20, 20, 20, 20, 20]),
        ]
    )
    assert "| 0 | 21 | 14 | 14, 16, 18, 23, 29 | 1.50 | 1.17 | 0.21 |" in page
    assert "| 2 | 30 | 20 | 20, 20, 20, 20, 20 | 1.50 | 1.50 | 0.30 |" in page
    assert "| median |  |  |  | 1.50 | 1.33 | " in page
    # The best network of a gamma is that of any run; the largest excess is seed 2's.
    assert "| 0.001 | one run | 2/2 | 0.010 (0.020) | 7.0 | 97.50 |" in page
    assert "| 0.001 | separate | 2/2 | 0.000 (0.000) |" in page
