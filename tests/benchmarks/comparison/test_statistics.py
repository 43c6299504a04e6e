"""Statistics of the comparison against closed forms, and its page from made-up runs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.comparison.claims import claims, kept
from benchmarks.comparison.fabolas_page import render_fabolas
from benchmarks.comparison.page import comparison_pages
from benchmarks.comparison.plan import settings
from benchmarks.comparison.setting_page import page_name
from benchmarks.comparison.statistics import (
    Run,
    fewest_pairs,
    holm,
    hypervolume,
    median_interval,
    paired,
    signed_rank,
)
from benchmarks.harness.traces import Trace, read_traces

TOGETHER = "comparison/all_gammas.md"


def made_up(
    method: str, seed: int, objectives: list[float], seconds: float = 1.0
) -> Trace:
    """A run on ResNet18 whose clocks and objectives are given."""
    trials = [
        {
            **{"cost": 70.0, "samples": 50, "own": value, "common": value},
            "evaluate": [0.5 * seconds, seconds],
            "fit": [0.25 * seconds, seconds],
            "propose": [0.25 * seconds, seconds],
        }
        for value in objectives
    ]
    final = {"objective": objectives[-1], "ratio": 0.2, "top1": 0.7}
    result = {
        "stopped": method.startswith("pac"),
        "evaluations": len(trials),
        "samples": 50 * len(trials),
        "setup_samples": 0,
        "last_ask": [0.0, 0.0],
        "delta": 0.05,
        "own": final,
        "common": final,
        "stops": {},
    }
    return Trace(
        "comparison",
        settings("resnet18", method),
        seed,
        result,
        trials,
        {"revision": "abc"},
    )


def test_holm_is_the_step_down_of_its_source():
    # Three tests: .01 x 3, .03 x 2 and .04 x 1, never falling.
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": math.nan})
    assert corrected["b"] == pytest.approx(0.03)
    assert corrected["c"] == pytest.approx(0.06)
    assert corrected["a"] == pytest.approx(0.06)
    assert math.isnan(corrected["d"])


def test_the_signed_rank_test_is_exact_for_five_pairs():
    # All of one sign: 1 of 32 sign patterns, twice for two sides.
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0], "greater") == pytest.approx(1 / 32)
    assert fewest_pairs(0.05) == 5
    assert fewest_pairs(0.025) == 6
    assert math.isnan(signed_rank([0.0, 0.0]))


def test_hypervolume_is_the_area_of_a_staircase():
    # Rectangles (60 - 30) x (70 - 50) and (30 - 20) x (60 - 50); one is dominated.
    points = [(30.0, 70.0), (20.0, 60.0), (40.0, 55.0)]
    assert hypervolume(points) == pytest.approx(30 * 20 + 10 * 10)
    assert hypervolume([(70.0, 90.0)]) == 0.0
    assert hypervolume([]) == 0.0


def test_the_interval_of_a_median_covers_as_often_as_it_says():
    """400 samples of 15; the share that cover is binomial, bound at three errors."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        low, _, high = median_interval(rng.exponential(size=15))
        covered += low <= math.log(2.0) <= high
    # Bootstrap intervals of a median are a little short at this size: 90 % at least.
    assert covered >= binom.ppf(0.0015, 400, 0.90)


def test_runs_are_paired_by_seed_and_by_nothing_else():
    left = [Run(made_up("random", seed, [1.0])) for seed in (0, 1, 2)]
    right = [Run(made_up("pac", seed, [1.0])) for seed in (2, 1, 7)]
    pairs = [(a.trace.seed, b.trace.seed) for a, b in paired(left, right)]
    assert pairs == [(1, 1), (2, 2)]


def test_a_time_that_was_not_reached_is_censored():
    run = Run(made_up("random", 0, [3.0, 2.0, 1.0]))
    assert run.time_to(2.0, limit=10.0) == (2.0, True)
    assert run.time_to(2.0, limit=1.5) == (1.5, False)
    assert run.time_to(0.5, limit=10.0) == (3.0, False)
    assert run.objective_at(run.seconds, 2.5) == 2.0
    assert math.isnan(run.objective_at(run.seconds, 0.5))


def test_the_pages_say_who_wins_by_how_much():
    traces = []
    for seed in range(6):
        end = 0.2 + 0.01 * seed
        traces.append(made_up("pac", seed, [0.9, 0.5, end]))
        traces.append(made_up("random", seed, [0.9, 0.8, 0.7, end, end]))
    pages = comparison_pages(traces)
    page = pages["comparison/resnet18_0.02_50.md"]
    # At PAC's three evaluations random has .7; the exact p of six pairs is 2 / 64.
    (row,) = (r for r in page.splitlines() if r.startswith("| random | 6 | 0.7 ("))
    assert "| 0.475 (0.45" in row
    assert row.rstrip().endswith("| 0.0312 |")
    # It gets there after four seconds of PAC's three.
    assert "| 6/6 | 1.33 (1.33 to 1.33) |" in page
    assert "--set problem=resnet18 --set gamma=0.02 --set num_samples=50" in page
    figure = pages["figures/comparison_resnet18_0.02_50.svg"]
    assert figure.count("<polyline") == 2
    overview = pages["comparison.md"]
    assert "| [resnet18, gamma 0.02](comparison/resnet18_0.02_50.md) | 6 " in overview
    assert "within delta of it in 1 of 1 settings." in overview


def test_one_lucky_seed_does_not_win():
    """Random search is best on one seed, and was not run on the other."""
    traces = [made_up("pac", seed, [0.9, 0.2]) for seed in (0, 1)]
    traces.append(made_up("random", 0, [0.9, 0.1]))
    overview = comparison_pages(traces)["comparison.md"]
    assert "| **pac** | **0.2000** | 0.2000 |" in overview
    assert "| 0.1000\\* |" in overview
    assert "Best median J in 1 settings: `pac` 1." in overview


