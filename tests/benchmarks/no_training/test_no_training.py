"""The table of networks cut without training."""

from __future__ import annotations

import pytest

from benchmarks.harness.traces import Trace
from benchmarks.no_training import plan as no_training
from benchmarks.no_training import runs
from benchmarks.no_training.page import render_no_training
from benchmarks.no_training.runs import METHODS, RATIOS, SEARCH, run_rows
from tests.benchmarks.data_aware.conftest import tiny

__all__ = ["tiny"]
SHORT = {"ratios": (0.4, 0.7), "images": 100}


@pytest.mark.parametrize("factors", ["data", "weights"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_stays_within_every_ratio(tiny, method, factors):
    settings = no_training.cut(tiny, factors, method) | SHORT
    rows = run_rows(0, settings)["rows"]
    assert [row["asked"] for row in rows] == [0.4, 0.7]
    assert all(0.0 < row["ratio"] <= row["asked"] for row in rows)
    assert all(0.0 <= row["agreement"] <= 1.0 for row in rows)
    # Rules look at no image; fitted factors and the refit do.
    assert all((row["images"] > 0) == (factors == "data" or method == "path")
               for row in rows)  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_search_is_a_row_like_any_other(tiny, monkeypatch):
    monkeypatch.setattr(runs, "MAX_TRIALS", 9)
    settings = no_training.cut(tiny, "data", SEARCH) | SHORT | {"ratios": (0.6,)}
    (row,) = run_rows(0, settings)["rows"]
    assert 0.0 < row["ratio"] <= 0.6
    assert row["images"] > 0
    assert isinstance(row["certified"], bool)


def test_the_plan_takes_imagenet_only_where_it_is_asked_for():
    jobs = no_training.plan(None)
    assert not any("imagenet" in row["network"] for row, _ in jobs)
    asked = no_training.plan(1, source="imagenet")
    assert asked
    assert all(row["network"].startswith("imagenet") for row, _ in asked)
    assert all(no_training.minutes(job) > 0 for job in (*jobs, *asked))


def trace(method, factors, seed, top1, certified=None):
    row = {"whole": 0.3, "agreement": 0.9, "images": 800, "cpu_seconds": 5.0}
    row |= {"top1": top1, "top1_original": 0.8, "certified": certified}
    rows = [{**row, "asked": ratio, "ratio": ratio} for ratio in RATIOS]
    settings = no_training.cut("resnet18", factors, method)
    return Trace("no_training", settings, seed, {"rows": rows}, [], {"revision": "a"})


def test_the_page_names_the_best_method_whoever_it_is():
    files = render_no_training(
        [
            trace("path", "data", 0, 0.7),
            trace("path", "data", 1, 0.72),
            trace("fraction", "weights", 0, 0.75),
            trace(SEARCH, "data", 0, 0.6, certified=True),
        ]
    )
    page = files["no_training.md"]
    assert "at 10 % one fraction of all ranks with factors of the weights" in page
    assert "71.00 (70.00-72.00)" in page
    assert "| 1/1 |" in page
    assert "figures/no_training_resnet18.svg" in files
