"""Page of `num_samples="auto"` against 50."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.traces import Trace, by_settings
from benchmarks.networks.resnets import DELTA


def render_sample_size(traces: Sequence[Trace]) -> str:
    """One row a setting; medians over seeds with their range."""
    revisions = sorted({trace.provenance["revision"] for trace in traces})
    lines = [
        "# As many samples as the search costs, or 50",
        "",
        f"ResNet18 on CIFAR-10, delta = {DELTA}, the default level. `auto` times the "
        "first evaluations, of 50 samples, and starts anew with more where a proposal "
        "costs more than they do; its seconds include them, its evaluations do not. J "
        "on the 10,000 test images. Medians over seeds, range in brackets. Revisions "
        f"{', '.join(revisions)}, "
        f"{traces[-1].provenance['threads']} thread(s).",
        "",
        "| gamma | num_samples | runs | m | certified | evaluations | seconds | "
        "of these, evaluating | J | top-1 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in sorted(
        by_settings(traces),
        key=lambda g: (g[0].settings["gamma"], str(g[0].settings["num_samples"])),
    ):
        settings, results = group[0].settings, [trace.result for trace in group]
        objectives = [settings["gamma"] * r["loss"] + r["ratio"] for r in results]
        evaluating = [r["timings"]["evaluate"] for r in results]
        lines.append(
            f"| {settings['gamma']} | {settings['num_samples']} | {len(results)} "
            f"| {_spread([r['num_samples'] for r in results], 0)} "
            f"| {sum(r['holds'] for r in results)}/{len(results)} "
            f"| {_spread([r['evaluations'] for r in results], 0)} "
            f"| {_spread([r['seconds'] for r in results], 0)} "
            f"| {_spread(evaluating, 0)} "
            f"| {_spread(objectives, 3)} "
            f"| {_spread([100 * r['top1'] for r in results], 2)} |"
        )
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = (
        f"{value:.{digits}f}" for value in (min(values), np.median(values), max(values))
    )
    return f"{middle} ({low}-{high})"
