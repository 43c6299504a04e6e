"""Which runs of a plan a command asks for."""

import pytest

from benchmarks.harness.plans import matching, planned

pytestmark = pytest.mark.benchmarks

ROWS = [{"part": "a", "relative": False}, {"part": "b"}]


def test_rows_without_a_setting_do_not_agree_with_a_change_of_it() -> None:
    assert matching(ROWS, {"relative": False}) == ROWS[:1]
    assert matching(ROWS, {}) == ROWS


@pytest.mark.parametrize("change", [{"relative": "False"}, {"part": "c"}])
def test_a_value_that_no_row_has_is_refused_with_those_that_there_are(
    change: dict[str, str],
) -> None:
    with pytest.raises(ValueError, match=r"no runs with .*values in the plan: .*JSON"):
        matching(ROWS, change)


def test_a_setting_that_no_row_has_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown settings"):
        matching(ROWS, {"gamma": 1.0})


def test_seeds_given_replace_those_of_the_plan() -> None:
    plan = [(ROWS[0], 2, 1.0), (ROWS[1], 1, 1.0)]
    assert len(planned(plan, None)) == 3
    assert planned(plan, 3, part="b") == [(ROWS[1], seed) for seed in range(3)]
