"""Figs. 2 and 3: the squared distance as a proxy for the error, at random ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.harness.plans import minutes_of
from benchmarks.harness.traces import Trace, recorded
from benchmarks.networks.evaluation import NetworkEvaluation, outputs_on
from benchmarks.paper.runs import network_of, planned_source
from compression_adapters import IntermediateSquaredL2
from compression_adapters.network.truncation import truncated

NAME = "paper_proxy"
DESCRIPTION = "paper, Figs. 2 and 3: squared distance against top-1 error, random ranks"
MINUTES_ONCE = 0.5

# Layers at which the distance is taken; the output is "".
LAYERS = {
    "resnet18": ("layer2", "layer3", "layer4", ""),
    "resnet50": ("layer2", "layer3", "layer4", ""),
    "vgg16": ("0.9", "0.16", "0.23", ""),
}
# The paper: 1,000 training images for the distance, 5,000 test images for the error.
NUM_DISTANCE_IMAGES = 1_000
NUM_ERROR_IMAGES = 5_000
NUM_POINTS = 40
# Core-minutes of a run, measured.
_MINUTES = {"resnet18": 3.0, "resnet50": 12.0, "vgg16": 25.0}


# How ranks are drawn. `linear`: each on its own, uniform up to the maximal one; hardly
# any such choice does much harm, so errors lie close together. `log`: about the same
# share for every layer on a logarithmic scale, so that all errors are met.
SCALES = ("log", "linear")


def settings(network: str, source: str, scale: str = "log") -> dict[str, Any]:
    return {
        "network": network,
        "source": source,
        "scale": scale,
        "points": NUM_POINTS,
        "distance_images": NUM_DISTANCE_IMAGES,
        "error_images": NUM_ERROR_IMAGES,
    }


_PLAN = tuple(
    (settings(network, source, scale), 1, factor * cost)
    for scale in SCALES
    for source, factor in (("here", 1.0), ("imagenet", 50.0))
    for network, cost in _MINUTES.items()
)

plan = partial(planned_source, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Measure random ranks: the distance at every layer, and the error."""
    scale = settings["scale"]
    evaluation = NetworkEvaluation(network_of(settings), 1.0, scale)
    rng = np.random.default_rng(seed)
    images_rng = torch.Generator().manual_seed(seed)
    number = min(settings["distance_images"], evaluation.pool_size)
    chosen = torch.randperm(evaluation.pool_size, generator=images_rng)[:number]
    layers = LAYERS[settings["network"]]
    points = []
    for _ in range(settings["points"]):
        ranks = evaluation.ranks(_random_point(len(evaluation.cells), scale, rng))
        points.append(
            {
                "distances": _distances(evaluation, ranks, chosen, layers),
                "error": _error(evaluation, ranks, settings["error_images"]),
            }
        )
    errors = [point["error"] for point in points]
    correlations = {
        layer or "output": float(
            spearmanr([point["distances"][i] for point in points], errors).statistic
        )
        for i, layer in enumerate(layers)
    }
    return recorded(
        NAME, settings, seed, {"points": points, "rank_correlations": correlations}
    )


def _random_point(dim: int, scale: str, rng: np.random.Generator) -> tuple[float, ...]:
    """A point of the unit box, in the encoding of the scale."""
    if scale == "linear":
        return tuple(rng.random(dim))
    return tuple(np.clip(rng.random() + 0.2 * rng.normal(size=dim), 0.0, 1.0))


def _distances(
    evaluation: NetworkEvaluation,
    ranks: dict[str, Any],
    chosen: Tensor,
    layers: tuple[str, ...],
) -> list[float]:
    """Mean squared distance over the images, at every layer, from one pass each."""
    problem, data = evaluation.problem, evaluation.data
    sums = np.zeros(len(layers))
    for chunk in chosen.split(250):
        images = data.pool[chunk]
        reference = _inside(problem.network, images, layers)
        with truncated(
            problem.network, problem.factors, problem.layers, ranks
        ) as network:
            outputs = _inside(network, images, layers)
        sums += [
            float((a - b).square().flatten(1).sum(1).double().sum())
            for a, b in zip(outputs, reference, strict=True)
        ]
    return [float(total) for total in sums / len(chosen)]


def _inside(
    network: torch.nn.Module, images: Tensor, layers: tuple[str, ...]
) -> list[Tensor]:
    """What each layer puts out, the network itself for an empty name."""
    with torch.inference_mode():
        return [
            IntermediateSquaredL2(layer).outputs(network, images)
            if layer
            else network(images)
            for layer in layers
        ]


def _error(evaluation: NetworkEvaluation, ranks: dict[str, Any], number: int) -> float:
    """Top-1 error on the first test images."""
    problem, data = evaluation.problem, evaluation.data
    with truncated(problem.network, problem.factors, problem.layers, ranks) as network:
        outputs = outputs_on(network, data.test, number)
    wrong = outputs.argmax(1) != data.test_labels[: len(outputs)]
    return float(wrong.double().mean())
