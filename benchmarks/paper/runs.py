"""What the paper's experiments share: one search, and where they run."""

from __future__ import annotations

from functools import cache
from typing import Any

from benchmarks.comparison.problems import Problem, network_problem
from benchmarks.comparison.run import Budget, search_with
from benchmarks.harness.optimiser import Task
from benchmarks.harness.plans import Plan, planned
from benchmarks.harness.streams import streams
from benchmarks.harness.traces import Trace, recorded
from benchmarks.methods.registry import build_method
from benchmarks.networks.evaluation import NetworkEvaluation

NUM_SAMPLES = 50
DELTA = 0.05
# What runs here, and the paper's own data: `--data FOLDER` selects the latter.
SOURCES = ("here", "imagenet")


def planned_source(
    rows: Plan, seeds: int | None, **changes: Any
) -> list[tuple[dict[str, Any], int]]:
    """As `planned`, on the data that are here unless `source` says otherwise."""
    return planned(rows, seeds, **{"source": "here"} | changes)


def network_of(settings: dict[str, Any]) -> str:
    """The problem's name, by network and source."""
    prefix = "imagenet_" if settings["source"] == "imagenet" else ""
    return prefix + settings["network"]


def searched(
    benchmark: str,
    seed: int,
    settings: dict[str, Any],
    *,
    loss: str,
    encoding: str,
    evaluations: int,
) -> Trace:
    """Search once by the method of the settings; keep the result and no trials."""
    problem = _problem(network_of(settings), settings["gamma"], encoding, loss)
    own = streams(f"{settings['network']} {loss}", seed)
    task = Task(
        dim=problem.dim,
        num_samples=NUM_SAMPLES,
        max_samples=problem.max_samples,
        delta=DELTA,
        seed=own.method,
        cells=problem.cells,
        compression=problem.compression,
    )
    method = build_method(settings["method"], task)
    result, trials = search_with(
        problem, method, Budget(evaluations), own.evaluation, follow=False
    )
    clocks = {
        name: sum(trial[name][0] for trial in trials)
        for name in ("evaluate", "fit", "propose")
    }
    clocks["propose"] += result["last_ask"][0]
    found = result["own"]
    layers = {layer.name: layer for layer in problem.compression.layers}
    return recorded(
        benchmark,
        settings,
        seed,
        {
            **found,
            "weights": found["ratio"] * sum(x.num_weights for x in layers.values()),
            "all_weights": sum(layer.num_weights for layer in layers.values()),
            "layer_ratios": {
                name: _layer_ratio(layers[name], rank)
                for name, rank in found["ranks"].items()
            },
            "stopped": result["stopped"],
            "evaluations": result["evaluations"],
            "samples": result["samples"],
            "clocks": clocks,
            "seconds": sum(clocks.values()),
        },
    )


def _layer_ratio(layer: Any, rank: Any) -> float:
    """Weights of a layer at a rank, as a share of the dense layer's."""
    from compression_adapters import compression_ratio

    return compression_ratio([layer], {layer.name: rank})


@cache
def _problem(name: str, gamma: float, encoding: str, loss: str) -> Problem:
    return network_problem(NetworkEvaluation(name, gamma, encoding, loss))
