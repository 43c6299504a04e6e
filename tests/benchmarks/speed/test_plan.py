"""The parts of the plan."""

from __future__ import annotations

import pytest

from benchmarks.speed import plan as speed


def test_the_plan_asks_for_a_speed_and_predicts_at_two_batch_sizes():
    jobs = speed.plan(None)
    asked = [row for row, _ in jobs if row["part"] == "speedup" and row["search"]]
    assert asked
    assert {row["speedup"] for row in asked} == {2.0}
    batches = [row["batch"] for row, _ in speed.plan(9, part="prediction")]
    assert len(batches) == 2 == len(set(batches))
    assert all(speed.minutes(job) > 0 for job in jobs)
    with pytest.raises(ValueError, match="unknown settings"):
        speed.plan(None, colour="red")
