"""What the search is claimed to do, and whether these runs show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.comparison.statistics import (
    CENSORED_AT,
    Run,
    fewest_pairs,
    median_interval,
    paired,
    signed_rank,
)
from benchmarks.harness.tables import table

# The claims: times that Fabolas needs, times that Ax's default needs, and the level of
# the test against random search.
FABOLAS_TIMES = 4.0
DEFAULT_TIMES = 2.0
RANDOM_LEVEL = 0.01
# The search at each level of its certificate, the last one also along the diagonal.
PAC_LEVELS = ("pac_pairwise", "pac_joint", "pac", "pac_line")

Runs = Mapping[str, Sequence[Run]]


def claims(runs: Runs) -> list[str]:
    """One row per search, one column per claim: what was measured, and the verdict.

    A claim holds when the interval does, not the median; with fewer pairs than an
    interval or a test needs there is no verdict.
    """
    columns = {
        f"`{name}` needs {FABOLAS_TIMES:g} times its time": _against_fabolas(runs, name)
        for name in ("fabolas_lean", "fabolas_faithful")
    }
    slower, no_worse = _against_default(runs)
    delta = next(iter(runs.values()))[0].trace.result["delta"]
    columns |= {
        f"`ax_default` takes {DEFAULT_TIMES:g} times its time": slower,
        f"J worse than `ax_default` by at most {delta:g}": no_worse,
        f"`random` is worse in its time, p below {RANDOM_LEVEL:g}": _against_random(
            runs
        ),
    }
    columns = {name: cells for name, cells in columns.items() if cells}
    levels = [
        level
        for level in PAC_LEVELS
        if any(level in cells for cells in columns.values())
    ]
    if not levels:
        return []
    return [
        "## What each search is claimed to do",
        "",
        "*Its time* is the total time of the search in the row, until its certificate. "
        "Each cell: median (95 %), number of pairs, and whether the interval shows the "
        "claim. Fabolas: time to the J that the search ends with. Random search counts "
        "in the pairs in which it was followed for as long as the search took.",
        "",
        *table(
            "search | " + " | ".join(columns),
            (
                [level, *(cells.get(level, "-") for cells in columns.values())]
                for level in levels
            ),
        ),
    ]


def kept_rows(groups: Sequence[Runs]) -> list[list[str]]:
    """One row per search: certified runs, and J above the best known J.

    Args:
        groups: Runs on one and the same problem each.
    """
    bests = list(map(best_known, groups))
    delta = float(next(iter(groups[0].values()))[0].trace.result["delta"])
    rows = []
    for name in PAC_LEVELS:
        number = sum(len(runs.get(name, ())) for runs in groups)
        excess = [
            run.trace.result["own"]["objective"] - best
            for runs, best in zip(groups, bests, strict=True)
            for run in runs.get(name, ())
            if run.trace.result["stopped"]
        ]
        if excess:
            broken = sum(e > delta for e in excess)
            rows.append(
                [
                    name,
                    f"{len(excess)} of {number}",
                    f"{np.median(excess):.4f}",
                    f"{max(excess):.4f}",
                    str(broken),
                ]
            )
    return rows


KEPT = "search | certified | J above the best, median | largest | by more than delta"


def kept(groups: Sequence[Runs]) -> list[str]:
    """How far what each level certified is from the best that any run found.

    The best is an upper bound of the optimum where that is unknown, so that
    a certificate counted as kept may be broken, and none counted as broken is kept.

    Args:
        groups: Runs on one and the same problem each.
    """
    rows = kept_rows(groups)
    if not rows:
        return []
    bests = ", ".join(f"{best_known(runs):.4g}" for runs in groups)
    delta = next(iter(groups[0].values()))[0].trace.result["delta"]
    return [
        "## Are the certificates kept?",
        "",
        "J of what was certified, minus the best J that any run found on the same "
        f"problem ({bests}; the optimum may be lower). A certificate promises less "
        f"than delta = {delta:g}.",
        "",
        *table(KEPT, rows),
    ]


def best_known(runs: Runs) -> float:
    """Smallest true objective of any incumbent of any method, or the optimum."""
    values = []
    for run in (run for group in runs.values() for run in group):
        result = run.trace.result
        values += [result["own"]["objective"], result["common"]["objective"]]
        values += [trial["own"] for trial in run.trace.trials]
        if result.get("optimum") is not None:
            values.append(result["optimum"])
    return float(np.nanmin(values))


def _against_fabolas(runs: Runs, method: str) -> dict[str, str]:
    cells = {}
    for level in PAC_LEVELS:
        pairs = paired(runs.get(method, ()), runs.get(level, ()))
        if not pairs:
            continue
        ratios, unfinished = [], 0
        for run, ours in pairs:
            limit = CENSORED_AT * ours.total_seconds
            spent, reached = run.time_to(float(ours.objective[-1]), limit)
            ratios.append(spent / ours.total_seconds)
            unfinished += not reached
        low, middle, high = median_interval(ratios)
        cells[level] = (
            f"{middle:.2f} ({low:.2f} to {high:.2f}), {len(pairs)} pairs, not reached "
            f"in {unfinished}: {_verdict(len(pairs), low >= FABOLAS_TIMES)}"
        )
    return cells


def _against_default(runs: Runs) -> tuple[dict[str, str], dict[str, str]]:
    slower, no_worse = {}, {}
    for level in PAC_LEVELS:
        pairs = paired(runs.get("ax_default", ()), runs.get(level, ()))
        if not pairs:
            continue
        ratios = [run.total_seconds / ours.total_seconds for run, ours in pairs]
        gaps = [float(ours.objective[-1] - run.objective[-1]) for run, ours in pairs]
        low, middle, high = median_interval(ratios)
        slower[level] = (
            f"{middle:.2f} ({low:.2f} to {high:.2f}), {len(pairs)} pairs: "
            f"{_verdict(len(pairs), low >= DEFAULT_TIMES)}"
        )
        low, middle, high = median_interval(gaps)
        holds = high <= pairs[0][1].trace.result["delta"]
        no_worse[level] = (
            f"{middle:+.4f} ({low:+.4f} to {high:+.4f}), {len(pairs)} pairs: "
            f"{_verdict(len(pairs), holds)}"
        )
    return slower, no_worse


def _against_random(runs: Runs) -> dict[str, str]:
    """Of the pairs whose random search was followed for as long as the search took."""
    cells = {}
    for level in PAC_LEVELS:
        pairs = paired(runs.get("random", ()), runs.get(level, ()))
        if not pairs:
            continue
        gaps = [
            run.objective_at(run.seconds, ours.total_seconds)
            - float(ours.objective[-1])
            for run, ours in pairs
            if run.total_seconds >= ours.total_seconds
        ]
        p = signed_rank(gaps, "greater")
        low, middle, high = median_interval(gaps)
        measured = f"{middle:+.4f} ({low:+.4f} to {high:+.4f}), p = {p:.3g}, "
        verdict = _verdict(len(gaps), p < RANDOM_LEVEL, level=RANDOM_LEVEL)
        cells[level] = (
            f"{measured if gaps else ''}{len(gaps)} of {len(pairs)} pairs: {verdict}"
        )
    return cells


def _verdict(pairs: int, holds: bool, level: float = 0.025) -> str:
    if pairs < fewest_pairs(level):
        return "too few runs"
    return "**yes**" if holds else "no"
