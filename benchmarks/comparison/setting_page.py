"""Page of one problem, weight and number of samples: all that was measured on it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.comparison.claims import PAC_LEVELS, claims, kept
from benchmarks.comparison.plan import LEVELS, NETWORK_GAMMAS
from benchmarks.comparison.run import CERTIFIED_EVERY
from benchmarks.comparison.statistics import (
    CENSORED_AT,
    Run,
    fewest_pairs,
    holm,
    median_interval,
    paired,
    signed_rank,
)
from benchmarks.harness.charts import Axis, Series, chart
from benchmarks.harness.tables import command, median, quartiles, revisions, table
from benchmarks.methods.registry import RULES

REFERENCE = "pac"
GROUP = ("problem", "gamma", "num_samples")
"""The settings that runs have in common to be compared."""
_FRACTIONS = (0.25, 0.5, 1.0, 2.0, 5.0)
_NOT_DRAWN = (*RULES, "pac_pairwise", "pac_joint", "pi", "sobol")

Runs = Mapping[str, Sequence[Run]]


def page_name(settings: Mapping[str, Any]) -> str:
    """Name of the page of a setting, and of its figure after `comparison_`."""
    return "_".join(str(settings[name]) for name in GROUP)


def title(settings: Mapping[str, Any]) -> str:
    """Title of a setting."""
    problem, gamma, number = (settings[name] for name in GROUP)
    weight = f", gamma {gamma:g}" if problem in NETWORK_GAMMAS else ""
    return f"{problem}{weight}" + ("" if number == 50 else f", {number} samples")


def setting_pages(runs: Runs) -> dict[str, str]:
    """The page of a setting, and its figure where there is one.

    Args:
        runs: Runs of this setting by method.
    """
    everything = [run.trace for group in runs.values() for run in group]
    settings = everything[0].settings
    name = page_name(settings)
    lines = [
        f"# Comparison: {title(settings)}",
        "",
        f"All methods on `{settings['problem']}` with gamma = {settings['gamma']:g} "
        f"and {settings['num_samples']} samples per evaluation. J is the true "
        "objective of the incumbent; smaller is better. [Methods and "
        "measures](methods.md) defines every row and column. "
        f"{revisions(everything)} To repeat a row:",
        "",
        *command(
            "comparison --threads 1",
            *(f"--set {part}={settings[part]}" for part in GROUP),
            f"--seeds {max(map(len, runs.values()))} --methods METHOD",
        ),
        *_clocks(runs),
    ]
    pages = {}
    if REFERENCE in runs:
        lines += [*claims(runs), *kept([runs]), *_quality(runs), *_times(runs)]
    lines += _outside_certificates(runs)
    if REFERENCE in runs:
        lines += _anytime(runs, name)
        pages[f"figures/comparison_{name}.svg"] = figure(runs)
    return {f"comparison/{name}.md": "\n".join(lines), **pages}


def _clocks(runs: Runs) -> list[str]:
    rows = []
    for name, group in runs.items():
        evaluations = [run.trace.result["evaluations"] for run in group]
        own = [
            1000 * (run.clock("fit") + run.clock("propose")) / count
            for run, count in zip(group, evaluations, strict=True)
        ]
        clocks = ("evaluate", "fit", "propose")
        walls = [sum(run.clock(clock, 1) for clock in clocks) for run in group]
        rows.append(
            [
                name,
                len(group),
                f"{sum(run.trace.result['stopped'] for run in group)}/{len(group)}",
                median(evaluations, 0),
                median([run.trace.result["samples"] for run in group], 0),
                *(median([run.clock(clock) for run in group], 1) for clock in clocks),
                median([run.total_seconds for run in group], 1),
                median(walls, 1),
                median(own, 0),
            ]
        )
    return [
        "## Cost of a run",
        "",
        "Medians over the runs. Seconds are processor seconds of one thread, except "
        "*wall*.",
        "",
        *table(
            "method | runs | stopped by itself | evaluations | samples | evaluate s "
            "| fit s | propose s | total s | wall s | ms per proposal",
            rows,
        ),
    ]


def _quality(runs: Runs) -> list[str]:
    """J when PAC had ended, by cost and by time, and at the end of the budget."""
    rows: dict[str, list[str]] = {}
    tests = {}
    for name, group in runs.items():
        pairs = paired(group, runs[REFERENCE])
        if not pairs:
            continue
        by_cost = [a.objective_at(a.cost, b.cost[-1]) for a, b in pairs]
        by_time = [a.objective_at(a.seconds, b.total_seconds) for a, b in pairs]
        gaps = [
            value - float(b.objective[-1])
            for value, (_, b) in zip(by_cost, pairs, strict=True)
        ]
        usable = [gap for gap in gaps if math.isfinite(gap)]
        tests[name] = math.nan if name == REFERENCE else signed_rank(usable)
        rows[name] = [
            str(len(pairs)),
            quartiles(by_cost),
            quartiles(by_time),
            quartiles([float(a.objective[-1]) for a, _ in pairs]),
            quartiles([a.trace.trials[-1]["own"] for a, _ in pairs]),
            "-" if name == REFERENCE else _interval(usable),
        ]
    corrected = holm(tests)
    for name, cells in rows.items():
        p = corrected[name]
        silent = math.isnan(p) or int(cells[0]) < fewest_pairs(0.025)
        cells.append("-" if silent else f"{p:.3g}")
    return [
        "## J at equal cost, and at the end",
        "",
        "J when a method had spent what `pac` spent until its certificate, in samples "
        "and in seconds, and at the end of the budget: median (quartiles). A method "
        "that had already stopped keeps its last J. *Difference*: J at the same number "
        "of samples minus the J of `pac`; positive means worse than `pac`.",
        "",
        *table(
            "method | pairs | J, same samples | J, same seconds | J at the end "
            "| J at the end, own | difference (95 %) | p, Holm",
            ([name, *cells] for name, cells in rows.items()),
        ),
    ]


def _times(runs: Runs) -> list[str]:
    """Time to reach PAC's final objective, as a multiple of PAC's time."""
    levels = [level for level in PAC_LEVELS if level in runs]
    rows = []
    for name, group in runs.items():
        cells = []
        for level in levels:
            ratios, reached = [], 0
            for run, reference in paired(group, runs[level]):
                limit = CENSORED_AT * reference.total_seconds
                spent, done = run.time_to(float(reference.objective[-1]), limit)
                ratios.append(spent / reference.total_seconds)
                reached += done
            bound = ">" if reached < len(ratios) else ""
            cells += [f"{reached}/{len(ratios)}", bound + _interval(ratios, 2)]
        rows.append([name, *cells])
    return [
        "## Time to the J of each certificate",
        "",
        "Time until a method reaches the J at which the search of the column stopped, "
        "as a multiple of that search's total time. *Reached*: within "
        f"{CENSORED_AT:g} times that time. *Times*: median (95 %); a run that did not "
        "reach it counts with the time for which it was followed, so that the median "
        "is a lower bound (`>`).",
        "",
        *table(
            "method | " + " | ".join(f"{level}: reached | times" for level in levels),
            rows,
        ),
    ]


def _outside_certificates(runs: Runs) -> list[str]:
    """The certificate computed in LogEI's run: proposing apart from stopping."""
    group = runs.get("logei", [])
    if not group:
        return []
    rows = []
    for level in LEVELS:
        stops = [run.trace.result["stops"].get(level) for run in group]
        made = [stop for stop in stops if stop is not None]
        own = runs.get("pac" if level == "marginal" else f"pac_{level}", [])
        ended = [run for run in own if run.trace.result["stopped"]]
        rows.append(
            [
                level,
                f"{len(made)}/{len(stops)}",
                median([stop["evaluations"] for stop in made], 0),
                quartiles([stop["own"] for stop in made]),
                median([stop["seconds"][0] for stop in made], 1),
                f"{len(ended)}/{len(own)}",
                median([run.trace.result["evaluations"] for run in ended], 0),
                quartiles([float(run.objective[-1]) for run in ended]),
            ]
        )
    return [
        "## The same certificates on LogEI's proposals",
        "",
        f"Certificates computed in the run of `logei` after every {CERTIFIED_EVERY} "
        "evaluations (revision d90cc6b: after each), beside the runs that propose for "
        "the certificate. J at the stop of `logei` is that of its own incumbent. "
        "Seconds are those of the check that stopped it.",
        "",
        *table(
            "level | LogEI stopped | evaluations | J at the stop | seconds "
            "| PAC stopped | evaluations | J at the stop",
            rows,
        ),
    ]


