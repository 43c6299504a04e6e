"""Page of Fabolas: how it differs from the original, and its profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.comparison.plan import NETWORK_GAMMAS
from benchmarks.comparison.statistics import Run, paired
from benchmarks.harness.tables import spread, table
from benchmarks.harness.traces import Trace, by_settings
from benchmarks.methods.fabolas.base import NUM_INITIAL_POINTS, SUBSETS
from benchmarks.methods.fabolas.faithful import (
    NUM_DRAWS,
    NUM_LOCAL,
    NUM_OUTCOMES,
    NUM_REPRESENTERS,
    NUM_UNIFORM,
    REPRESENTER_STEPS,
)
from benchmarks.methods.fabolas.models import BURN_IN, CHAIN

# Iterations of a run of the faithful row.
ITERATIONS = 30
# Ours that the faithful row is held against: one a certificate level.
_SEARCHES = ("pac_pairwise", "pac_joint", "pac")

_PAGE = """# Fabolas, rebuilt

Fabolas (Klein, Falkner, Bartels, Hennig and Hutter 2017) is the baseline of the paper.
This page says how it is rebuilt here in two versions, how they differ from the
original, and what their proposals cost. To repeat the profile, run
`python -m benchmarks run fabolas_profile --threads 1`.

Rows of the [comparison](comparison.md):

- `fabolas_faithful` follows the original. Hyperparameters are averaged by MCMC
  (stretch moves, three walkers per kernel parameter, burn-in {burn_in} once, {chain}
  steps each time). Each draw has {representers} representer points at full size
  ({steps} steps). The acquisition is the information about the minimum's place per
  expected cost, over {uniform} uniform and {local} local candidates.
- `fabolas_lean` is what one would build today: hyperparameters at the maximum of their
  posterior, and BoTorch's multi-fidelity max-value entropy search per expected cost.
- `fabolas_lean_sem` is the lean version with the measured standard errors as noise,
  which the original does not use.