def test_what_the_overview_says_of_a_far_end():
    traces = [made_up("pac", 0, [0.9, 0.4]), made_up("random", 0, [0.9, 0.1])]
    overview = comparison_pages(traces)["comparison.md"]
    assert "0 of 1 settings, further away on resnet18, gamma 0.02 (by 0.30)" in overview


def test_a_faithful_run_that_was_not_made_is_multiplied_and_said_to_be():
    profile = {
        **{"models": 36, "stages": {"gain": 20.0}, "floors": {"gain": 10.0}},
        "lean": {"fit": 0.5, "propose": 0.5},
    }
    profiles = [Trace("fabolas_profile", {"d": 9, "n": 30}, 0, profile, [], {})]
    # Three trials of ten seconds: 30 iterations of 20 seconds are 20 times that.
    page = render_fabolas(profiles, [made_up("pac", 0, [0.9, 0.5, 0.2], 10.0)])
    assert "| pac | 30.0 | d = 9, n = 30 | 600 | 20 |" in page
    assert "their time is a product" in page
    assert "Extrapolated" not in render_fabolas(profiles)


def test_a_faithful_run_that_was_made_stands_beside_ours():
    runs = [made_up("pac", seed, [0.9, 0.5, 0.2], 10.0) for seed in (0, 1)]
    runs.append(made_up("fabolas_faithful", 1, [0.9, 0.6], 300.0))
    page = render_fabolas([], runs)
    assert "| pac | 1 | 600 | 30.0 | 20 | 0.600 | 0.200 |" in page
    assert "Whole runs" not in render_fabolas([], runs[:2])


def test_a_claim_holds_by_its_interval_and_not_by_one_run():
    def cells(seeds: int, fabolas_seconds: float, seconds: float = 1.0) -> list[str]:
        runs = {
            method: [Run(made_up(method, seed, values, s)) for seed in range(seeds)]
            for method, values, s in (
                ("pac", [0.9, 0.2], seconds),
                ("fabolas_lean", [0.9, 0.5, 0.2], fabolas_seconds),
                ("ax_default", [0.9, 0.3, 0.19], 2.0),
                ("random", [0.9, 0.8, 0.7], 1.0),
            )
        }
        (row,) = (line for line in claims(runs) if line.startswith("| pac |"))
        return [cell.strip() for cell in row.split("|")[2:-1]]

    # 9 seconds against 2; 6 against 2; worse by .01; .8 against .2 at p = 2 ** -8.
    assert cells(8, 3.0) == [
        "4.50 (4.50 to 4.50), 8 pairs, not reached in 0: **yes**",
        "3.00 (3.00 to 3.00), 8 pairs: **yes**",
        "+0.0100 (+0.0100 to +0.0100), 8 pairs: **yes**",
        "+0.6000 (+0.6000 to +0.6000), p = 0.00391, 8 of 8 pairs: **yes**",
    ]
    # Ours took four seconds, random search was followed for three.
    assert cells(8, 3.0, 2.0)[3] == "0 of 8 pairs: too few runs"
    assert cells(8, 2.0)[0].endswith(": no")
    assert all(cell.endswith(": too few runs") for cell in cells(2, 3.0))


def test_a_certificate_is_held_against_the_best_that_any_method_found():
    def runs(best: float) -> dict[str, list[Run]]:
        return {
            "pac_joint": [Run(made_up("pac_joint", s, [0.9, 0.3])) for s in range(3)],
            "pac": [Run(made_up("pac", 0, [0.9, 0.24])), Run(made_up("pac", 1, [9.0]))],
            # Not where it ended: on the way.
            "random": [Run(made_up("random", 0, [0.9, best, 0.5]))],
        }

    first, second = runs(0.2), runs(0.26)
    first["pac"][1].trace.result["stopped"] = False
    second["pac"].pop()
    page = kept([first, second])
    assert "(0.2, 0.24;" in page[2]  # in the second one it is PAC's own
    assert page[6:] == [
        "| pac_joint | 6 of 6 | 0.0800 | 0.1000 | 6 |",
        "| pac | 2 of 3 | 0.0200 | 0.0400 | 0 |",
        "",
    ]
    for run in first["random"]:
        run.trace.result["optimum"] = 0.1
    assert "(0.1;" in kept([first])[2]


def test_over_all_weights_a_seed_counts_that_was_run_at_each():
    traces = []
    for gamma, seeds in ((0.02, 6), (0.05, 4)):
        for method, values in (("pac", [0.9, 0.2]), ("ax_default", [0.9, 0.3, 0.19])):
            for seed in range(seeds):
                trace = made_up(method, seed, values, 2.0)
                changed = {**trace.settings, "gamma": gamma}
                traces.append(dataclasses.replace(trace, settings=changed))
    # Four seeds at two weights; the two that only one of them has are left out.
    pages = comparison_pages(traces)
    assert "| pac | 1.50 (1.50 to 1.50), 8 pairs: no |" in pages[TOGETHER]
    assert "| pac | 8 | 0.010 | 4.0 | 2 | 8 of 8 |" in pages["comparison.md"]
    assert "| pac |" not in comparison_pages(traces[:12])[TOGETHER]


def test_nothing_that_was_measured_is_left_out():
    """Every method of every setting has its row on the page of the setting."""
    traces = read_traces("comparison")
    pages = comparison_pages(traces)
    for trace in traces:
        rows = pages[f"comparison/{page_name(trace.settings)}.md"]
        assert f"\n| {trace.settings['method']} | " in rows
        assert trace.provenance["revision"] in rows
