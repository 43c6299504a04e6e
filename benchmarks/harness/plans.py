"""Which runs of a benchmark's plan to do, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def matching(
    rows: Iterable[dict[str, Any]], changes: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the settings that agree with `changes`, in their order.

    Rows of several parts have different settings; one without a setting that is to be
    changed does not agree.

    Raises:
        ValueError: When a change names a setting that no row has, or no row agrees.
    """
    rows = list(rows)
    known = dict.fromkeys(name for row in rows for name in row)
    if set(changes) - set(known):
        raise ValueError(f"unknown settings in {[*changes]}, known: {[*known]}")
    agreeing = [
        row
        for row in rows
        if all(name in row and row[name] == value for name, value in changes.items())
    ]
    if not agreeing:
        found = {
            name: list(dict.fromkeys(row[name] for row in rows if name in row))
            for name in changes
        }
        raise ValueError(
            f"no runs with {changes}; values in the plan: {found}. On the command line "
            "true, false and null are written as in JSON."
        )
    return agreeing


Plan = Sequence[tuple[dict[str, Any], int, float]]
"""Settings, each with its number of runs and the core-minutes of one, measured."""


def planned(
    rows: Plan, seeds: int | None, **changes: Any
) -> list[tuple[dict[str, Any], int]]:
    """Settings and seed of each run to do, in order of the rows.

    Args:
        rows: The whole plan.
        seeds: Runs of each setting; None for the plan's.
        changes: Values that a setting must have.

    Raises:
        ValueError: As `matching`.
    """
    wanted = matching((row for row, _, _ in rows), changes)
    return [
        (row, seed)
        for row, runs, _ in rows
        if row in wanted
        for seed in range(seeds or runs)
    ]


def minutes_of(rows: Plan, job: tuple[dict[str, Any], int]) -> float:
    """Core-minutes of one run."""
    return next(cost for row, _, cost in rows if row == job[0])
