from __future__ import annotations

import gzip
import json
import zlib

import pytest

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


def test_a_run_cut_off_anywhere_is_left_out_with_a_warning_and_overwritten(tmp_path):
    file = trace_file("toy", tmp_path)
    append_trace(trace(0), tmp_path)
    whole = len(file.read_bytes())
    append_trace(trace(1), tmp_path)
    both = file.read_bytes()
    for end in range(whole + 1, len(both)):
        file.write_bytes(both[:end])
        with pytest.warns(UserWarning, match="toy.jsonl.gz: the last run was cut off"):
            assert read_traces("toy", tmp_path) == [trace(0)]
        append_trace(trace(1), tmp_path)
        assert file.read_bytes() == both
    assert read_traces("toy", tmp_path) == [trace(0), trace(1)]


def test_damage_is_an_error_and_not_an_end(tmp_path):
    append_trace(trace(0), tmp_path)
    file = trace_file("toy", tmp_path)
    damaged = bytearray(file.read_bytes())
    damaged[-6] ^= 1  # in the checksum
    file.write_bytes(damaged)
    with pytest.raises(zlib.error, match="incorrect data check"):
        read_traces("toy", tmp_path)
    with pytest.raises(zlib.error, match="incorrect data check"):
        append_trace(trace(1), tmp_path)
    assert file.read_bytes() == damaged


def test_any_gzip_program_reads_a_file_and_writes_one(tmp_path):
    for seed in range(3):
        append_trace(trace(seed), tmp_path)
    file = trace_file("toy", tmp_path)
    text = gzip.decompress(file.read_bytes())
    assert [json.loads(line)["seed"] for line in text.splitlines()] == [0, 1, 2]
    file.write_bytes(gzip.compress(text))  # all runs in one member
    append_trace(trace(3), tmp_path)
    assert read_traces("toy", tmp_path) == [trace(seed) for seed in range(4)]


def test_full_files_are_put_aside_and_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_FULL", 1)
    for seed in range(12):
        append_trace(trace(seed), tmp_path)
    append_trace(Trace("toy_other", {}, 0, {}, []), tmp_path)
    assert len(traces.full_files("toy", tmp_path)) == 11
    assert read_traces("toy", tmp_path) == [trace(seed) for seed in range(12)]


def test_provenance_names_versions_and_threads():
    known = provenance(2)
    assert known["threads"] == 2
    assert known["versions"]["torch"]
