"""As many samples as the search costs: plan and page."""

from __future__ import annotations

from benchmarks.harness.traces import Trace
from benchmarks.networks import sample_size
from benchmarks.networks.sample_size import render_sample_size


def test_both_numbers_of_samples_are_run_seed_by_seed():
    jobs = sample_size.plan(2, gamma=0.02)
    assert [(row["num_samples"], seed) for row, seed in jobs] == [
        (50, 0),
        ("auto", 0),
        (50, 1),
        ("auto", 1),
    ]
    assert all(sample_size.minutes(job) > 0 for job in jobs)


def test_the_page_has_a_row_for_each_number_of_samples():
    traces = []
    for row, seed in sample_size.plan(2, gamma=0.02):
        auto = row["num_samples"] == "auto"
        result = {
            "holds": True,
            "evaluations": 40 - seed,
            "num_samples": 200 if auto else 50,
            "seconds": 30.0 if auto else 60.0,
            "timings": {"evaluate": 9.0},
            "loss": 5.0,
            "ratio": 0.2,
            "top1": 0.79,
        }
        provenance = {"revision": "abc", "threads": 1}
        traces.append(Trace("sample_size", row, seed, result, [], provenance))
    page = render_sample_size(traces)
    start = "| 0.02 | auto | 2 | 200 (200-200) | 2/2 | 40 (39-40) | 30 (30-30) |"
    assert start in page
    assert "| 0.02 | 50 | 2 | 50 (50-50) | 2/2 | 40 (39-40) | 60 (60-60) |" in page
    assert "| 0.300 (0.300-0.300) | 79.00 (79.00-79.00) |" in page
