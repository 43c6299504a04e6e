"""Page of Fabolas: what is done otherwise than in the original, and its profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.comparison.plan import NETWORK_GAMMAS
from benchmarks.comparison.statistics import Run, paired
from benchmarks.harness.tables import spread
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

_PAGE = """# Fabolas, two rows

Klein, Falkner, Bartels, Hennig and Hutter 2017. The size s of the subset is one more
coordinate, u = log(s / s_min) / log(s_max / s_min). Logarithms of loss and cost have a
Gaussian process each, Matern-5/2 with one length scale a coordinate times a + b phi(u)
phi(u'), phi = (1 - u)^2 for the loss and u for the cost. Both rows share this, the
initial design ({points} Latin hypercube points, each on the subsets {subsets}) and the
incumbent: the visited point of lowest predicted loss at full size.

- `fabolas_faithful`: hyperparameters averaged over by MCMC (stretch moves; three
  walkers a kernel parameter, burn-in {burn_in} once, {chain} steps each time),
  {representers} representer points at full size for every draw ({steps} steps), entropy
  of the minimum's place there, information per expected cost over {uniform} uniform and
  {local} local candidates.
- `fabolas_lean`: hyperparameters at the maximum of their posterior, BoTorch's
  multi-fidelity max-value entropy search per expected cost. Not the original's
  acquisition; what one would build today.
- `fabolas_lean_sem`: the lean row with the measured standard errors as noise, which the
  original does not have.

## Done otherwise than in the original

Both rows:
- No line of the original's code; written from the paper and from what is known of it.
- The cost of an evaluation is its samples with the fixed part, not seconds, so that a
  run repeats under its seed. The optimiser's own time is not part of it, as in the
  original's published program.
- The original's default budget contradicts its own initial design; here the design is
  {initial} evaluations, and the budget is set apart.
- s_min is the smallest subset of the initial design.

Faithful row:
- The distribution of the minimum by {draws} joint draws, and {outcomes} quantiles of an
  imagined outcome; the original uses expectation propagation with derivatives.
- Representer points are distributed as expected improvement; the original's program
  takes the exponential of it.
- Log densities of the priors where the original's program has densities in one place;
  the incumbent's size is taken for full size, where that program normalises it twice;
  local candidates are around the incumbent at full size.
- The weights a and b have log-normal priors beside a free amplitude, as in the program.

Lean row: Gamma priors on length scales and weights, in place of MCMC.

## What does not fit here

Fabolas expects small subsets to be off on average. Here an evaluation on few samples is
unbiased and only noisier, by 1 / m, so Fabolas models a bias that is not there and one
noise where there are many. `learning_curve` is its own kind of problem: a kernel
machine fitted to s images of MNIST; a slow test holds both rows to its best error.
"""


def render_fabolas(traces: Sequence[Trace], compared: Sequence[Trace] = ()) -> str:
    """Departures, one profile for each setting, and what follows from it.

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
        "Processor seconds of one iteration, median (range) over runs, one thread, "
        "beside the floor: the bare exponentials, factorisations and comparisons that "
        "the stage's definition asks for, as often as it does.",
        "",
        "```",
        "python -m benchmarks run fabolas_profile --threads 1",
        "```",
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
                f"| {level} | {len(pairs)} "
                f"| {spread([a.total_seconds for a, _ in pairs], 0)} "
                f"| {spread([b.total_seconds for _, b in pairs], 1)} "
                f"| {spread(ratios, 0)} | {spread(ends[0], 3)} | {spread(ends[1], 3)} |"
            )
    if not rows:
        return []
    return [
        "## Whole runs",
        "",
        f"ResNet18 at gamma = {NETWORK_GAMMAS['resnet18'][0]}: the faithful row after "
        f"its initial design and {ITERATIONS} iterations, beside our searches of the "
        "same seeds, to their certificates. J is the true objective of the common "
        "incumbent at the end, smaller is better; where the faithful row's is worse, "
        "the ratio of times is a lower bound of what it needs to get as far.",
        "",
        "| search | pairs | faithful row, seconds | ours, seconds | ratio "
        "| J, faithful row | J, ours |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
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
                f"| {level} | {spread(seconds, 1)} | d = {settings['d']}, "
                f"n = {settings['n']} | {ITERATIONS * each:.0f} "
                f"| {ITERATIONS * each / np.median(seconds):.0f} |"
            )
    if not rows:
        return []
    return [
        "## Extrapolated",
        "",
        f"{ITERATIONS} iterations of the faithful row at the profile's seconds each, "
        "without evaluations and without the initial design, beside the total time of "
        "our own searches of ResNet18. Multiplied, not run.",
        "",
        "| search | its total seconds, median (range) | profile at "
        f"| {ITERATIONS} iterations, seconds | ratio |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _profile(traces: Sequence[Trace]) -> list[str]:
    settings, results = traces[0].settings, [trace.result for trace in traces]
    lines = [
        f"### d = {settings['d']}, n = {settings['n']}",
        "",
        f"{results[0]['models']} models of the loss and as many of the cost; "
        f"{len(results)} runs.",
        "",
        "| stage | seconds | floor | times the floor |",
        "|---|---|---|---|",
    ]
    for stage in results[0]["stages"]:
        spent = [result["stages"][stage] for result in results]
        floor = [result["floors"][stage] for result in results]
        factor = np.median(spent) / np.median(floor)
        lines.append(
            f"| {stage} | {spread(spent, 2)} | {spread(floor, 2)} | {factor:.1f} |"
        )
    whole = [sum(result["stages"].values()) for result in results]
    floors = [sum(result["floors"].values()) for result in results]
    lines.append(
        f"| an iteration | {spread(whole, 2)} | {spread(floors, 2)} "
        f"| {np.median(whole) / np.median(floors):.1f} |"
    )
    for name in ("fit", "propose"):
        spent = [result["lean"][name] for result in results]
        lines.append(f"| lean row: {name} | {spread(spent, 2)} | - | - |")
    return [*lines, ""]
