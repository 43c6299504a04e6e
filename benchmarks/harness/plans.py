"""Which runs of a benchmark's plan to do, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def matching(
    rows: Iterable[dict[str, Any]], changes: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the settings that agree with `changes`, in their order.

    Raises:
        ValueError: When a change names a setting that the rows do not have.
    """
    rows = list(rows)
    if set(changes) - set(rows[0]):
        raise ValueError(f"unknown settings in {[*changes]}, known: {[*rows[0]]}")
    return [
        row
        for row in rows
        if all(row[name] == value for name, value in changes.items())
    ]


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
        ValueError: When a change names a setting that the rows do not have.
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