def _anytime(runs: Runs, name: str) -> list[str]:
    """J against time, in units of PAC's total time, as table and figure."""
    rows = []
    for method, group in runs.items():
        pairs = paired(group, runs[REFERENCE])
        if pairs:
            rows.append([method, *(quartiles(_at(pairs, f)) for f in _FRACTIONS)])
    return [
        "## J against time",
        "",
        "Time is in units of the total time of `pac`: median (quartiles). `-`: no "
        "incumbent yet. After the end of a run its last J counts.",
        "",
        *table("method | " + " | ".join(f"{f:g}" for f in _FRACTIONS), rows),
        f"![J against time](../figures/comparison_{name}.svg)",
        "",
    ]


def _at(pairs: Sequence[tuple[Run, Run]], fraction: float) -> list[float]:
    """J of each run when it had taken a fraction of PAC's time."""
    return [a.objective_at(a.seconds, fraction * b.total_seconds) for a, b in pairs]


def figure(runs: Runs, leave_out: Collection[str] = _NOT_DRAWN) -> str:
    """J against time in units of PAC's total time; bands are quartiles."""
    drawn = {}
    grid = np.geomspace(0.05, CENSORED_AT, 40)
    for name, group in runs.items():
        pairs = paired(group, runs[REFERENCE])
        if not pairs or name in leave_out:
            continue
        shares = np.array([_at(pairs, fraction) for fraction in grid])
        whole = np.isfinite(shares).all(1)
        low, middle, high = np.quantile(shares[whole], (0.25, 0.5, 0.75), axis=1)
        drawn[name] = Series(list(grid[whole]), list(middle), list(low), list(high))
    time_axis = Axis("time, in units of PAC's total time", logarithmic=True)
    return chart(drawn, time_axis, Axis("J", logarithmic=True))


def _interval(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "-"
    low, middle, high = median_interval(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