All have one coordinate more, for the size s of the subset: u = log(s / s_min) /
log(s_max / s_min). The logarithms of loss and cost have a Gaussian process each:
Matern-5/2 with one length scale per coordinate, times a + b phi(u) phi(u'), with
phi = (1 - u)^2 for the loss and phi = u for the cost. The initial design has {points}
Latin hypercube points, each on the subsets {subsets}. The incumbent is the visited
point of lowest predicted loss at full size.

## Differences from the original

Both versions:

- No code of the original is used; they are written from the paper and from what is
  known of its program.
- The cost of an evaluation is its samples with the fixed part, not seconds, so that a
  run repeats under its seed. As in the original's program, the optimiser's own time is
  not part of it.
- The original's default budget contradicts its own initial design. Here the design is
  {initial} evaluations, and the budget is set separately.
- s_min is the smallest subset of the initial design.

The faithful version:

- The distribution of the minimum comes from {draws} joint draws and {outcomes}
  quantiles of a fantasized outcome; the original uses expectation propagation with
  derivatives.
- Representer points are distributed as expected improvement; the original's program
  takes the exponential of it.
- Priors enter by their log densities, where the original's program has densities in one
  place. The incumbent's size is full size, where that program normalises it twice.
  Local candidates are around the incumbent at full size.
- The weights a and b have log-normal priors beside a free amplitude, as in the program.

The lean version has Gamma priors on length scales and weights, instead of MCMC.

## Where the model of Fabolas does not fit

Fabolas expects small subsets to be biased. Here an evaluation on few samples is
unbiased and only noisier, by 1 / m. So Fabolas models a bias that does not exist, and
one noise level where there are many. The problem `learning_curve` is of the kind that
it was made for: a kernel machine fitted to s images of MNIST. A slow test requires both
versions to come close to its best error.
"""


def render_fabolas(traces: Sequence[Trace], compared: Sequence[Trace] = ()) -> str:
    """The differences, one profile per setting, and whole runs.

    Args:
        traces: Of the profile.
        compared: Of the comparison, for what the search of this package takes.
    """
    lines = [
        _PAGE.format(
            points=NUM_INITIAL_POINTS,
            subsets=", ".join(f"s_max / {part}" for part in SUBSETS),
            burn_in=BURN_IN,
            chain=CHAIN,
            representers=NUM_REPRESENTERS,
            steps=REPRESENTER_STEPS,
            uniform=NUM_UNIFORM,
            local=NUM_LOCAL,
            draws=NUM_DRAWS,
            outcomes=NUM_OUTCOMES,
            initial=NUM_INITIAL_POINTS * len(SUBSETS),
        ),
        "## Profile",
        "",
        "Processor seconds of one iteration on one thread, median (range) over runs. "
        "*Floor*: the same number of bare exponentials, factorisations and comparisons "
        "as the definition of the stage needs.",
        "",
    ]
    for group in by_settings(traces):
        lines += _profile(group)
    runs = _on_resnet18(compared)
    return "\n".join([*lines, *_whole_runs(runs), *_extrapolated(traces, runs)])


def _on_resnet18(compared: Sequence[Trace]) -> list[Run]:
    """All methods' runs at the one gamma where the faithful row is run."""
    return [
        Run(trace)
        for trace in compared
        if trace.settings["problem"] == "resnet18"
        and trace.settings["gamma"] == NETWORK_GAMMAS["resnet18"][0]
        and trace.settings["num_samples"] == 50
    ]


def _whole_runs(runs: Sequence[Run]) -> list[str]:
    """Whole faithful runs beside ours, paired by seed."""
    theirs = [run for run in runs if run.method == "fabolas_faithful"]
    rows = []
    for level in _SEARCHES:
        ours = [run for run in runs if run.method == level]
        pairs = paired(theirs, ours)
        if pairs:
            ratios = [a.total_seconds / b.total_seconds for a, b in pairs]
            ends = [
                [run.objective[-1] for run in side] for side in zip(*pairs, strict=True)
            ]
            rows.append(
                [
                    *(level, len(pairs)),
                    spread([a.total_seconds for a, _ in pairs], 0),
                    spread([b.total_seconds for _, b in pairs], 1),
                    *(spread(ratios, 0), spread(ends[0], 3), spread(ends[1], 3)),
                ]
            )
    if not rows:
        return []
    return [
        "## Whole runs",
        "",
        f"ResNet18 at gamma = {NETWORK_GAMMAS['resnet18'][0]}: the faithful version "
        f"after its initial design and {ITERATIONS} iterations, beside our searches "
        "with the same seeds, until their certificates. J is the true objective of the "
        "common incumbent at the end; smaller is better. Where the J of the faithful "
        "version is worse, the ratio of times is a lower bound.",
        "",
        *table(
            "search | pairs | faithful, seconds | ours, seconds | ratio | J, faithful "
            "| J, ours",
            rows,
        ),
    ]


def _extrapolated(profiles: Sequence[Trace], runs: Sequence[Run]) -> list[str]:
    """A faithful run's iterations, not run but multiplied, beside our own runs."""
    rows = []
    for level in _SEARCHES:
        seconds = [run.total_seconds for run in runs if run.method == level]
        for group in by_settings(profiles) if seconds else ():
            each = np.median([sum(t.result["stages"].values()) for t in group])
            settings = group[0].settings
            rows.append(
                [
                    *(level, spread(seconds, 1)),
                    f"d = {settings['d']}, n = {settings['n']}",
                    f"{ITERATIONS * each:.0f}",
                    f"{ITERATIONS * each / np.median(seconds):.0f}",
                ]
            )
    if not rows:
        return []
    return [
        "## Extrapolated",
        "",
        f"{ITERATIONS} iterations of the faithful version at the seconds of the "
        "profile, without evaluations and initial design, beside the total time of our "
        "searches of ResNet18. These iterations were not run; their time is a product.",
        "",
        *table(
            "search | its total seconds, median (range) | profile at "
            f"| {ITERATIONS} iterations, seconds | ratio",
            rows,
        ),
    ]


def _profile(traces: Sequence[Trace]) -> list[str]:
    settings, results = traces[0].settings, [trace.result for trace in traces]
    stages = {
        name: (
            [result["stages"][name] for result in results],
            [result["floors"][name] for result in results],
        )
        for name in results[0]["stages"]
    }
    stages["an iteration"] = (
        [sum(result["stages"].values()) for result in results],
        [sum(result["floors"].values()) for result in results],
    )
    rows = [
        [
            *(name, spread(spent, 2), spread(floor, 2)),
            f"{np.median(spent) / np.median(floor):.1f}",
        ]
        for name, (spent, floor) in stages.items()
    ]
    for name in ("fit", "propose"):
        spent = [result["lean"][name] for result in results]
        rows.append([f"lean version: {name}", spread(spent, 2), "-", "-"])
    return [
        f"### d = {settings['d']}, n = {settings['n']}",
        "",
        f"{results[0]['models']} models of the loss and as many of the cost; "
        f"{len(results)} runs.",
        "",
        *table("stage | seconds | floor | times the floor", rows),
    ]
