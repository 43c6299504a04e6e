"""What certificates promised and what was kept, one table from all benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.calibration.searches import DELTA, EPSILON
from benchmarks.harness.intervals import clopper_pearson, share_interval
from benchmarks.harness.tables import described, opening, table
from benchmarks.harness.traces import Trace, by_settings


class _Stop(NamedTuple):
    """Where a run was certified."""

    evaluations: int
    regret: float


def _of_fitted(result: dict[str, Any]) -> _Stop | None:
    stop = result["stops"].get("marginal")
    return None if stop is None else _Stop(stop["evaluations"], stop["regret"])


def _of_misfit(result: dict[str, Any]) -> _Stop | None:
    return _Stop(result["evaluations"], result["regret"]) if result["holds"] else None


def _of_known_part(result: dict[str, Any]) -> _Stop | None:
    stop = result["stop"]
    return None if stop is None else _Stop(stop["evaluations"], stop["regret"])


# Benchmark, what its functions are, and where a run stopped.
_SOURCES: tuple[tuple[str, str, Callable[[dict[str, Any]], _Stop | None]], ...] = (
    ("fitted", "as the model takes them, or test functions", _of_fitted),
    ("known_part", "with a part that is known", _of_known_part),
    ("misfit", "of other kinds, or with noise of other kinds", _of_misfit),
)


def render_kept(*traces: Sequence[Trace]) -> str:
    """One row per kind of function and noise, worst first; traces as in `_SOURCES`."""
    lines = opening(
        "What was promised and what was kept",
        "Every search of these benchmarks that ended by a certificate of level "
        f"`marginal` promised to be within delta = {DELTA} of the best value with "
        f"probability {1 - EPSILON:.2f}. *Right* counts those that were, with the "
        "Clopper-Pearson interval (95 %). Where few were certified, the certificate "
        "withheld its promise instead of breaking it.",
        "The best values are known. Rows whose interval lies below the promise are "
        "marked with **broken**.",
        *(name for name, _, _ in _SOURCES),
    )
    for (_, what, stop_of), of_name in zip(_SOURCES, traces, strict=True):
        if not of_name:
            continue
        lines += [f"## Functions {what}", ""]
        rows = sorted(
            (_row(group, stop_of) for group in by_settings(of_name)),
            key=lambda row: row[0],
        )
        lines += table(
            "functions and noise | runs | certified | evaluations, median | right | ",
            (cells for _, cells in rows),
        )
    return "\n".join(lines)


def _row(
    group: Sequence[Trace], stop_of: Callable[[dict[str, Any]], _Stop | None]
) -> tuple[float, list[object]]:
    """Return the share that was right, and the cells."""
    stops = [stop_of(trace.result) for trace in group]
    made = [stop for stop in stops if stop is not None]
    title = described(dict(sorted(group[0].settings.items())))
    if not made:
        return 2.0, [title, len(group), 0, "-", "-", ""]
    good = sum(stop.regret <= DELTA for stop in made)
    _, highest = share_interval(good, len(made))
    return good / len(made), [
        title,
        len(group),
        len(made),
        f"{np.median([stop.evaluations for stop in made]):.0f}",
        clopper_pearson(good, len(made)),
        "**broken**" if highest < 1.0 - EPSILON else "",
    ]
