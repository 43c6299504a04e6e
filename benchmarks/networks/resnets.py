"""ResNets on CIFAR-10: the search against rules that choose ranks without one."""

from __future__ import annotations

import dataclasses
import time
from functools import cache, partial
from typing import Any

from torch import Tensor

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import matching, minutes_of
from benchmarks.harness.traces import Trace, recorded
from benchmarks.networks.cifar import cifar10, outputs_of, resnet
from benchmarks.networks.rank_rules import (
    GREEDY_IMAGES,
    Ranks,
    at_ratio,
    energy_rule,
    evbmf_rule,
    fraction_rule,
    greedy_rule,
)
from compression_adapters import (
    CompressionProblem,
    compress,
    compression_problem,
    compression_ratio,
)
from compression_adapters.network.truncation import truncated
from compression_adapters.presets.registry import PRESETS

NAME = "networks"
DESCRIPTION = "ResNet18 and ResNet50 on CIFAR-10: search against rules without one"
MINUTES_ONCE = 1.0

RULES = ("fraction", "energy", "evbmf", "greedy")
RATIOS = (0.09, 0.12, 0.15, 0.18, 0.25, 0.4, 0.6)
DELTA = 0.05
NUM_SAMPLES = 50
_MAX_TRIALS = 200
# Weights of the loss that lead to ratios from about 15 % up, measured.
GAMMAS = {
    "resnet18": (0.02, 0.15, 1.0, 2.0, 4.0),
    "resnet50": (0.005, 0.02, 0.15, 1.0, 2.0, 4.0),
}


# How a search begins, by the name of the method: see `compress`.
STARTS = {"line": "line", "search": "space-filling"}


def search(
    network: str, gamma: float, level: str, epsilon: float, method: str = "line"
) -> dict[str, Any]:
    """Settings of searches, by default as `compress` begins them."""
    return {
        "network": network,
        "method": method,
        "gamma": gamma,
        "level": level,
        "epsilon": epsilon,
    }


def rule(network: str, method: str) -> dict[str, Any]:
    """Settings of a rule, which has no gamma and no certificate."""
    return search(network, 0.0, "none", 0.0, method)


# Each with its number of runs and the core-minutes of one, measured.
_PLAN: tuple[tuple[dict[str, Any], int, float], ...] = (
    *((rule("resnet18", method), 1, 4.0) for method in RULES),
    *((search("resnet18", g, "marginal", 0.05), 5, 2.5) for g in GAMMAS["resnet18"]),
    *((rule("resnet50", method), 1, 8.0) for method in RULES),
    *((search("resnet50", g, "marginal", 0.05), 5, 5.0) for g in GAMMAS["resnet50"]),
    # The levels compared, on ten seeds.
    (search("resnet18", 0.02, "pairwise", 0.005), 10, 0.5),
    (search("resnet18", 0.02, "joint", 0.005), 10, 0.7),
    (search("resnet18", 0.02, "marginal", 0.05), 10, 1.5),
    # Without the networks whose layers are all cut alike.
    (search("resnet18", 0.02, "marginal", 0.05, "search"), 5, 2.0),
    (search("resnet18", 0.15, "marginal", 0.05, "search"), 3, 6.0),
    (search("resnet18", 2.0, "joint", 0.005, "search"), 1, 7.0),
)


def plan(seeds: int | None, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """Every setting that agrees with `changes`; a rule is one run."""
    wanted = matching((row for row, _, _ in _PLAN), changes)
    jobs = [
        (row, seed)
        for row, runs, _ in _PLAN
        if row in wanted
        for seed in range(1 if row["method"] in RULES else seeds or runs)
    ]
    return [job for i, job in enumerate(jobs) if job not in jobs[:i]]


minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Search once, or follow a rule along its ratios; measure on the test images."""
    result = (
        _searched(seed, settings)
        if settings["method"] in STARTS
        else _followed(seed, settings)
    )
    return recorded(NAME, settings, seed, result)


def _searched(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    network = resnet(settings["network"])
    images, _ = cifar10(train=True)
    start = time.perf_counter()
    found = compress(
        network,
        images,
        gamma=settings["gamma"],
        delta=DELTA,
        epsilon=settings["epsilon"],
        level=settings["level"],
        choose=PRESETS[settings["network"]].choose,
        num_samples=NUM_SAMPLES,
        start=STARTS[settings["method"]],
        max_trials=_MAX_TRIALS,
        seed=seed,
        progress=False,
        **WEIGHTS_ALONE,
    )
    seconds = time.perf_counter() - start
    return {
        "stop_reason": found.stop_reason,
        "holds": found.certificate.holds,
        "failure_probability": found.certificate.failure_probability,
        "reason": found.certificate.reason,
        "evaluations": len(found.trials),
        "images": len(found.trials) * NUM_SAMPLES,
        "seconds": seconds,
        "timings": found.timings,
        **measured(found.problem, found.ranks, settings["network"]),
    }


def _followed(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    name, method = settings["network"], settings["method"]
    problem = compression_problem(
        resnet(name),
        cifar10(train=True)[0],
        gamma=1.0,
        choose=PRESETS[name].choose,
        **WEIGHTS_ALONE,
    )
    start = time.perf_counter()
    images = 0
    if method == "greedy":
        larger = dataclasses.replace(problem, num_samples=GREEDY_IMAGES)
        followed = greedy_rule(larger, seed)
        images = 9 * len(problem.layers) * GREEDY_IMAGES
    else:
        rules = {"fraction": fraction_rule, "energy": energy_rule, "evbmf": evbmf_rule}
        followed = rules[method](problem)
    seconds = time.perf_counter() - start
    chosen: list[Ranks] = []
    for ratio in RATIOS:
        ranks = at_ratio(problem, followed, ratio)
        if ranks not in chosen:
            chosen.append(ranks)
    points = [measured(problem, ranks, name) for ranks in chosen]
    return {"images": images, "seconds": seconds, "points": points}


def measured(problem: CompressionProblem, ranks: Ranks, name: str) -> dict[str, Any]:
    """Ratio, loss and accuracy of a choice of ranks on all test images."""
    images, labels = cifar10(train=False)
    reference = reference_outputs(name)
    with truncated(problem.network, problem.factors, problem.layers, ranks) as network:
        outputs = outputs_of(network, images)
    loss = (outputs - reference).square().sum(1)
    return {
        "ranks": ranks,
        "ratio": compression_ratio(problem.layers, ranks),
        "loss": float(loss.mean()),
        "loss_sem": float(loss.std() / len(loss) ** 0.5),
        "top1": float((outputs.argmax(1) == labels).float().mean()),
        "top1_original": float((reference.argmax(1) == labels).float().mean()),
    }


@cache
def reference_outputs(name: str) -> Tensor:
    return outputs_of(resnet(name), cifar10(train=False)[0])
