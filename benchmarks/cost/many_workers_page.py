"""The page on evaluations on Ray's workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.tables import opening, table
from benchmarks.harness.traces import Trace


def render_ray(traces: Sequence[Trace]) -> str:
    """Speed of one and two workers; evaluations to the certificate."""
    provenance = traces[-1].provenance
    lines = opening(
        "Evaluations on several workers",
        "Searches of a noisy bowl through `ax_pac.ray_orchestrator` on one machine of "
        f"{provenance['cores']} CPUs with Ray {provenance['ray']}: how much faster two "
        "workers are than one, how many more evaluations they need, and how long a "
        "proposal takes while many trials run. Workers were started before the clock.",
        "Each section says what its rows are.",
        "ray",
    )
    sections = (
        ("speed", _speed),
        ("certificate", _certificate),
        ("pending", _pending),
        ("together", _together),
        ("draws", _draws),
    )
    for part, section in sections:
        own = [trace for trace in traces if trace.settings["part"] == part]
        lines += section(own) if own else []
    return "\n".join(lines)


def _speed(traces: Sequence[Trace]) -> list[str]:
    wait = traces[0].settings["wait"]
    trials = len(traces[0].trials)
    one = {
        (_kept(t), t.seed): t.result["trials_a_minute"]
        for t in traces
        if t.settings["workers"] == 1
    }
    rows = []
    ratios: dict[str, list[float]] = {}
    for t in sorted(traces, key=lambda t: (_kept(t), t.settings["workers"], t.seed)):
        kept, workers, rate = _kept(t), t.settings["workers"], t.result
        ratio = ""
        if (kept, t.seed) in one:
            times = rate["trials_a_minute"] / one[kept, t.seed]
            ratio = f"{times:.2f}"
            if workers == 2:
                ratios.setdefault(kept, []).append(times)
        rows.append(
            [
                *(kept, workers, t.seed, f"{rate['seconds']:.1f}"),
                f"{rate['trials_a_minute']:.1f}",
                f"{rate['ask_seconds'] / trials:.2f}",
                ratio,
            ]
        )
    medians = [
        f"Two workers, kept in {kept}: {np.median(found):.2f} times one, the median."
        for kept, found in ratios.items()
    ]
    return [
        f"## Trials per minute when an evaluation takes {wait:g} s",
        "",
        f"{trials} trials, the initial design included, from the first proposal to the "
        "last result, with the search in memory or in a database. An evaluation sleeps "
        "and uses no CPU. *Proposing*: wall seconds per trial in the process of the "
        "search. The rows in memory and those in a database were not measured at the "
        "same time, so that only the last column compares them.",
        "",
        *table(
            "kept in | workers | seed | seconds | trials per minute | proposing "
            "| relative to one worker",
            rows,
        ),
        *(line for median in medians for line in (median, "")),
    ]


def _kept(trace: Trace) -> str:
    """Where a search is kept: SQLite, or memory."""
    return str(trace.settings.get("database", "memory"))


def _certificate(traces: Sequence[Trace]) -> list[str]:
    groups: dict[tuple, list[Trace]] = {}
    for trace in traces:
        key = tuple(trace.settings[name] for name in ("d", "delta", "level"))
        groups.setdefault(key, []).append(trace)
    rows = [_row(list(key), group) for key, group in sorted(groups.items())]
    if len(groups) > 1:
        rows.append(_row(["all", "", ""], traces))
    return [
        "## Evaluations to the certificate",
        "",
        "The same objective, seed and settings in a plain `Client` loop and with two "
        "workers. Evaluations take longer than a proposal, so one is always running. "
        "*Started* also counts the evaluations that were cancelled at the end. Means "
        "over seeds; *ratio* of the means, to the plain loop.",
        "",
        *table(
            "d | delta | level | runs | certified, alone and with 2 | alone "
            "| 2 workers, completed | ratio | 2 workers, started | ratio",
            rows,
        ),
    ]


def _pending(traces: Sequence[Trace]) -> list[str]:
    rows = []
    for t in sorted(traces, key=lambda t: t.settings["p"]):
        cpu = t.result["cpu"]
        rows.append(
            [
                *(t.settings[name] for name in ("d", "n", "p")),
                *(f"{cpu:.2f}", f"{1.0 / cpu:.1f}", f"{600.0 / cpu:.0f}"),
            ]
        )
    return [
        "## Seconds per proposal while trials run",
        "",
        "CPU seconds of `get_next_trials` in the process of the search, one thread, "
        "with n completed and p running trials, the pairwise check included; one trial "
        f"ends before each proposal. Medians of {len(traces[0].trials)}. *Busy "
        "workers*: how many evaluations of 10 minutes such a process keeps running. "
        "Measured without Ray, so no cluster is part of it.",
        "",
        *table("d | n | p | seconds | proposals per second | busy workers", rows),
    ]


def _together(traces: Sequence[Trace]) -> list[str]:
    rows = []
    for t in sorted(traces, key=lambda t: (t.settings["p"], t.settings["q"])):
        cpu = t.result["cpu"]
        rows.append(
            [
                *(t.settings[name] for name in ("d", "n", "p", "q")),
                *(f"{cpu:.3f}", f"{1.0 / cpu:.1f}", f"{t.result['wall']:.3f}"),
            ]
        )
    return [
        "## Proposals made together",
        "",
        "The same for q points at once, as `ray_orchestrator` proposes for all workers "
        "that are free: one fit, one certificate, each point conditioned on those "
        "before it and on the p running trials. CPU seconds per point, one thread; one "
        f"trial ends before each batch. Medians of {len(traces[0].trials)} batches.",
        "",
        *table("d | n | p | q | seconds | proposals per second | wall seconds", rows),
    ]


def _draws(traces: Sequence[Trace]) -> list[str]:
    q = traces[0].settings["q"]
    rows = [
        [
            *(t.settings[name] for name in ("d", "n", "points")),
            f"{t.result['root']:.2f}",
            f"{1000.0 * t.result['draw']:.2f}",
            f"{t.result['different']:.0f} of {q}",
        ]
        for t in sorted(traces, key=lambda t: t.settings["points"])
    ]
    return [
        "## What Thompson draws would cost",
        "",
        "No strategy proposes in this way; the figures are for the plan in *Evaluate "
        f"on many machines*. {q} functions are drawn exactly from the posterior on "
        "so many random points of the box, and the maximum of each would be a "
        "proposal. *Root*: CPU seconds for the covariance of the points and its "
        "Cholesky factor, once per fit. *Draw*: CPU milliseconds per function. "
        "*Different*: how many points the maxima of the functions are. One thread, "
        f"medians of {len(traces[0].trials)}.",
        "",
        *table("d | n | points | root, s | draw, ms | different points", rows),
    ]


def _row(cells: list[object], group: Sequence[Trace]) -> list[object]:
    def values(which: str, what: str) -> list:
        return [trace.result[which][what] for trace in group]

    alone = np.mean(values("alone", "completed"))
    held = [sum(values(which, "holds")) for which in ("alone", "workers")]
    cells = [*cells, len(group), f"{held[0]}, {held[1]}", f"{alone:.1f}"]
    for what in ("completed", "begun"):
        mean = np.mean(values("workers", what))
        cells += [f"{mean:.1f}", f"{mean / alone:.2f}"]
    return cells
