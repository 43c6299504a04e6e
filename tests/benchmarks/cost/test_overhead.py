from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.cost import overhead
from benchmarks.cost.overhead_page import render_overhead
from benchmarks.harness.traces import read_traces


def test_an_inner_part_is_taken_off_the_one_around_it(monkeypatch):
    now = 0.0
    monkeypatch.setattr(overhead, "time", SimpleNamespace(process_time=lambda: now))
    clock = overhead.Clock()
    with clock.part("propose"):
        now += 2.0
        with clock.part("certificate"):
            now += 5.0
    assert clock.seconds["certificate"] == 5.0
    assert clock.seconds["propose"] == 2.0


# Ax's default acquisition, which the benchmark compares with.
@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_trial_add_up_and_doors_agree(monkeypatch):
    monkeypatch.setattr(overhead, "_MEASURED", 1)
    settings = {"what": "cost", "door": "Client", "d": 2, "n": 8, "delta": 0.1}
    result = overhead.run(0, {**settings, "most": 0}).result
    for trials in result["trials"].values():
        (trial,) = trials
        parts = sum(trial[part] for part in overhead.PARTS)
        assert trial["total"] == pytest.approx(parts)
        assert min(trial.values()) >= 0.0
    assert result["trials"]["ax"][0]["certificate"] == 0.0
    assert result["trials"]["pac"][0]["certificate"] > 0.0
    door = {"what": "door", "d": 1, "n": 0, "delta": 1.0, "most": 14}
    one, two = (
        overhead.run(0, {**door, "door": name}).result
        for name in ("Client", "AxClient, stopping strategy")
    )
    for name in ("trials", "holds", "certificates"):
        assert one[name] == two[name]
    assert one["score"] == pytest.approx(two["score"], abs=1e-6)


def test_the_page_follows_the_traces():
    traces = read_traces("overhead")
    (cost, *_) = [trace for trace in traces if trace.settings["what"] == "cost"]
    changed = [{**t, "total": 1234.5} for t in cost.result["trials"]["ax"]]
    result = {**cost.result, "trials": {**cost.result["trials"], "ax": changed}}
    assert "1234.500" in render_overhead([replace(cost, result=result)])
