"""Pages of the benchmarks that fit hyperparameters and search the continuous box."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.calibration import check_cost, fitted, inner_maximum
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.traces import Trace, by_settings

_LEVELS = ("pairwise", "joint", "marginal")
# A certificate among so many first checks is the kind that a bad fit issues.
_FIRST_CHECKS = 5


def render_fitted(traces: Sequence[Trace]) -> str:
    """One table for each kind of function, one row a level."""
    lines = [
        "# Certificates with fitted hyperparameters",
        "",
        "The whole of what a user gets: the surrogate is fitted at every step, the box "
        f"is continuous, delta = {fitted.DELTA}, epsilon = {fitted.EPSILON}, sampling "
        "is leader/challenger. The run ends by its certificate at level `marginal`; "
        "`joint` and `pairwise` are where the same run would have ended at those "
        "levels, which take the fitted hyperparameters for the true ones. *Success*: "
        "the incumbent at the stop is within delta of the best, with its "
        "Clopper-Pearson interval, 95 %. *Early and wrong*: certificates among the "
        f"first {_FIRST_CHECKS} checks of a run whose regret is above delta. "
        "*Averaged*: mean probability of a failure where the runs stopped, over the "
        "hyperparameters, with ten times the candidates of a check. *Exact*: the same "
        "under the hyperparameters that the function was drawn with; one less this "
        "estimates the success without the scatter of right and wrong. With their "
        "standard errors, over the runs that have them.",
        "",
        "Functions: `set` and `wilson` are GP draws with fixed length scales, `prior` "
        "draws length scales, output scale and mean from the prior that level "
        "`marginal` averages over; the others are test functions, standardised as in "
        "Wilson 2024 (the Hartmann functions raw).",
        "",
    ]
    for settings, group in _groups(traces):
        lines += _fitted_section(settings, group)
    return "\n".join(lines)


def _groups(traces: Iterable[Trace]) -> list[tuple[dict[str, Any], list[Trace]]]:
    """Traces of the same settings together, in order of dimension and name."""
    groups = [
        (dict(sorted(group[0].settings.items())), group)
        for group in by_settings(traces)
    ]
    return sorted(groups, key=lambda g: (g[0]["d"], str(g[0].get("function"))))


def _fitted_section(settings: dict[str, Any], traces: Sequence[Trace]) -> list[str]:
    described = ", ".join(f"{name} = {value}" for name, value in settings.items())
    revisions = sorted({trace.provenance["revision"] for trace in traces})
    lines = [
        f"## {described}",
        "",
        f"{len(traces)} runs. Revisions {', '.join(revisions)}.",
        "",
        "| level | certified | evaluations, median (quartiles) | success | "
        "worst regret | early and wrong | averaged | exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for level in _LEVELS:
        stops = [trace.result["stops"].get(level) for trace in traces]
        lines.append(_fitted_row(level, stops))
    return [*lines, ""]


def _fitted_row(level: str, stops: list[dict[str, Any] | None]) -> str:
    """One level. Runs that it did not stop count as beyond the longest."""
    made = [stop for stop in stops if stop is not None]
    if not made:
        return f"| {level} | 0/{len(stops)} | - | - | - | - | - | - |"
    evaluations = [np.inf if stop is None else stop["evaluations"] for stop in stops]
    quartiles = np.quantile(evaluations, (0.25, 0.5, 0.75), method="higher")
    low, median, high = (f"{q:.0f}" if np.isfinite(q) else "never" for q in quartiles)
    good = sum(stop["regret"] <= fitted.DELTA for stop in made)
    early = sum(
        stop["check"] <= _FIRST_CHECKS and stop["regret"] > fitted.DELTA
        for stop in made
    )
    worst = max(stop["regret"] for stop in made)
    return (
        f"| {level} | {clopper_pearson(len(made), len(stops))} | {median} "
        f"({low}-{high}) | {clopper_pearson(good, len(made))} | {worst:.3f} | {early} "
        f"| {_mean(made, 'averaged')} | {_mean(made, 'exact')} |"
    )


def _mean(stops: list[dict[str, Any]], name: str) -> str:
    """Mean and standard error over the runs that have the figure."""
    values = [stop[name] for stop in stops if name in stop]
    if len(values) < 2:
        return "-"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {error:.3f} ({len(values)})"


def render_inner_maximum(traces: Sequence[Trace]) -> str:
    """One row for each dimension."""
    lines = [
        "# Is a certificate false because a maximum was missed?",
        "",
        "States of searches on GP draws whose largest pairwise probability is near a "
        "threshold, hyperparameters known. *False*: the search that a certificate is "
        "issued on stays below the threshold, a search "
        f"{inner_maximum.STRONG_SEARCHES * inner_maximum.STRONG_EFFORT} times the "
        "usual size does not. *Joint*: mean failure probability at level `joint` with "
        "the candidates of a check, and with four times as many to choose from.",
        "",
        "| d | states | false at 0.05 | false at 0.005 | largest gap of the score | "
        "joint | joint, four times the search | seconds of the search, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for settings, group in _groups(traces):
        states = [state for trace in group for state in trace.result["states"]]
        if states:
            lines.append(_inner_maximum_row(settings["d"], states))
    return "\n".join([*lines, ""])


def _inner_maximum_row(d: int, states: Sequence[dict[str, Any]]) -> str:
    cells = [str(d), str(len(states))]
    for epsilon in inner_maximum.EPSILONS:
        certified = [s for s in states if inner_maximum.tail(s["score"]) <= epsilon]
        false = sum(inner_maximum.tail(s["strong_score"]) > epsilon for s in certified)
        cells.append(f"{false} of {len(certified)}")
    cells.append(f"{max(s['strong_score'] - s['score'] for s in states):.3g}")
    joint = [(s["joint"], s["joint_strong"]) for s in states if "joint" in s]
    cells += [f"{mean:.4f}" for mean in np.mean(joint, axis=0)] if joint else ["-", "-"]
    cells.append(f"{np.median([s['seconds'] for s in states]):.2f}")
    return f"| {' | '.join(cells)} |"


def render_check_cost(traces: Sequence[Trace]) -> str:
    """One row for each dimension and level reached."""
    threads = traces[-1].provenance["threads"]
    lines = [
        "# What one check costs",
        "",
        f"Checks by the level they reached, epsilon = {check_cost.EPSILON}, threads: "
        f"{threads}. A check goes on to the next level where the one before holds; "
        "`fit` is the fit of the surrogate, for comparison.",
        "",
        "| d | observations | level reached | checks | seconds, median (range) | "
        "draws, median |",
        "|---|---|---|---|---|---|",
    ]
    for settings, group in _groups(traces):
        checks = [check for trace in group for check in trace.result["checks"]]
        for level in ("fit", *_LEVELS):
            reached = [check for check in checks if check["level"] == level]
            if reached:
                seconds = [check["seconds"] for check in reached]
                draws = np.median([check.get("draws", 0) for check in reached])
                lines.append(
                    f"| {settings['d']} | {settings['n']} | {level} | {len(reached)} | "
                    f"{np.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f}) "
                    f"| {draws:.0f} |"
                )
    return "\n".join([*lines, ""])


def render_check_share(traces: Sequence[Trace]) -> str:
    """One row for each setting; medians of the runs, each a pair of searches."""
    lines = [
        "# What asking for a certificate adds to a trial",
        "",
        "Two searches of one network by turns, on one core: one asks for a certificate "
        "before every proposal and never gets past the pairwise filter, the other "
        "never asks. CPU seconds of a trial (proposal and evaluation), medians.",
        "",
        "| network | trials | runs | asks | never asks | of it, evaluation | "
        "share that asking adds, median (range) |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in by_settings(traces):
        settings = group[0].settings
        results = [trace.result for trace in group]
        asks, never, evaluate = (
            f"{np.median([result[name] for result in results]):.3f}"
            for name in ("asks", "never_asks", "evaluate")
        )
        shares = [result["share"] for result in results]
        cells = [
            *(settings["network"], str(settings["trials"]), str(len(group))),
            *(asks, never, evaluate),
            f"{np.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
