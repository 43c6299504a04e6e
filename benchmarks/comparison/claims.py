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

# The claims: times that Fabolas needs, times that Ax's default needs, and the level of
# the test against random search.
FABOLAS_TIMES = 4.0
DEFAULT_TIMES = 2.0
RANDOM_LEVEL = 0.01
# The search at each level of its certificate, at the last with either start.
PAC_LEVELS = ("pac_pairwise", "pac_joint", "pac", "pac_line")

Runs = Mapping[str, Sequence[Run]]


def claims(runs: Runs) -> list[str]:
    """One row a claim: what was measured, and the verdict.

    A claim holds when the interval does, not the median; with fewer pairs than an
    interval or a test needs there is no verdict.
    """
    rows = [
        *_against_fabolas(runs, "fabolas_lean"),
        *_against_fabolas(runs, "fabolas_faithful"),
        *(row for name in PAC_LEVELS for row in _against_default(runs, name)),
        *(row for name in PAC_LEVELS for row in _against_random(runs, name)),
    ]
    if not rows:
        return []
    lines = [
        "| claim | pairs | measured, median (95 %) | shown |",
        "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return [
        *lines,
        "",
        "Random search is judged by the pairs in which it was followed for as long as "
        "ours took.",
        "",
    ]


def kept(groups: Sequence[Runs]) -> list[str]:
    """How far what each level certified is from the best that anything found.

    The best is a lower bound of what there is where no optimum is known, so that
    a certificate counted as kept may be broken, and none counted as broken is kept.

    Args:
        groups: Runs on one and the same problem each.
    """
    bests = [_best_known(runs) for runs in groups]
    delta = float(next(iter(groups[0].values()))[0].trace.result["delta"])
    rows = []
    for name in PAC_LEVELS:
        excess, number = [], 0
        for runs, best in zip(groups, bests, strict=True):
            number += len(runs.get(name, ()))
            excess += [
                run.trace.result["own"]["objective"] - best
                for run in runs.get(name, ())
                if run.trace.result["stopped"]
            ]
        if excess:
            broken = sum(e > delta for e in excess)
            rows.append(
                f"| {name} | {len(excess)} of {number} | {np.median(excess):.4f} "
                f"| {max(excess):.4f} | {broken} |"
            )
    if not rows:
        return []
    return [
        "What was certified, beside the best J that any run on the same problem came "
        f"to ({', '.join(f'{best:.4g}' for best in bests)}), which may not be the "
        f"best there is; delta is {delta:g}.",
        "",
        "| level | certified | J above it, median | largest | by more than delta |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _best_known(runs: Runs) -> float:
    """Smallest true objective of any incumbent of any method, or the optimum."""
    values = []
    for run in (run for group in runs.values() for run in group):
        result = run.trace.result
        values += [result["own"]["objective"], result["common"]["objective"]]
        values += [trial["own"] for trial in run.trace.trials]
        if result.get("optimum") is not None:
            values.append(result["optimum"])
    return float(np.nanmin(values))


def _against_fabolas(runs: Runs, method: str) -> list[tuple[str, ...]]:
    rows = []
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
        rows.append(
            (
                f"{method} needs {FABOLAS_TIMES:g} times {level}'s time to its "
                "objective",
                str(len(pairs)),
                f"{middle:.2f} ({low:.2f} to {high:.2f}), not reached {unfinished}",
                _verdict(len(pairs), low >= FABOLAS_TIMES),
            )
        )
    return rows


def _against_default(runs: Runs, name: str) -> list[tuple[str, ...]]:
    pairs = paired(runs.get("ax_default", ()), runs.get(name, ()))
    if not pairs:
        return []
    ratios = [run.total_seconds / ours.total_seconds for run, ours in pairs]
    gaps = [float(ours.objective[-1] - run.objective[-1]) for run, ours in pairs]
    delta = pairs[0][1].trace.result["delta"]
    low, middle, high = median_interval(ratios)
    _, gap, largest = median_interval(gaps)
    number = pairs[0][0].trace.result["evaluations"]
    return [
        (
            f"ax_default with {number} trials takes {DEFAULT_TIMES:g} times {name}'s "
            "time",
            str(len(pairs)),
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            _verdict(len(pairs), low >= DEFAULT_TIMES),
        ),
        (
            f"and {name}'s objective is worse by at most {delta:g}",
            str(len(pairs)),
            f"{gap:+.4f} (up to {largest:+.4f})",
            _verdict(len(pairs), largest <= delta),
        ),
    ]


def _against_random(runs: Runs, name: str) -> list[tuple[str, ...]]:
    """Of the pairs whose random search was followed for as long as ours took."""
    pairs = paired(runs.get("random", ()), runs.get(name, ()))
    long = [(r, o) for r, o in pairs if r.total_seconds >= o.total_seconds]
    if not pairs:
        return []
    gaps = [
        run.objective_at(run.seconds, ours.total_seconds) - float(ours.objective[-1])
        for run, ours in long
    ]
    p = signed_rank(gaps, "greater")
    low, middle, high = median_interval(gaps)
    measured = f"{middle:+.4f} ({low:+.4f} to {high:+.4f}), p = {p:.3g}, "
    return [
        (
            f"random at {name}'s time is worse, p below {RANDOM_LEVEL:g}",
            str(len(long)),
            f"{measured if long else ''}followed that long {len(long)} of {len(pairs)}",
            _verdict(len(long), p < RANDOM_LEVEL, level=RANDOM_LEVEL),
        )
    ]


def _verdict(pairs: int, holds: bool, level: float = 0.025) -> str:
    if pairs < fewest_pairs(level):
        return "too few runs"
    return "yes" if holds else "no"
