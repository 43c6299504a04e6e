"""Choices of ranks on either factors: rules, the price path, and searches."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import torch

from ax_pac import KnownPart
from benchmarks.data_aware.subjects import (
    FACTORS,
    measured_cut,
    measured_network,
    subject,
)
from benchmarks.harness.factors import sharing
from benchmarks.networks.cifar import outputs_of
from benchmarks.networks.imagenet import Images
from benchmarks.networks.rank_rules import (
    GREEDY_IMAGES,
    Ranks,
    Rule,
    at_ratio,
    energy_rule,
    errors_rule,
    evbmf_rule,
    fraction_rule,
    greedy_rule,
    path_rule,
    sensitivity_rule,
)
from compression_adapters import CompressionProblem, compress, compression_problem
from compression_adapters.evaluation.loss_curves import ERRORS
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.network.truncation import truncated
from compression_adapters.options import SearchOptions, Target
from compression_adapters.search import known_part
from compression_adapters.search.no_search import take_from_path
from compression_adapters.search.result import CompressionResult

TEST_IMAGES = 10_000
MAX_TRIALS = 200
_FEW = 16
RULES = (
    *("path", "errors", "greedy", "fraction"),
    *("sensitivity", "energy", "evbmf"),
)
# Prices of size, times gamma, at which its network is taken: where losses of layers
# add up the first is the best.
PRICE_SHARES = (1.0, 0.5)
# Compression ratios at which every rule is measured.
RATIOS: Mapping[str, tuple[float, ...]] = {
    "fc3": (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.09, 0.12, 0.2),
    "resnet18": (
        *(0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.18),
        *(0.25, 0.38, 0.55),
    ),
    "resnet50": (0.06, 0.09, 0.12, 0.15, 0.18, 0.25, 0.4, 0.6),
    "transformer": (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7),
}


def run_rule(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Follow a rule along its ratios, and measure each on the test images."""
    name, method = settings["network"], settings["method"]
    problem = problem_of(name, settings["factors"], seed)
    start = time.process_time()
    images, rule = _followed(problem, method, seed)
    seconds = time.process_time() - start
    chosen: list[Ranks] = []
    for ratio in settings.get("ratios", RATIOS[name]):
        ranks = at_ratio(problem, rule, ratio)
        if ranks not in chosen:
            chosen.append(ranks)
    number = settings.get("images", TEST_IMAGES)
    points = [
        measured_cut(name, problem.layers, problem.factors, ranks, number)
        for ranks in chosen
    ]
    return {"images": images, "seconds": seconds, "points": points}


def _followed(problem: CompressionProblem, method: str, seed: int) -> tuple[int, Rule]:
    """A rule, and the images that it looks at before it knows all its ranks."""
    layers = len(problem.layers)
    if method == "greedy":
        larger = dataclasses.replace(problem, num_samples=GREEDY_IMAGES)
        return 9 * layers * GREEDY_IMAGES, greedy_rule(larger, seed)
    if method == "path":
        most = 1 + len(ERRORS) * layers
        return most * problem.num_samples, path_rule(problem)
    if method == "sensitivity":
        return layers * problem.num_samples, sensitivity_rule(problem, seed)
    rules: dict[str, Callable[[CompressionProblem], Rule]] = {
        "fraction": fraction_rule,
        "energy": energy_rule,
        "evbmf": evbmf_rule,
        "errors": errors_rule,
    }
    return 0, rules[method](problem)


