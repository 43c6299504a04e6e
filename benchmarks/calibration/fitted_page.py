"""Pages of the benchmarks that fit hyperparameters and search the continuous box."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.calibration import check_cost, fitted, inner_maximum
from benchmarks.calibration.searches import DELTA, EPSILON
from benchmarks.harness.intervals import clopper_pearson
from benchmarks.harness.tables import (
    described,
    opening,
    revisions,
    stopped_after,
    table,
)
from benchmarks.harness.traces import Trace, by_settings

_LEVELS = ("pairwise", "joint", "marginal")
# A bad fit issues its certificate among so many first checks.
_FIRST_CHECKS = 5


def render_fitted(traces: Sequence[Trace]) -> str:
    """One table per kind of function, one row per level."""
    lines = opening(
        "Certificates with fitted hyperparameters",
        "How often a certificate is right in the setting of a user: the surrogate is "
        "fitted at every step, the search space is continuous, and sampling is "
        f"leader/challenger. delta = {DELTA}, epsilon = {EPSILON}. A run "
        "ends by its certificate at level `marginal`. The rows `joint` and `pairwise` "
        "show where the same run would have stopped at those levels, which take the "
        "fitted hyperparameters as the true ones.",
        "*Success*: the incumbent at the stop is within delta of the best value, with "
        "its Clopper-Pearson interval (95 %). *Early and wrong*: certificates among "
        f"the first {_FIRST_CHECKS} checks of a run whose regret is above delta. "
        "*Averaged*: probability of a failure at the stop, averaged over the "
        "hyperparameters with ten times the candidates of a check. *Exact*: the same "
        "under the hyperparameters that the function was drawn with. Both are means "
        "and standard errors over the runs that have them.",
        fitted.NAME,
    )
    lines += [
        "Functions: `set` and `wilson` are GP draws with fixed length scales. `prior` "
        "draws length scales, output scale and mean from the prior that level "
        "`marginal` averages over. The others are test functions, standardised as in "
        "Wilson 2024 (the Hartmann functions are not).",
        "",
    ]
    for settings, group in _groups(traces):
        lines += [
            f"## {described(settings)}",
            "",
            f"{len(group)} runs. {revisions(group)}",
            "",
            *table(
                "level | certified | evaluations, median (quartiles) | success "
                "| worst regret | early and wrong | averaged | exact",
                (
                    _fitted_row(level, [t.result["stops"].get(level) for t in group])
                    for level in _LEVELS
                ),
            ),
        ]
    return "\n".join(lines)


def _groups(traces: Iterable[Trace]) -> list[tuple[dict[str, Any], list[Trace]]]:
    """Traces of the same settings together, in order of dimension and name."""
    groups = [
        (dict(sorted(group[0].settings.items())), group)
        for group in by_settings(traces)
    ]
    return sorted(groups, key=lambda g: (g[0]["d"], str(g[0].get("function"))))


def _fitted_row(level: str, stops: list[dict[str, Any] | None]) -> list[object]:
    """One level. Runs that it did not stop count as beyond the longest."""
    made = [stop for stop in stops if stop is not None]
    if not made:
        return [level, f"0/{len(stops)}", *["-"] * 6]
    good = sum(stop["regret"] <= DELTA for stop in made)
    early = sum(
        stop["check"] <= _FIRST_CHECKS and stop["regret"] > DELTA for stop in made
    )
    return [
        level,
        clopper_pearson(len(made), len(stops)),
        stopped_after(stops),
        clopper_pearson(good, len(made)),
        f"{max(stop['regret'] for stop in made):.3f}",
        early,
        _mean(made, "averaged"),
        _mean(made, "exact"),
    ]


def _mean(stops: list[dict[str, Any]], name: str) -> str:
    """Mean and standard error over the runs that have the figure."""
    values = [stop[name] for stop in stops if name in stop]
    if len(values) < 2:
        return "-"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {error:.3f} ({len(values)})"


def render_inner_maximum(traces: Sequence[Trace]) -> str:
    """One row per dimension."""
    larger = inner_maximum.STRONG_SEARCHES * inner_maximum.STRONG_EFFORT
    lines = opening(
        "Certificates and missed maxima",
        "Whether certificates are false because the search for the challenger missed a "
        "maximum: states of searches on GP draws with known hyperparameters, whose "
        "largest pairwise probability is near a threshold.",
        "*False*: the search that the certificate rests on stays below the threshold "
        f"(0.05 or 0.005), a search of {larger} times the usual size does not. "
        "*Joint*: mean failure probability at level `joint` with the candidates of a "
        "check, and with candidates from a search of four times the size.",
        inner_maximum.NAME,
    )
    rows = []
    for settings, group in _groups(traces):
        states = [state for trace in group for state in trace.result["states"]]
        if states:
            rows.append(_inner_maximum_row(settings["d"], states))
    lines += table(
        "d | states | false at 0.05 | false at 0.005 | largest gap of the score "
        "| joint | joint, four times the search | seconds of the search, median",
        rows,
    )
    return "\n".join(lines)


def _inner_maximum_row(d: int, states: Sequence[dict[str, Any]]) -> list[object]:
    cells: list[object] = [d, len(states)]
    for epsilon in inner_maximum.EPSILONS:
        certified = [s for s in states if inner_maximum.tail(s["score"]) <= epsilon]
        false = sum(inner_maximum.tail(s["strong_score"]) > epsilon for s in certified)
        cells.append(f"{false} of {len(certified)}")
    joint = [(s["joint"], s["joint_strong"]) for s in states if "joint" in s]
    return [
        *cells,
        f"{max(s['strong_score'] - s['score'] for s in states):.3g}",
        *((f"{m:.4f}" for m in np.mean(joint, axis=0)) if joint else ("-", "-")),
        f"{np.median([s['seconds'] for s in states]):.2f}",
    ]


def render_check_cost(traces: Sequence[Trace]) -> str:
    """One row per dimension and level reached."""
    threads = traces[-1].provenance["threads"]
    lines = opening(
        "Cost of one check",
        "Seconds of one check of a certificate, by the level that the check reached, "
        f"at epsilon = {check_cost.EPSILON}. Threads: {threads}.",
        "A check goes on to the next level where the one before holds. The row `fit` "
        "is the fit of the surrogate, for comparison.",
        check_cost.NAME,
    )
    rows = []
    for settings, group in _groups(traces):
        checks = [check for trace in group for check in trace.result["checks"]]
        for level in ("fit", *_LEVELS):
            reached = [check for check in checks if check["level"] == level]
            if reached:
                seconds = [check["seconds"] for check in reached]
                low, middle, high = min(seconds), np.median(seconds), max(seconds)
                draws = np.median([check.get("draws", 0) for check in reached])
                rows.append(
                    [
                        *(settings["d"], settings["n"], level, len(reached)),
                        f"{middle:.2f} ({low:.2f}-{high:.2f})",
                        f"{draws:.0f}",
                    ]
                )
    lines += table(
        "d | observations | level reached | checks | seconds, median (range) "
        "| draws, median",
        rows,
    )
    return "\n".join(lines)
