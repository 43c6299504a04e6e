from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.traces import PAGES, Trace, append_trace, read_traces
from benchmarks.report import rendered, write_reports


def test_interval_of_a_share_is_exact():
    # The rule of three: no failure in 20 runs leaves 1 - 0.025 ** (1 / 20).
    assert clopper_pearson(20, 20) == "20/20 (0.83-1.00)"
    assert clopper_pearson(0, 20) == "0/20 (0.00-0.17)"


def test_tables_follow_the_traces(tmp_path):
    """A trace that says otherwise gives a table that says otherwise."""
    traces = read_traces("fc3")
    assert traces, "the committed traces are missing"
    append_trace(traces[0], tmp_path)
    write_reports(tmp_path, tmp_path)
    page = (tmp_path / "fc3.md").read_text()
    assert f"| {traces[0].result['evaluations']} |" in page
    changed: Trace = replace(
        traces[0], seed=77, result={**traces[0].result, "evaluations": 4321}
    )
    append_trace(changed, tmp_path)
    write_reports(tmp_path, tmp_path)
    assert "| 77 | 4321 |" in (tmp_path / "fc3.md").read_text()


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """Every page and figure, from the committed traces."""
    return rendered()


def test_committed_pages_are_those_that_the_traces_give(files):
    """All of them, word for word, and no page or figure is left from another time."""
    for path, text in files.items():
        assert (PAGES / path).read_text(encoding="utf-8") == text, path
    there = {p.relative_to(PAGES).as_posix() for p in PAGES.rglob("*.*")}
    assert there == set(files)


def test_links_between_pages_lead_somewhere(files):
    for path, text in files.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert ((PAGES / path).parent / link).is_file(), (path, link)
