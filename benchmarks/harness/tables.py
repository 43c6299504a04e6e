"""Markdown tables, and numbers as the pages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.traces import Trace


def table(header: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table, and the empty one after it.

    Args:
        header: Names of the columns, separated by `|`.
        rows: Cells of each row.
    """
    return [
        f"| {header} |",
        "|" + "---|" * (header.count("|") + 1),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
    ]


def opening(title: str, measured: str, reading: str, *benchmarks: str) -> list[str]:
    """Title and first paragraphs of a page.

    Args:
        title: Of the page.
        measured: What was measured.
        reading: How to read the tables.
        benchmarks: What to run to repeat it, options included.
    """
    again = " and ".join(f"`python -m benchmarks run {name}`" for name in benchmarks)
    return [f"# {title}", "", f"{measured} To repeat it, run {again}.", "", reading, ""]


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Lines that a reader unfolds."""
    return [
        '<details markdown="1">',
        f"<summary>{summary}</summary>",
        "",
        *lines,
        "</details>",
        "",
    ]


def command(name: str, *options: str) -> list[str]:
    """The command that measures the runs of a benchmark again, as a block."""
    return ["```", " ".join(["python -m benchmarks run", name, *options]), "```", ""]


def described(settings: Mapping[str, Any]) -> str:
    """Settings as a title."""
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def revisions(traces: Iterable[Trace]) -> str:
    """The revisions of the code that the runs were made with."""
    names = sorted({trace.provenance["revision"] for trace in traces})
    return f"Revisions {', '.join(names)}."


def median(values: Sequence[float], digits: int) -> str:
    """Median, `-` of nothing."""
    return f"{np.median(values):,.{digits}f}" if len(values) else "-"


def stopped_after(stops: Sequence[Mapping[str, Any] | None]) -> str:
    """Median and quartiles of the evaluations at which a rule stopped.

    Args:
        stops: One per run; None where the rule did not stop it, which counts as later
            than every other.
    """
    numbers = [np.inf if stop is None else stop["evaluations"] for stop in stops]
    low, middle, high = (
        f"{number:.0f}" if math.isfinite(number) else "never"
        for number in np.quantile(numbers, (0.25, 0.5, 0.75), method="higher")
    )
    return f"{middle} ({low}-{high})"


def spread(values: Sequence[float], digits: int) -> str:
    """Median and range; one value by itself."""
    low, middle, high = (
        f"{value:,.{digits}f}"
        for value in (min(values), float(np.median(values)), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def quartiles(values: Sequence[float]) -> str:
    """Median and quartiles; one value by itself, `-` where one is missing."""
    if not len(values) or not all(map(math.isfinite, values)):
        return "-"
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    if len(values) == 1:
        return f"{middle:.4g}"
    return f"{middle:.4g} ({low:.4g}-{high:.4g})"
