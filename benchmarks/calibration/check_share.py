"""What a check that ends at the pairwise filter adds to the cost of a trial.

Two searches of the same network by turns: one asks for a certificate before every
proposal, the other never does. Both search for a challenger, which is what is proposed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ax.api.client import Client
from ax.generation_strategy.generation_strategy import GenerationStrategy

from ax_pac import pac_generation_strategy
from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.tables import opening, table
from benchmarks.harness.traces import Trace, by_settings, recorded
from benchmarks.networks.cifar import cifar10, resnet
from compression_adapters import compression_problem
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.presets.registry import PRESETS
from compression_adapters.rank_space.parameters import bin_edges
from compression_adapters.search.client import new_client, quiet_ax
from compression_adapters.search.trials import trial_seed

NAME = "check_share"
DESCRIPTION = "share of a trial that a check ending at the pairwise filter takes"
MINUTES_ONCE = 0.5

EPSILON = 0.05
# Far too strict to be met, so that every check ends at its filter.
_DELTA = 1e-4
_ROW = {"network": "resnet18", "gamma": 0.02, "trials": 40}
_RUNS = 5

_PLAN = ((_ROW, _RUNS, 0.6),)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run two searches that take turns; record the cost of each trial."""
    images, _ = cifar10(train=True)
    problem = compression_problem(
        resnet(settings["network"]),
        images,
        gamma=settings["gamma"],
        choose=PRESETS[settings["network"]].choose,
        **WEIGHTS_ALONE,
    )
    searches = {kind: _client(problem, kind, seed) for kind in ("asks", "never_asks")}
    trials: list[dict[str, Any]] = []
    with quiet_ax():
        for _ in range(settings["trials"]):
            for kind, client in searches.items():
                # Samples of its own, or the second would find what the first computed.
                samples = 2 * seed + (kind == "asks")
                trials.append({"kind": kind, **_trial(problem, client, samples)})
    modelled = [trial for trial in trials if trial["modelled"]]
    medians = {
        kind: float(
            np.median([t["ask"] + t["evaluate"] for t in modelled if t["kind"] == kind])
        )
        for kind in searches
    }
    return recorded(
        NAME,
        settings,
        seed,
        {
            **medians,
            "share": 1.0 - medians["never_asks"] / medians["asks"],
            "evaluate": float(np.median([t["evaluate"] for t in modelled])),
        },
    )


def _client(problem: CompressionProblem, kind: str, seed: int) -> Client:
    """A search that asks for certificates, or one that does not."""
    strategy = pac_generation_strategy(
        delta=_DELTA,
        epsilon=EPSILON,
        seed=seed,
        num_samples=problem.num_samples,
        cells=bin_edges(problem.parameters),
    )
    if kind == "never_asks":
        strategy = _without_end(strategy)
    client = new_client(problem)
    client.set_generation_strategy(strategy)
    return client


def _without_end(strategy: GenerationStrategy) -> GenerationStrategy:
    """Remove the criteria by which a node asks whether the search is at its end."""
    for node in strategy._nodes:
        node._transition_criteria = [
            criterion
            for criterion in node.transition_criteria
            if criterion.transition_to != node.name
        ]
    return strategy


def _trial(problem: CompressionProblem, client: Client, seed: int) -> dict[str, Any]:
    """Make one trial; CPU seconds of its proposal and of its evaluation."""
    begin = time.process_time()
    ((index, point),) = client.get_next_trials(max_trials=1).items()
    asked = time.process_time()
    outcome = problem.evaluate(point, seed=trial_seed(seed, index))
    evaluated = time.process_time()
    client.complete_trial(index, {name: tuple(outcome[name]) for name in outcome})
    node = client._experiment.trials[index].generator_runs[0]._generation_node_name
    return {
        "ask": asked - begin,
        "evaluate": evaluated - asked,
        "modelled": node == "PAC",
    }


def render_check_share(traces: Sequence[Trace]) -> str:
    """One row per setting; medians of the runs, each a pair of searches."""
    lines = opening(
        "Share of a trial that a check takes",
        "CPU seconds per trial (proposal and evaluation) of two searches of one "
        "network that take turns on one core: one checks the certificate before every "
        "proposal, and never passes the pairwise filter; the other never checks.",
        "Medians over the trials. *Share*: what the check adds, relative to the search "
        "with checks.",
        NAME,
    )
    rows = []
    for group in by_settings(traces):
        settings = group[0].settings
        results = [trace.result for trace in group]
        seconds = (
            f"{np.median([result[name] for result in results]):.3f}"
            for name in ("asks", "never_asks", "evaluate")
        )
        shares = [result["share"] for result in results]
        rows.append(
            [
                *(settings["network"], settings["trials"], len(group), *seconds),
                f"{np.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
            ]
        )
    lines += table(
        "network | trials | runs | with checks | without | of it, evaluation "
        "| share that checks add, median (range)",
        rows,
    )
    return "\n".join(lines)
