"""Page of several gammas from one run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.traces import Trace, by_settings
from benchmarks.networks import gammas


def render_gammas(traces: Sequence[Trace]) -> str:
    """One section a level: what five gammas cost, and whether they are right."""
    lines = [
        "# Several gammas from one run",
        "",
        f"FC3 on MNIST at gamma = {', '.join(map(str, gammas.GAMMAS))}; delta = "
        f"{gammas.SEARCH['delta']}. *One run*: the smallest gamma first, each further "
        "one weighs anew what was measured before (`compress_at`). *Apart*: a search "
        "for each under the same seed. The excess is the objective on all 60,000 "
        "training images over that of the best network that any run here found for "
        "that gamma; it should stay below delta.",
        "",
    ]
    best: dict[float, float] = {}
    for trace in traces:
        for row in trace.result["shared"] + trace.result["alone"]:
            gamma, found = row["gamma"], row["objective"]
            best[gamma] = min(best.get(gamma, found), found)
    for group in by_settings(traces):
        group = sorted(group, key=lambda trace: trace.seed)
        lines += _costs(group) + _networks(group, best)
    return "\n".join(lines)


def _costs(traces: Sequence[Trace]) -> list[str]:
    settings = traces[0].settings
    revisions = sorted({trace.provenance["revision"] for trace in traces})
    lines = [
        f"## Level {settings['level']}, epsilon = {settings['epsilon']}",
        "",
        f"Revisions {', '.join(revisions)}.",
        "",
        "| seed | five from one run | first of them | apart, each | over the first | "
        "over the median of one | over all apart |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for trace in traces:
        shared, alone = (
            [row["evaluations"] for row in trace.result[part]]
            for part in ("shared", "alone")
        )
        total = max(shared)
        ratio = total / min(shared), total / np.median(alone), total / sum(alone)
        ratios.append(ratio)
        lines.append(
            f"| {trace.seed} | {total} | {min(shared)} | {', '.join(map(str, alone))} "
            f"| {' | '.join(f'{value:.2f}' for value in ratio)} |"
        )
    middle = np.median(ratios, axis=0)
    return [
        *lines,
        f"| median | | | | {' | '.join(f'{value:.2f}' for value in middle)} |",
        "",
        f"Bar: at most {gammas.MOST} times one search, by the median over seeds.",
        "",
    ]


def _networks(traces: Sequence[Trace], best: dict[float, float]) -> list[str]:
    lines = [
        "| gamma | how | certified | excess, median (largest) | ratio %, median | "
        "top-1 %, median |",
        "|---|---|---|---|---|---|",
    ]
    for i, gamma in enumerate(gammas.GAMMAS):
        for part, name in (("shared", "one run"), ("alone", "apart")):
            rows = [trace.result[part][i] for trace in traces]
            excess = [row["objective"] - best[gamma] for row in rows]
            lines.append(
                f"| {gamma} | {name} | {sum(row['holds'] for row in rows)}/{len(rows)} "
                f"| {np.median(excess):.3f} ({max(excess):.3f}) "
                f"| {100 * np.median([row['ratio'] for row in rows]):.1f} "
                f"| {100 * np.median([row['top1'] for row in rows]):.2f} |"
            )
    return [*lines, ""]
