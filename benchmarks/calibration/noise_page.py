"""The page about estimated noise, from the traces of two benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from benchmarks.calibration import noise_calibration, sem_coverage
from benchmarks.harness.intervals import clopper_pearson, share_interval
from benchmarks.harness.traces import Trace


def render_noise(coverage: Sequence[Trace], stops: Sequence[Trace]) -> str:
    """Coverage on real networks, then what it does to certificates."""
    lines = ["# Noise that is estimated", ""]
    if coverage:
        lines += _coverage_section(coverage)
    if stops:
        lines += _stops_section(stops)
    return "\n".join(lines)


def _coverage_section(traces: Sequence[Trace]) -> list[str]:
    first = traces[0]
    lines = [
        "## How often an interval covers",
        "",
        f"Share of intervals mean +- z SEM that cover the mean over the pool, at "
        f"{first.result['networks']} points of the search space and "
        f"{first.result['replications']} replications. FC3: 60,000 training images of "
        "MNIST, truncated SVD of its three layers; ResNet18: 10,000 test images of "
        "CIFAR-10, the second convolution of each block at a lower rank as a matrix. "
        "*raw* is what `CompressionProblem` reports, floors included; *smoothed* is "
        "`smoothed_sems` over the points of one replication. Intervals are "
        "Clopper-Pearson, 95 %, on the number of intervals that replications support "
        "(those of one replication share a smoother). *Scatter*: standard deviation of "
        "log(SEM / true SEM). *Skewness* of the samples: the median network's.",
        "",
        "| network | loss | m | skewness | raw 95 % | smoothed 95 % | raw 68 % | "
        "smoothed 68 % | worst network at 95 %, raw / smoothed | scatter, raw / "
        "smoothed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = [row for row, _ in sem_coverage.plan(1)]
    for trace in sorted(traces, key=lambda t: (order.index(t.settings), t.seed)):
        s, r = trace.settings, trace.result
        shares = [
            _share(r["coverage"][f"{how} {level}"], r["networks"] * r["replications"])
            for level in sem_coverage.LEVELS
            for how in sem_coverage.METHODS
        ]
        worst = " / ".join(
            f"{r['coverage'][f'{how} 0.95']['worst_network']:.2f}"
            for how in sem_coverage.METHODS
        )
        scatter = " / ".join(
            f"{r['log_error'][how]:.2f}" for how in sem_coverage.METHODS
        )
        lines.append(
            f"| {s['network']} | {s['loss']} | {s['m']} | {r['skewness']:.1f} | "
            f"{' | '.join(shares)} | {worst} | {scatter} |"
        )
    return [*lines, "", _revisions(traces), ""]


def _share(summary: dict[str, float], most: int) -> str:
    """A share with the interval of as many trials as its error is worth."""
    share, error = summary["share"], summary["standard_error"]
    spread = share * (1 - share)
    trials = min(most, spread / error**2) if error > 0 else most
    low, high = share_interval(share * trials, trials)
    return f"{share:.3f} ({low:.3f}-{high:.3f})"


def _stops_section(traces: Sequence[Trace]) -> list[str]:
    lines = [
        "## What it does to certificates",
        "",
        f"Functions drawn from a GP prior (d = 2, finite domain, unit signal, "
        f"hyperparameters known), delta = {noise_calibration.DELTA}, level joint, "
        f"epsilon = {noise_calibration.EPSILON}. An evaluation is the mean of m "
        "samples, `squares` (chi-square, skewed like squared errors) or `normal`, with "
        "a spread proportional to the loss; the same function and the same seed in "
        "each row. *Success*: the incumbent at the stop is within delta of the best; "
        "Clopper-Pearson, 95 %. *Probability under the true variances*: the mean over "
        "runs of what a model with the same data and the true variances says of that "
        "incumbent, with twice its standard error; it has less variance than the "
        "share.",
        "",
        "| samples | m | noise believed | certified | evaluations, median (quartiles) "
        "| success at the stop | probability under the true variances | nominal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(json.dumps(trace.settings), []).append(trace)
    for row, _ in noise_calibration.plan(1):
        group = groups.get(json.dumps(row), [])
        made = [t.result["stop"] for t in group if t.result["stop"] is not None]
        if not made:
            continue
        good = sum(stop["regret"] <= noise_calibration.DELTA for stop in made)
        n = [
            np.inf if t.result["stop"] is None else t.result["stop"]["evaluations"]
            for t in group
        ]
        exact = 1 - np.array([stop["failure_under_true"] for stop in made])
        error = 2 * exact.std() / len(made) ** 0.5
        low, median, high = np.quantile(n, (0.25, 0.5, 0.75), method="higher")
        lines.append(
            f"| {row['values']} | {row['m']} | {row['noise']} | "
            f"{len(made)}/{len(group)} | {median:.0f} ({low:.0f}-{high:.0f}) | "
            f"{good / len(made):.3f}: {clopper_pearson(good, len(made))} | "
            f"{exact.mean():.4f} +- {error:.4f} | {1 - noise_calibration.EPSILON:g} |"
        )
    return [*lines, "", _revisions(traces), ""]


def _revisions(traces: Sequence[Trace]) -> str:
    revisions = sorted({trace.provenance["revision"] for trace in traces})
    return f"Revisions {', '.join(revisions)}."
