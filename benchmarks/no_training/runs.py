"""One network cut by one method to several sizes, and measured on its test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.data_aware.subjects import FACTORS, subject
from benchmarks.networks.evaluation import NetworkData, outputs_on
from benchmarks.networks.rank_rules import (
    Ranks,
    Rule,
    energy_rule,
    evbmf_rule,
    fraction_rule,
)
from compression_adapters import CompressionProblem, compress, compression_problem
from compression_adapters.evaluation.finishing import finish_network
from compression_adapters.evaluation.loss_curves import ERRORS
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.network.counts import whole_network_ratio
from compression_adapters.network.truncation import truncate_network
from compression_adapters.options import FEW_COORDINATES

RATIOS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the weights of the layers in play."""
TEST_IMAGES = 10_000
MAX_TRIALS = 100
SEARCH = "search"


def path_ranks(problem: CompressionProblem, ratio: float) -> Ranks:
    """The largest network of the price path within the ratio."""
    path = price_path(problem)
    return dict(path.networks[path.at_ratio(ratio)])


Method = Callable[[CompressionProblem, float], Ranks]
"""Ranks of all layers for a ratio. What it evaluates are samples of the problem."""


def _within(rule: Callable[[CompressionProblem], Rule]) -> Method:
    """The largest network of a rule of one number within the ratio."""

    def ranks(problem: CompressionProblem, ratio: float) -> Ranks:
        follow = rule(problem)
        low, high, best = 0.0, 1.0, follow(0.0)
        for _ in range(40):
            middle = 0.5 * (low + high)
            found = follow(middle)
            if problem.ratio(found) <= ratio:
                low, best = middle, found
            else:
                high = middle
        return best

    return ranks


METHODS: Mapping[str, Method] = {
    "path": path_ranks,
    "fraction": _within(fraction_rule),
    "energy": _within(energy_rule),
    "evbmf": _within(evbmf_rule),
}
"""To add a method, add a function here and a row to the plan."""

# Evaluations of a layer, and one more, that a method makes before it knows the ranks.
_EVALUATIONS = {"path": len(ERRORS)}


def run_rows(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Cut a network to every ratio, on one set of factors."""
    name, method = settings["network"], settings["method"]
    data = subject(name)
    number = settings.get("images", TEST_IMAGES)
    reference = outputs_on(data.network.eval(), data.test, number)
    ratios = settings.get("ratios", RATIOS)
    if method == SEARCH:
        found = [_searched(data, seed, settings, ratio) for ratio in ratios]
    else:
        found = _taken(data, seed, settings, ratios)
    rows = []
    for network, row in found:
        outputs = outputs_on(network, data.test, number)
        labels = data.test_labels[:number]
        chosen, original = outputs.argmax(1), reference.argmax(1)
        rows.append(
            {
                **row,
                "top1": float((chosen == labels).double().mean()),
                "top1_original": float((original == labels).double().mean()),
                "agreement": float((chosen == original).double().mean()),
            }
        )
    return {"rows": rows}


def _options(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What `compress` and `compression_problem` are both asked for."""
    return {"calibration_seed": seed, **FACTORS[settings["factors"]]}


_Found = list[tuple[torch.nn.Module, dict[str, Any]]]


def _taken(
    data: NetworkData, seed: int, settings: Mapping[str, Any], ratios: tuple[float, ...]
) -> _Found:
    """Cut by a method, refit each, and count what the one row would have taken."""
    start = time.process_time()
    problem = compression_problem(
        data.network, data.pool, gamma=1.0, **_options(settings, seed)
    )
    factors = time.process_time() - start
    known = problem.calibration
    evaluations = _EVALUATIONS.get(settings["method"], 0)
    looked = (evaluations * len(problem.layers) + 1) * problem.num_samples
    images = (looked if evaluations else 0) + (0 if known is None else known.count)
    method, chosen, found = METHODS[settings["method"]], 0.0, []
    for ratio in ratios:
        start = time.process_time()
        ranks = method(problem, ratio)
        # Losses of layers are kept from one ratio to the next.
        chosen = max(chosen, time.process_time() - start)
        start = time.process_time()
        cut = truncate_network(problem.network, problem.factors, problem.layers, ranks)
        network, record = finish_network(problem, cut, ranks, seed=seed)
        finish = time.process_time() - start
        row = {
            "asked": ratio,
            "ratio": problem.ratio(ranks),
            "whole": whole_network_ratio(problem.network, problem.layers, ranks),
            "ranks": ranks,
            "images": images + (0 if record is None else record.num_samples),
            "cpu_seconds": factors + chosen + finish,
            "certified": None,
        }
        found.append((network.eval(), row))
    return found


def _searched(
    data: NetworkData, seed: int, settings: Mapping[str, Any], ratio: float
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Search for a network of the ratio, as a user would."""
    start = time.process_time()
    result = compress(
        data.network,
        data.pool,
        ratio=ratio,
        coordinates=FEW_COORDINATES,
        max_trials=MAX_TRIALS,
        seed=seed,
        progress=False,
        **_options(settings, seed),
    )
    known, finish = result.problem.calibration, result.finish
    images = len(result.trials) * result.problem.num_samples
    images += 0 if known is None else known.count
    return result.network, {
        "asked": ratio,
        "ratio": result.problem.ratio(result.ranks),
        "whole": whole_network_ratio(
            result.problem.network, result.problem.layers, result.ranks
        ),
        "ranks": dict(result.ranks),
        "images": images + (0 if finish is None else finish.num_samples),
        "cpu_seconds": time.process_time() - start,
        "certified": result.certificate.holds,
    }
