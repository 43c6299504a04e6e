"""Coverage of intervals from the standard error of the mean, on real networks.

Every compressed network's per-sample losses are computed once for the whole pool and
kept; an evaluation on m samples is then a draw with replacement from a row, and the
truth is the row's mean. One replication is a small search: one evaluation of each
network, its raw standard errors, and the same smoothed over the search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from ax_pac.surrogate.noise import smoothed_sems
from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from benchmarks.networks.cifar import cifar10, outputs_of, resnet
from compression_adapters import compression_problem, compression_ratio
from compression_adapters.evaluation.estimates import MeanSEM, apply_sem_floor
from compression_adapters.presets.mnist_data import cache_folder
from compression_adapters.presets.registry import PRESETS

NAME = "sem_coverage"
DESCRIPTION = "Coverage of mean +- z SEM on FC3 and ResNet18, raw and smoothed"
MINUTES_ONCE = 8.0

NETWORKS = ("fc3", "resnet18")
# The objective is gamma * squared L2 + ratio: its noise is no function of its mean.
LOSSES = ("squared_l2", "top1_error", "objective")
SAMPLES = (10, 50, 200)
LEVELS = (0.95, 0.68)
METHODS = ("raw", "smoothed")
REPLICATIONS = 200
# As many points as a search of the paper's sizes evaluates.
_NUM_NETWORKS = 24
_HIGH_RANKS = 0.6
_GAMMA_RESNET18 = 0.02

# A seed is a set of replications of its own.
_PLAN = tuple(
    ({"network": network, "loss": loss, "m": m}, 1, 0.2)
    for network in NETWORKS
    for loss in LOSSES
    for m in SAMPLES
)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Replicate a search's evaluations and count the intervals that cover."""
    points, pools = _pools(settings["network"])
    values = pools[settings["loss"]].double().numpy()
    truth = values.mean(1)
    rng = np.random.default_rng([seed, settings["m"]])
    covered = {(how, level): [] for how in METHODS for level in LEVELS}
    sizes = {how: [] for how in METHODS}
    for _ in range(REPLICATIONS):
        estimates = _evaluate(values, settings, rng)
        mean = np.array([estimate.mean for estimate in estimates])
        sems = {"raw": np.array([estimate.sem for estimate in estimates])}
        sems["smoothed"] = smoothed_sems(
            points, mean, sems["raw"], num_samples=settings["m"]
        )
        for how, sem in sems.items():
            sizes[how].append(sem)
            for level in LEVELS:
                z = norm.ppf(0.5 + level / 2)
                covered[how, level].append(np.abs(mean - truth) <= z * sem)
    true_sem = values.std(1) / settings["m"] ** 0.5
    return recorded(
        NAME,
        settings,
        seed,
        {
            "networks": len(truth),
            "replications": REPLICATIONS,
            "truth": [round(float(t), 6) for t in truth],
            "skewness": float(np.median(_skewness(values))),
            "coverage": {
                f"{how} {level}": _summary(np.array(hits))
                for (how, level), hits in covered.items()
            },
            "log_error": {
                how: float(np.log(np.array(sem) / true_sem).std())
                for how, sem in sizes.items()
            },
        },
    )


def _evaluate(
    values: np.ndarray, settings: dict[str, Any], rng: np.random.Generator
) -> list[MeanSEM]:
    """One evaluation of each network, as `CompressionProblem.evaluate` reports it."""
    m = settings["m"]
    estimates: list[MeanSEM] = []
    for row in values:
        sample = row[rng.integers(len(row), size=m)]
        raw = MeanSEM(float(sample.mean()), float(sample.std(ddof=1) / m**0.5))
        estimates.append(
            apply_sem_floor(
                raw,
                num_samples=m,
                binary=settings["loss"] == "top1_error",
                earlier=estimates,
            )
        )
    return estimates


