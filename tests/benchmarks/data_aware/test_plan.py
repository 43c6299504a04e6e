"""The parts of the plan, and their order."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.data_aware import plan as data_aware
from benchmarks.data_aware.choices import RATIOS, RULES


def test_every_rule_is_one_run_on_data_aware_factors():
    """On those of the weights alone as well where no other benchmark has them."""
    jobs = data_aware.plan(7, part="rules")
    assert {seed for _, seed in jobs} == {0}
    assert len(jobs) == len(RULES) * (len(RATIOS) + 1)


def test_runs_on_the_same_factors_follow_each_other():
    jobs = data_aware.plan(2, part="path", network="resnet18")
    made = [(row["factors"], seed) for row, seed in jobs]
    changes = sum(one != other for one, other in itertools.pairwise(made))
    assert changes == len(set(made)) - 1


def test_searches_are_those_of_the_issue():
    jobs = data_aware.plan(None, part="shared", network="resnet18", gamma=0.02)
    usual = [
        seed
        for row, seed in jobs
        if row["coordinates"] == data_aware.COORDINATES and row.get("clip", True)
    ]
    assert usual == list(range(10))
    assert all(data_aware.minutes(job) > 0 for job in data_aware.plan(None))
    with pytest.raises(ValueError, match="unknown settings"):
        data_aware.plan(None, colour="red")
