"""Cost of a trial beside the forward pass that it contains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, table
from benchmarks.harness.traces import Trace, recorded
from compression_adapters import (
    compression_problem,
    factorize_network,
    truncate_network,
)
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.presets.registry import PRESETS

NAME = "trial_speed"
DESCRIPTION = "a trial beside a forward pass, and beside decomposing in every trial"
MINUTES_ONCE = 0.0

# The bars: a trial over a forward pass at most, the naive way over a trial at least.
MOST_OF_FORWARD = {224: 1.15}
LEAST_OF_TRIAL = {("resnet18", 224): 3.0, ("resnet18", 32): 20.0}
_ROUNDS = 7
_NAIVE_ROUNDS = 3
_NUM_SAMPLES = 50

# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    ({"network": "resnet18", "size": 32}, 3, 0.5),
    ({"network": "resnet18", "size": 224}, 3, 1.0),
    ({"network": "vgg16", "size": 224}, 1, 5.0),
)

plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Time trials, forward passes and the naive way in turn."""
    name, size = settings["network"], settings["size"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PRESETS[name].build()
        pool = torch.randn(60, 3, size, size)
    problem = compression_problem(
        network,
        pool,
        gamma=0.1,
        choose=PRESETS[name].choose,
        exclude=nn.Linear if name == "vgg16" else (),
        num_samples=_NUM_SAMPLES,
        **WEIGHTS_ALONE,
    )
    point = {parameter.name: 0.6 for parameter in problem.parameters}
    ranks = problem.ranks(point)
    compressed = problem.compress(point).eval()
    inputs = problem._batch(3).inputs  # laid out as in a trial

    def forward() -> None:
        with torch.inference_mode():
            compressed(inputs)

    def trial() -> None:
        problem.evaluate(point, seed=3)

    def naive() -> Tensor:
        factors = factorize_network(network, problem.layers)
        small = truncate_network(network, factors, problem.layers, ranks).eval()
        with torch.inference_mode(), evaluation_mode(network):
            some = pool[:_NUM_SAMPLES]
            return (small(some) - network(some)).square().sum(1)

    trial()  # the reference outputs of these samples are known from here on
    forward()
    rounds = [(_seconds(trial), _seconds(forward)) for _ in range(_ROUNDS)]
    naive_rounds = _NAIVE_ROUNDS if (name, size) in LEAST_OF_TRIAL else 0
    return recorded(
        NAME,
        settings,
        seed,
        {
            "trial": [pair[0] for pair in rounds],
            "forward": [pair[1] for pair in rounds],
            "naive": [_seconds(naive) for _ in range(naive_rounds)],
        },
    )


def _seconds(function: Callable[[], Any]) -> float:
    """CPU seconds, which other processes lengthen less than wall seconds."""
    start = time.process_time()
    function()
    return time.process_time() - start


def render_trial_speed(traces: Sequence[Trace]) -> str:
    """One row per run: medians of trials and forward passes that take turns."""
    lines = opening(
        "Cost of one evaluation",
        "CPU seconds on one thread, 50 images: one trial (an evaluation of the "
        "objective) beside a forward pass of the compressed network alone, and beside "
        "a naive trial that decomposes, copies and runs both networks every time.",
        "Medians of seven rounds, in each of which one follows the other; a ratio is "
        "the median of the rounds' ratios. *Bar*: what the ratio has to be.",
        NAME,
    )
    rows = []
    for trace in traces:
        name, size = trace.settings["network"], trace.settings["size"]
        trial, forward = (np.array(trace.result[key]) for key in ("trial", "forward"))
        most = MOST_OF_FORWARD.get(size)
        least = LEAST_OF_TRIAL.get((name, size))
        naive, times = "-", "-"
        if trace.result["naive"]:
            seconds = float(np.median(trace.result["naive"]))
            naive, times = f"{seconds:.2f}", f"{seconds / np.median(trial):.1f}"
        rows.append(
            [
                *(name, size, trace.seed, f"{np.median(forward):.3f}"),
                *(f"{np.median(trial):.3f}", f"{np.median(trial / forward):.3f}"),
                *(f"<= {most}" if most else "-", naive, times),
                f">= {least:g}" if least else "-",
                trace.provenance["revision"],
            ]
        )
    lines += table(
        "network | pixels | seed | forward | trial | trial / forward | bar | naive "
        "| naive / trial | bar | revision",
        rows,
    )
    return "\n".join(lines)
