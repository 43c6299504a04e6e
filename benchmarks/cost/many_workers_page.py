"""The page on evaluations on Ray's workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.traces import Trace


def render_ray(traces: Sequence[Trace]) -> str:
    """Speed of one and two workers; evaluations to the certificate."""
    speed = [t for t in traces if t.settings["part"] == "speed"]
    certificate = [t for t in traces if t.settings["part"] == "certificate"]
    lines = [
        "# Evaluations on several workers",
        "",
        "Searches of a noisy bowl through `ax_pac.ray_orchestrator` on one machine of "
        f"{traces[-1].provenance['cores']} CPUs, Ray {traces[-1].provenance['ray']}, "
        "workers started before.",
        "",
    ]
    pending = [t for t in traces if t.settings["part"] == "pending"]
    return "\n".join(
        lines + _speed(speed) + _certificate(certificate) + _pending(pending)
    )


def _speed(traces: Sequence[Trace]) -> list[str]:
    if not traces:
        return []
    wait = traces[0].settings["wait"]
    trials = len(traces[0].trials)
    lines = [
        f"## Trials a minute when an evaluation waits {wait:g} s",
        "",
        f"{trials} trials, space-filling ones included, from the first question to the "
        "last answer. *Proposing*: wall seconds in the process of the search, a trial.",
        "",
        "| workers | seed | seconds | trials a minute | proposing | of one worker |",
        "|---|---|---|---|---|---|",
    ]
    one = {t.seed: t for t in traces if t.settings["workers"] == 1}
    ratios = []
    for t in sorted(traces, key=lambda t: (t.settings["workers"], t.seed)):
        ratio = ""
        if t.seed in one:
            of_one = one[t.seed].result["trials_a_minute"]
            ratio = f"{t.result['trials_a_minute'] / of_one:.2f}"
            if t.settings["workers"] == 2:
                ratios.append(t.result["trials_a_minute"] / of_one)
        lines.append(
            f"| {t.settings['workers']} | {t.seed} | {t.result['seconds']:.1f} "
            f"| {t.result['trials_a_minute']:.1f} "
            f"| {t.result['ask_seconds'] / trials:.2f} | {ratio} |"
        )
    if ratios:
        lines += ["", f"Two workers: {np.median(ratios):.2f} times one, the median."]
    return [*lines, ""]


def _certificate(traces: Sequence[Trace]) -> list[str]:
    if not traces:
        return []
    lines = [
        "## Evaluations to the certificate",
        "",
        "The same objective, seed and question in a plain `Client` loop and with two "
        "workers, whose evaluations wait longer than a proposal takes, so that one is "
        "always under way. *Begun* counts those that were cancelled at the end as "
        "well. Means over seeds; *ratio* of the means, to the plain loop.",
        "",
        "| d | delta | level | runs | certified, alone and with 2 | alone "
        "| 2 workers, completed | ratio | 2 workers, begun | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple, list[Trace]] = {}
    for trace in traces:
        key = tuple(trace.settings[name] for name in ("d", "delta", "level"))
        groups.setdefault(key, []).append(trace)
    for key, group in sorted(groups.items()):
        lines.append(_row([*map(str, key)], group))
    if len(groups) > 1:
        lines.append(_row(["all", "", ""], list(traces)))
    return [*lines, ""]


def _pending(traces: Sequence[Trace]) -> list[str]:
    if not traces:
        return []
    lines = [
        "## Seconds of a proposal while trials run",
        "",
        "CPU seconds of `get_next_trials` in the process of the search, one thread, "
        "with n completed trials and p under evaluation, the pairwise check included; "
        "one trial ends before each proposal. Medians of "
        f"{len(traces[0].trials)}. *Busy workers*: how many evaluations of 10 minutes "
        "such a process can keep under way. Without Ray: no cluster was measured.",
        "",
        "| d | n | p | seconds | proposals a second | busy workers |",
        "|---|---|---|---|---|---|",
    ]
    for t in sorted(traces, key=lambda t: t.settings["p"]):
        cells = [str(t.settings[name]) for name in ("d", "n", "p")]
        cpu = t.result["cpu"]
        cells += [f"{cpu:.2f}", f"{1.0 / cpu:.1f}", f"{600.0 / cpu:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _row(cells: list[str], group: Sequence[Trace]) -> str:
    def values(which: str, what: str) -> list:
        return [trace.result[which][what] for trace in group]

    alone = np.mean(values("alone", "completed"))
    cells.append(str(len(group)))
    held = [sum(values(which, "holds")) for which in ("alone", "workers")]
    cells.append(f"{held[0]}, {held[1]}")
    cells.append(f"{alone:.1f}")
    for what in ("completed", "begun"):
        mean = np.mean(values("workers", what))
        cells += [f"{mean:.1f}", f"{mean / alone:.2f}"]
    return f"| {' | '.join(cells)} |"
