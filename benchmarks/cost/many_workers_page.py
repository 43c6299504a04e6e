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
    )
    for part, section in sections:
        own = [trace for trace in traces if trace.settings["part"] == part]
        lines += section(own) if own else []
    return "\n".join(lines)


def _speed(traces: Sequence[Trace]) -> list[str]:
    wait = traces[0].settings["wait"]
    trials = len(traces[0].trials)
    one = {t.seed: t for t in traces if t.settings["workers"] == 1}
    rows, ratios = [], []
    for t in sorted(traces, key=lambda t: (t.settings["workers"], t.seed)):
        ratio = ""
        if t.seed in one:
            of_one = one[t.seed].result["trials_a_minute"]
            ratio = f"{t.result['trials_a_minute'] / of_one:.2f}"
            if t.settings["workers"] == 2:
                ratios.append(t.result["trials_a_minute"] / of_one)
        rows.append(
            [
                *(t.settings["workers"], t.seed, f"{t.result['seconds']:.1f}"),
                f"{t.result['trials_a_minute']:.1f}",
                f"{t.result['ask_seconds'] / trials:.2f}",
                ratio,
            ]
        )
    return [
        f"## Trials per minute when an evaluation takes {wait:g} s",
        "",
        f"{trials} trials, the initial design included, from the first proposal to the "
        "last result. *Proposing*: wall seconds per trial in the process of the "
        "search.",
        "",
        *table(
            "workers | seed | seconds | trials per minute | proposing "
            "| relative to one worker",
            rows,
        ),
        *(
            [f"Two workers: {np.median(ratios):.2f} times one, the median.", ""]
            if ratios
            else []
        ),
    ]


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
