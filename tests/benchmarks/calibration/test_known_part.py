from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.calibration import known_part


def test_no_point_is_below_the_smallest_value():
    for name in ("gp", "shifted", "positive"):
        unknown, floor = known_part.drawn_unknown(name, 2, seed=1)
        tables = known_part.known_tables(2, seed=1)
        smallest = known_part.smallest_value(lambda X: tables(X) + unknown(X), 2, 1)  # noqa: B023
        line = torch.linspace(0, 1, 41, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line)
        assert float((tables(grid) + unknown(grid)).min()) >= smallest - 1e-3
        if floor is not None:
            assert float(unknown(grid).min()) >= floor


def test_tables_increase_and_vary_by_as_much_in_all():
    tables = known_part.known_tables(4, seed=3)
    corners = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    low, high = tables(corners).tolist()
    assert high - low == pytest.approx(3.0)


@pytest.fixture(scope="module")
def trace():
    """One run, with a weaker promise than the benchmark's, which is met sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_part, "EPSILON", 0.3)
        patch.setattr(known_part, "NOISE", 0.02)
        yield known_part.run(0, known_part.settings("shifted", "clipped", 2))


def test_a_search_with_a_floor_ends_by_its_certificate(trace):
    stop = trace.result["stop"]
    assert stop["evaluations"] == trace.result["evaluations"] <= 60
    assert stop["regret"] <= known_part.DELTA
    assert 0.0 < stop["worse_incumbent"] < stop["failure_probability"] <= 0.3
    assert 0.0 < stop["can_win"] < 1.0


def test_the_page_counts_runs_that_never_ended_and_those_that_were_wrong(trace):
    wrong = {**trace.result["stop"], "regret": 0.5, "check": 1}
    traces = [
        trace,
        dataclasses.replace(trace, seed=1, result={"stop": None}),
        dataclasses.replace(trace, seed=2, result={"stop": wrong}),
    ]
    page = known_part.render_known_part(traces)
    assert "| shifted | clipped | 2/3 " in page
    assert "1/2 (0.01-0.99) | 0.500 | 1 |" in page
