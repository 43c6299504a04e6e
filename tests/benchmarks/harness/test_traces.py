from __future__ import annotations

import json
from dataclasses import asdict

from benchmarks.harness import traces
from benchmarks.harness.traces import (
    Trace,
    append_trace,
    missing,
    provenance,
    read_traces,
    trace_file,
)


def trace(seed: int) -> Trace:
    return Trace("toy", {"gamma": 1.0}, seed, {"value": seed}, [{"trial": 0}])


def test_traces_are_read_as_they_were_written(tmp_path):
    append_trace(trace(0), tmp_path)
    append_trace(trace(1), tmp_path)
    assert read_traces("toy", tmp_path) == [trace(0), trace(1)]


def test_only_what_is_missing_is_left_to_run(tmp_path):
    keys = [trace(seed).key for seed in range(3)]
    assert missing(keys, "toy", tmp_path) == set(keys)
    append_trace(trace(1), tmp_path)
    assert missing(keys, "toy", tmp_path) == {keys[0], keys[2]}


def test_other_settings_are_another_run():
    other = Trace("toy", {"gamma": 2.0}, 0, {}, [])
    assert other.key != trace(0).key


def test_a_line_cut_off_by_a_kill_is_dropped_and_overwritten(tmp_path):
    append_trace(trace(0), tmp_path)
    with trace_file("toy", tmp_path).open("a") as file:
        file.write('{"benchmark": "toy", "sett')
    assert read_traces("toy", tmp_path) == [trace(0)]
    append_trace(trace(1), tmp_path)
    assert read_traces("toy", tmp_path) == [trace(0), trace(1)]


def test_full_files_are_put_aside_and_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_FULL", len(json.dumps(asdict(trace(0)))))
    for seed in range(12):
        append_trace(trace(seed), tmp_path)
    append_trace(Trace("toy_other", {}, 0, {}, []), tmp_path)
    assert len(traces.full_files("toy", tmp_path)) == 11
    assert read_traces("toy", tmp_path) == [trace(seed) for seed in range(12)]


def test_provenance_names_versions_and_threads():
    known = provenance(2)
    assert known["threads"] == 2
    assert known["versions"]["torch"]
