from __future__ import annotations

from dataclasses import replace

from benchmarks.cost import many_workers
from benchmarks.cost.many_workers_page import render_ray
from benchmarks.harness.traces import Trace, read_traces


def test_the_plan_is_what_the_traces_hold():
    planned = {Trace("ray", *job, {}, []).key for job in many_workers.plan(None)}
    assert planned == {trace.key for trace in read_traces("ray")}


def test_proposals_are_timed_while_trials_run():
    settings = {"part": "pending", "d": 2, "n": 8, "p": 2}
    trace = many_workers.run(0, settings)
    assert trace.result["cpu"] > 0.0
    assert len(trace.trials) == 5


def test_the_page_follows_the_traces():
    traces = read_traces("ray")
    two = next(t for t in traces if t.settings.get("workers") == 2)
    changed = replace(two, result={**two.result, "trials_a_minute": 4321.0})
    assert "4321.0" in render_ray([changed])
