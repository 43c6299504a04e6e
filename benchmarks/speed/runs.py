"""Searches for a speed, the same by weights, and predictions beside measurements."""

from __future__ import annotations

import time
import warnings
from functools import cache
from typing import Any

from torch import Tensor, nn

from benchmarks.harness.factors import sharing
from benchmarks.networks.cifar import cifar10, outputs_of, resnet
from compression_adapters import (
    DECOMPOSITIONS,
    Decomposition,
    choose_low_rank,
    compress,
    compression_problem,
    price_path,
)
from compression_adapters.network.counts import compression_ratio, whole_network_ratio
from compression_adapters.options import LATENCY_SECONDS, SearchOptions
from compression_adapters.search.result import CompressionResult, measured_time

NETWORK = "resnet18"
BATCH = 50
SPEEDUP = 2.0
DELTA = 0.05
MAX_TRIALS = 40
"""Of a search with one coordinate a layer, which is not certified by then."""
WEIGHTS = 0.15
TEST_IMAGES = 10_000
NETWORKS = 10
_MEASURE_SECONDS = 6.0


def choose(name: str, module: nn.Module) -> Decomposition | None:
    """All convolutions and the linear layer, by the shape of what they see.

    The last two stages see 2 x 2 pixels and one: vertical and horizontal kernels have
    little to share there, and k x k to few channels is the exact form.
    """
    channel = DECOMPOSITIONS["channel_conv"]
    if name.startswith(("layer3", "layer4")) and channel.supports(module):
        return channel
    return choose_low_rank(name, module)


def run_speedup(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Ask `compress` for a speed: all convolutions and the linear layer in play."""
    network, (pool, _) = resnet(NETWORK), cifar10(train=True)
    start, spent = time.perf_counter(), time.process_time()
    best, number = settings.get("forms") == "best", settings["coordinates"]
    found, said = _warned(
        network,
        pool,
        speedup=settings["speedup"],
        search=settings["search"],
        latency_batch=settings["batch"],
        # Three decompositions of a layer have three times as many ranks to time.
        latency_seconds=(3.0 if best else 1.0) * LATENCY_SECONDS,
        choose="best" if best else choose,
        **sharing(number if isinstance(number, int) else None),
        delta=settings["delta"],
        max_trials=settings.get("max_trials", SearchOptions.max_trials),
        seed=seed,
        calibration_seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - start
    spent = time.process_time() - spent
    table = found.problem.measure.table
    gammas = [] if found.gammas is None else found.gammas.to_dict("records")
    return {
        **_result(found, (seconds, spent), said),
        "table": None
        if table is None
        else {
            "seconds": table.measured_in,
            "known": table.known,
            "rounds": table.rounds,
            "layers": {
                name: {"dense": t.seconds[-1], "times": len(t.ranks)}
                for name, t in table.layers.items()
            },
        },
        "gammas": gammas,
    }


def run_weights(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Ask `compress` for a share of the weights of the whole network."""
    network, (pool, _) = resnet(NETWORK), cifar10(train=True)
    start, spent = time.perf_counter(), time.process_time()
    found, said = _warned(
        network,
        pool,
        ratio=settings["ratio"],
        size_of="network",
        choose=choose,
        search=settings["search"],
        seed=seed,
        calibration_seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - start
    spent = time.process_time() - spent
    return _result(found, (seconds, spent), said)


def run_prediction(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Predict and measure the time of networks of the path, from small to dense."""
    network, (pool, _) = resnet(NETWORK), cifar10(train=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = compression_problem(
            network,
            pool,
            gamma=1.0,
            size="latency",
            size_of="network",
            choose=choose,
            latency_batch=settings["batch"],
            calibration_seed=seed,
        )
    path = price_path(problem)
    smallest = float(path.table["compression_ratio"].iloc[0])
    step = (1.0 / smallest) ** (1.0 / NETWORKS)
    positions = [path.at_ratio(smallest * step**i) for i in range(NETWORKS)]
    points = []
    for position in positions:
        ranks = path.networks[position]
        found = measured_time(
            problem, path.network(position), ranks, seconds=_MEASURE_SECONDS
        )
        points.append(
            {
                "weights": whole_network_ratio(problem.network, problem.layers, ranks),
                "predicted": found.predicted,
                "measured": found.ratio,
                "low": found.low,
                "high": found.high,
                "pairs": found.pairs,
                "milliseconds": 1e3 * found.after,
            }
        )
    table = problem.measure.table
    return {
        "points": points,
        "milliseconds": None if table is None else 1e3 * table.whole,
        "table_seconds": None if table is None else table.measured_in,
        "known": None if table is None else table.known,
    }


def _warned(
    network: nn.Module, pool: Tensor, **options: Any
) -> tuple[CompressionResult, list[str]]:
    """Compress, and note what the user would be warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compress(network, pool, **options)
    return found, [str(w.message) for w in caught if w.category is UserWarning]


def _result(
    found: CompressionResult, seconds: tuple[float, float], said: list[str]
) -> dict[str, Any]:
    """What came out, with the accuracy on all test images."""
    problem, latency = found.problem, found.latency
    rows = found.layers.to_dict("records")
    return {
        "stop_reason": found.stop_reason,
        "holds": found.certificate.holds,
        "level": found.certificate.level,
        "gamma": problem.gamma,
        "evaluations": len(found.trials),
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "timings": found.timings,
        "ratio": found.size_ratio,
        "layers_in_play": len(problem.layers),
        "weights": compression_ratio(problem.layers, found.ranks),
        "whole_weights": whole_network_ratio(
            problem.network, problem.layers, found.ranks
        ),
        "loss": found.loss.mean,
        "ranks": {row["layer"]: row["rank"] for row in rows},
        "kinds": {row["layer"]: row["kind"] for row in rows},
        "beside_incumbent": None
        if found.beside_incumbent is None
        else found.beside_incumbent.mean,
        "latency": None if latency is None else latency.to_dict(),
        "warnings": said,
        "top1": _accuracy(found.network),
        "top1_original": _original(),
    }


def _accuracy(network: nn.Module) -> float:
    """Top-1 accuracy on the test images."""
    images, labels = cifar10(train=False)
    predicted = outputs_of(network, images[:TEST_IMAGES]).argmax(1)
    return float((predicted == labels[:TEST_IMAGES]).double().mean())


@cache
def _original() -> float:
    """Top-1 accuracy of the original."""
    return _accuracy(resnet(NETWORK))