def run_path(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Choose the price by evaluations of the path: `compress` without a search."""
    name, gamma = settings["network"], settings["gamma"]
    problem = problem_of(name, settings["factors"], seed)
    start = time.process_time()
    found = take_from_path(
        # As `compress` would begin: no reference outputs are known.
        replace(problem, gamma=gamma, reference=None),
        SearchOptions(seed=seed, progress=False),
        Target(gamma=gamma),
    )
    seconds = time.process_time() - start
    return _result(found, seconds, settings)


def run_predicted(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Take the network of a gamma from the path, by predicted losses alone."""
    name, gamma = settings["network"], settings["gamma"]
    problem = problem_of(name, settings["factors"], seed)
    start = time.process_time()
    path = price_path(problem)
    seconds = time.process_time() - start
    number = settings.get("images", TEST_IMAGES)
    points = []
    for share in PRICE_SHARES:
        position = path.at_price(share / gamma)
        ranks = path.networks[position]
        found = measured_cut(name, problem.layers, problem.factors, ranks, number)
        predicted = float(path.table["predicted_loss"].iloc[position])
        points.append({"share": share, "predicted_loss": predicted, **found})
    return {"seconds": seconds, "points": points}


def run_taken(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Take the network of a size from the path: nothing is searched."""
    data = subject(settings["network"])
    start = time.process_time()
    found = compress(
        data.network,
        data.pool,
        ratio=settings["ratio"],
        search=False,
        choose=data.choose,
        seed=seed,
        calibration_seed=seed,
        progress=False,
        **FACTORS[settings["factors"]],
    )
    seconds = time.process_time() - start
    return _result(found, seconds, settings)


def run_search(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Search once, its calibration inputs chosen by its seed."""
    name = settings["network"]
    data = subject(name)
    start = time.process_time()
    # `compress` has no option for it: there is no reason to search without.
    unclipped = patch.object(known_part, "KnownPart", partial(KnownPart, clip=None))
    with nullcontext() if settings.get("clip", True) else unclipped:
        found = compress(
            data.network,
            data.pool,
            gamma=settings["gamma"],
            delta=settings["delta"],
            relative=settings["relative"],
            choose=data.choose,
            max_trials=settings.get("max_trials", MAX_TRIALS),
            **sharing(settings.get("coordinates")),
            seed=seed,
            calibration_seed=seed,
            progress=False,
            **FACTORS[settings["factors"]],
        )
    seconds = time.process_time() - start
    return _result(found, seconds, settings)


def _result(
    found: CompressionResult, seconds: float, settings: dict[str, Any]
) -> dict[str, Any]:
    """What was found, on the test images: its slices, and the network returned."""
    name, problem = settings["network"], found.problem
    number = settings.get("images", TEST_IMAGES)
    slices = measured_cut(name, problem.layers, problem.factors, found.ranks, number)
    # Measured on all images only where it is another network.
    same = _same_outputs(found, subject(name).test)
    returned = slices if same else measured_network(name, found.network, number)
    columns = ("objective", "objective_sem", "loss", "compression_ratio")
    return {
        "stop_reason": found.stop_reason,
        "holds": found.certificate.holds,
        "failure_probability": found.certificate.failure_probability,
        "reason": found.certificate.reason,
        "evaluations": len(found.trials),
        "images": len(found.trials) * problem.num_samples,
        "cpu_seconds": seconds,
        "timings": found.timings,
        "estimated_loss": found.loss.mean,
        **slices,
        "returned": {"loss": returned["loss"], "top1": returned["top1"]},
        "finish": None if found.finish is None else found.finish.to_dict(),
        "trials": [
            [_plain(row[column]) for column in columns]
            for row in found.trials.to_dict("records")
        ],
    }


def _plain(value: float) -> float | None:
    """As JSON: what was not measured is null."""
    return float(value) if math.isfinite(value) else None


def _same_outputs(found: CompressionResult, images: Images) -> bool:
    """Whether the network returned is that of the slices, on a few images."""
    problem, few = found.problem, images[torch.arange(_FEW)]
    with truncated(
        problem.network, problem.factors, problem.layers, found.ranks
    ) as cut:
        expected = outputs_of(cut, few)
    gap = (outputs_of(found.network, few) - expected).abs().max()
    # Rounding, of single precision.
    return bool(gap <= 1e-4 * expected.abs().max())


@lru_cache(maxsize=1)
def problem_of(name: str, factors: str, seed: int) -> CompressionProblem:
    """The problem at a gamma of 1, its calibration inputs chosen by the seed."""
    data = subject(name)
    return compression_problem(
        data.network,
        data.pool,
        gamma=1.0,
        choose=data.choose,
        calibration_seed=seed,
        **FACTORS[factors],
    )
