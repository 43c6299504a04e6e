"""The cost of a trial: plan and page."""

from __future__ import annotations

from benchmarks.cost import trial_speed
from benchmarks.cost.trial_speed import render_trial_speed
from benchmarks.harness.traces import Trace


def test_the_page_takes_the_median_of_the_ratios_of_rounds():
    result = {
        "trial": [1.0, 1.2, 3.0],
        "forward": [1.0, 1.0, 2.0],
        "naive": [3.0, 6.0, 9.0],
    }
    settings = {"network": "resnet18", "size": 224}
    trace = Trace("trial_speed", settings, 0, result, [], {"revision": "abc"})
    small = {"trial": [2.0], "forward": [2.0], "naive": []}
    other = {"network": "vgg16", "size": 64}
    second = Trace("trial_speed", other, 1, small, [], {"revision": "abc"})
    page = render_trial_speed([trace, second])
    row = "| resnet18 | 224 | 0 | 1.000 | 1.200 | 1.200 | <= 1.15 | 6.00 | 5.0 | >= 3 |"
    assert row in page
    assert "| vgg16 | 64 | 1 | 2.000 | 2.000 | 1.000 | - | - | - | - | abc |" in page


def test_the_networks_of_the_bars_are_in_the_plan():
    jobs = trial_speed.plan(1)
    assert {(j["network"], j["size"]) for j, _ in jobs} >= {
        *trial_speed.LEAST_OF_TRIAL,
        ("vgg16", 224),
    }
    assert all(trial_speed.minutes(job) > 0 for job in jobs)
