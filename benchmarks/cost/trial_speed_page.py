"""Page of the cost of a trial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.cost import trial_speed
from benchmarks.harness.traces import Trace


def render_trial_speed(traces: Sequence[Trace]) -> str:
    """One row a run: medians of trials and forward passes in turn."""
    lines = [
        "# What a trial costs",
        "",
        "CPU seconds on one thread, 50 images. *Forward*: the compressed network alone "
        "on the same images, laid out as in a trial. *Naive*: decomposing, copying and "
        "running both networks in every trial. Medians of seven rounds, in each of "
        "which one follows the other; the ratio is the median of the rounds' ratios.",
        "",
        "| network | pixels | seed | forward | trial | trial / forward | bar | naive | "
        "naive / trial | bar | revision |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for trace in traces:
        name, size = trace.settings["network"], trace.settings["size"]
        trial, forward = (np.array(trace.result[key]) for key in ("trial", "forward"))
        most = trial_speed.MOST_OF_FORWARD.get(size)
        least = trial_speed.LEAST_OF_TRIAL.get((name, size))
        naive, times = "-", "-"
        if trace.result["naive"]:
            seconds = float(np.median(trace.result["naive"]))
            naive, times = f"{seconds:.2f}", f"{seconds / np.median(trial):.1f}"
        lines.append(
            f"| {name} | {size} | {trace.seed} | {np.median(forward):.3f} "
            f"| {np.median(trial):.3f} | {np.median(trial / forward):.3f} "
            f"| {f'<= {most}' if most else '-'} | {naive} | {times} "
            f"| {f'>= {least:g}' if least else '-'} "
            f"| {trace.provenance['revision']} |"
        )
    return "\n".join([*lines, ""])
