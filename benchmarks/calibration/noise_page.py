"""The page about estimated noise, from the traces of two benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.calibration import noise_calibration, sem_coverage
from benchmarks.harness.intervals import clopper_pearson, share_interval
from benchmarks.harness.tables import opening, revisions, stopped_after, table
from benchmarks.harness.traces import Trace


def render_noise(coverage: Sequence[Trace], stops: Sequence[Trace]) -> str:
    """Coverage on real networks, then what it does to certificates."""
    lines = opening(
        "Estimated noise",
        "A search knows the noise of an evaluation only from the standard error (SEM) "
        "of its samples. How often intervals from that SEM cover the true mean, and "
        "what an estimated SEM does to certificates.",
        "*raw* is the SEM that `CompressionProblem` reports, floors included. "
        "*smoothed* is the SEM after `smoothed_sems`, which a search uses. Intervals "
        "are Clopper-Pearson (95 %).",
        sem_coverage.NAME,
        noise_calibration.NAME,
    )
    if coverage:
        lines += _coverage_section(coverage)
    if stops:
        lines += _stops_section(stops)
    return "\n".join(lines)


def _coverage_section(traces: Sequence[Trace]) -> list[str]:
    first = traces[0].result
    order = [row for row, _ in sem_coverage.plan(1)]
    rows = []
    for trace in sorted(traces, key=lambda t: (order.index(t.settings), t.seed)):
        s, r = trace.settings, trace.result
        shares = [
            _share(r["coverage"][f"{how} {level}"], r["networks"] * r["replications"])
            for level in sem_coverage.LEVELS
            for how in sem_coverage.METHODS
        ]
        worst = [
            f"{r['coverage'][f'{how} 0.95']['worst_network']:.2f}"
            for how in sem_coverage.METHODS
        ]
        scatter = [f"{r['log_error'][how]:.2f}" for how in sem_coverage.METHODS]
        rows.append(
            [
                *(s["network"], s["loss"], s["m"], f"{r['skewness']:.1f}", *shares),
                *(" / ".join(worst), " / ".join(scatter)),
            ]
        )
    return [
        "## How often an interval covers",
        "",
        "Share of intervals mean +- z SEM that cover the mean over the pool, at "
        f"{first['networks']} points of the search space and {first['replications']} "
        "replications. FC3: 60,000 training images of MNIST, truncated SVD of its "
        "three layers. ResNet18: 10,000 test images of CIFAR-10, the second "
        "convolution of each block at a lower rank as a matrix. The intervals of a "
        "share count as many observations as its standard error supports, because the "
        "points of one replication share a smoother. *Scatter*: standard deviation of "
        "log(SEM / true SEM). *Skewness*: of the samples, median over the networks.",
        "",
        *table(
            "network | loss | m | skewness | raw 95 % | smoothed 95 % | raw 68 % "
            "| smoothed 68 % | worst network at 95 %, raw / smoothed "
            "| scatter, raw / smoothed",
            rows,
        ),
        revisions(traces),
        "",
    ]


def _share(summary: dict[str, float], most: int) -> str:
    """A share with the interval of as many trials as its error supports."""
    share, error = summary["share"], summary["standard_error"]
    variance = share * (1 - share)
    trials = min(most, variance / error**2) if error > 0 else most
    low, high = share_interval(share * trials, trials)
    return f"{share:.3f} ({low:.3f}-{high:.3f})"


def _stops_section(traces: Sequence[Trace]) -> list[str]:
    rows = []
    for settings, _ in noise_calibration.plan(1):
        stops = [t.result["stop"] for t in traces if t.settings == settings]
        made = [stop for stop in stops if stop is not None]
        if not made:
            continue
        good = sum(stop["regret"] <= noise_calibration.DELTA for stop in made)
        exact = 1 - np.array([stop["failure_under_true"] for stop in made])
        error = 2 * exact.std() / len(made) ** 0.5
        rows.append(
            [
                *(settings["values"], settings["m"], settings["noise"]),
                f"{len(made)}/{len(stops)}",
                stopped_after(stops),
                f"{good / len(made):.3f}: {clopper_pearson(good, len(made))}",
                f"{exact.mean():.4f} +- {error:.4f}",
                f"{1 - noise_calibration.EPSILON:g}",
            ]
        )
    return [
        "## What it does to certificates",
        "",
        "Functions drawn from a GP prior (d = 2, finite domain, unit signal, known "
        f"hyperparameters), delta = {noise_calibration.DELTA}, level joint, epsilon = "
        f"{noise_calibration.EPSILON}. An evaluation is the mean of m samples, "
        "`squares` (chi-square, skewed like squared errors) or `normal`, whose "
        "standard deviation is proportional to the loss. Rows share functions and "
        "seeds. *Noise*: the SEM that the search uses. *Success*: the incumbent at the "
        "stop is within delta of the best value. *Probability under the true "
        "variances*: what a model with the same data and the true variances says of "
        "that incumbent, averaged over runs, with twice its standard error; it varies "
        "less than the share.",
        "",
        *table(
            "samples | m | noise | certified | evaluations, median (quartiles) "
            "| success at the stop | probability under the true variances | nominal",
            rows,
        ),
        revisions(traces),
        "",
    ]