def _summary(hits: np.ndarray) -> dict[str, float]:
    """Share covered, its error over replications, and the worst network's share."""
    per_replication = hits.mean(1)
    return {
        "share": float(hits.mean()),
        "standard_error": float(
            per_replication.std(ddof=1) / len(per_replication) ** 0.5
        ),
        "worst_network": float(hits.mean(0).min()),
    }


def _skewness(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(1, keepdims=True)
    return (centred**3).mean(1) / (centred**2).mean(1) ** 1.5


@cache
def _pools(network: str) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Points of the search space and the losses there, one row a network."""
    build = {"fc3": _fc3_networks, "resnet18": _resnet18_networks}[network]
    d, reference, images, labels, gamma, compressed = build()
    points = SobolEngine(d, scramble=True, seed=0).draw(
        _NUM_NETWORKS, dtype=torch.float64
    )
    # Every other point where the ranks are high, as most points of a search are.
    points[::2] = _HIGH_RANKS + (1.0 - _HIGH_RANKS) * points[::2]
    digest = hashlib.sha256(f"{len(images)} {points.tolist()}".encode())
    for parameter in reference.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    path = cache_folder() / f"{NAME}-{network}-{digest.hexdigest()[:12]}.pt"
    if not path.is_file():
        reference_outputs = outputs_of(reference, images)
        rows: dict[str, list[Tensor]] = {loss: [] for loss in LOSSES}
        for u in points:
            network_u, ratio = compressed(u)
            outputs = outputs_of(network_u, images)
            gap = (outputs - reference_outputs).square().sum(1)
            rows["squared_l2"].append(gap)
            rows["objective"].append(gamma * gap + ratio)
            rows["top1_error"].append((outputs.argmax(1) != labels).float())
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({loss: torch.stack(values) for loss, values in rows.items()}, path)
    return points.numpy(), torch.load(path, weights_only=True)


# Dimension, reference network, images, labels, gamma, and from a point to the network
# there and its compression ratio.
_Built = tuple[
    int,
    nn.Module,
    Tensor,
    Tensor,
    float,
    Callable[[Tensor], tuple[nn.Module, float]],
]


def _fc3_networks() -> _Built:
    """FC3 on the 60,000 training images, ranks by the default encoding."""
    preset = PRESETS["fc3"]
    network = preset.trained()
    images, labels = preset.train_data()
    problem = compression_problem(
        network, images, gamma=preset.gamma, choose=preset.choose, **WEIGHTS_ALONE
    )
    names = [parameter.name for parameter in problem.parameters]

    def compressed(u: Tensor) -> tuple[nn.Module, float]:
        point = dict(zip(names, u.tolist(), strict=True))
        ratio = compression_ratio(problem.layers, problem.ranks(point))
        return problem.compress(point), ratio

    return len(names), network, images, labels, preset.gamma, compressed


def _resnet18_networks() -> _Built:
    """ResNet18 on CIFAR-10's test images, the second convolution of each block.

    A convolution is replaced by its best approximation of a lower rank as a matrix,
    output channels by the rest, ranks on a logarithmic scale: what matters here is the
    distribution of the losses, not the number of weights.
    """
    network = resnet("resnet18")
    images, labels = cifar10(train=False)
    layers = [name for name, _ in network.named_modules() if name.endswith(".conv2")]
    parts = {
        name: torch.linalg.svd(
            network.get_submodule(name).weight.detach().flatten(1), full_matrices=False
        )
        for name in layers
    }

    def compressed(u: Tensor) -> tuple[nn.Module, float]:
        copy = deepcopy(network)
        kept = total = 0
        for name, coordinate in zip(layers, u.tolist(), strict=True):
            U, S, V = parts[name]
            rank = round(len(S) ** coordinate)
            weight = (U[:, :rank] * S[:rank]) @ V[:rank]
            layer = copy.get_submodule(name)
            layer.weight.data = weight.reshape(layer.weight.shape)
            kept += min(rank * sum(weight.shape), weight.numel())
            total += weight.numel()
        return copy.eval(), kept / total

    return len(layers), network, images, labels, _GAMMA_RESNET18, compressed
