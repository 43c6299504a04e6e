"""What calibration inputs cost and give: their number, the layers' errors, the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data_aware.subjects import (
    at_fraction,
    calibration_inputs,
    layers_of,
    measured_cut,
    subject,
)
from compression_adapters import compression_problem
from compression_adapters.calibration.factors import calibrated_factors
from compression_adapters.calibration.gather import gather_moments, output_rows
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.modes import evaluation_mode
from compression_adapters.network.truncation import factorize_network
from compression_adapters.options import CALIBRATE

COUNTS = (0, 50, 100, 200, 500, 1_000, 2_000, 5_000)
FRACTIONS = (0.1, 0.2)
# Images that are not used for calibration, of the test part.
FRESH_IMAGES = 2_000
ERROR_FRACTIONS = (0.1, 0.3, 0.5)
_ERROR_IMAGES = 500
_BATCH = 50
EVALUATIONS = 10
_ROUNDS = 3


def run_counts(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Factors of more and more inputs: seconds, and the loss at two fractions."""
    name = settings["network"]
    layers, rows = layers_of(name), []
    subject(name).network(calibration_inputs(name, 2, seed))  # warm
    for count in settings.get("counts", COUNTS):
        inputs = calibration_inputs(name, count, seed) if count else None
        factors, seconds = _timed(lambda i=inputs: _factors(name, layers, i, seed))
        cuts = [
            measured_cut(name, layers, factors, at_fraction(layers, fraction), images)
            for fraction in FRACTIONS
            for images in [settings.get("images", FRESH_IMAGES)]
        ]
        rows.append(
            {
                "count": count,
                "seconds": seconds,
                "loss": [cut["loss"] for cut in cuts],
                "loss_sem": [cut["loss_sem"] for cut in cuts],
                "top1": [cut["top1"] for cut in cuts],
                "ratio": [cut["ratio"] for cut in cuts],
                "top1_original": cuts[0]["top1_original"],
            }
        )
    return {"rows": rows, "layers": len(layers)}


def run_layers(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Relative errors of each layer's output on fresh inputs, by both factors."""
    name = settings["network"]
    data, layers = subject(name), layers_of(name)
    count = settings.get("calibrate", CALIBRATE)
    kinds = {
        "weights": factorize_network(data.network, layers),
        "data": _factors(name, layers, calibration_inputs(name, count, seed), seed),
    }
    cut: dict[str, list[tuple[str, float, nn.Module]]] = {}
    for layer in layers:
        cut[layer.name] = [
            (kind, fraction, layer.decomposition.truncate(factors[layer.name], rank))
            for fraction in ERROR_FRACTIONS
            for rank in [at_fraction([layer], fraction)[layer.name]]
            for kind, factors in kinds.items()
        ]
    sums = layer_errors(data.network, layers, cut, data.test[:_ERROR_IMAGES])
    return {"calibrate": count, "layers": sums}


def layer_errors(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    cut: Mapping[str, Sequence[tuple[str, float, nn.Module]]],
    images: Tensor,
) -> list[dict[str, Any]]:
    """Errors of cut layers on the inputs of the dense ones, over their outputs' size.

    Args:
        network: The original.
        layers: Those to look at.
        cut: Layer name to its cut versions, each with a kind and a fraction.
        images: Inputs of the network.

    Returns:
        One row for each layer and cut version: `layer`, `kind`, `fraction`, and
        `error`, the squared error over the squared size of the output without bias.
    """
    errors: dict[tuple[str, int], float] = {}
    sizes: dict[str, float] = dict.fromkeys(cut, 0.0)

    def watch(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = output_rows(module, output)
            sizes[name] += float(rows.double().square().sum())
            for i, (_, _, smaller) in enumerate(cut[name]):
                gap = (smaller(inputs[0]) - output).double().square().sum()
                errors[name, i] = errors.get((name, i), 0.0) + float(gap)

        return seen

    hooks = [
        network.get_submodule(layer.name).register_forward_hook(watch(layer.name))
        for layer in layers
    ]
    try:
        with torch.no_grad(), evaluation_mode(network):
            for batch in images.split(_BATCH):
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        {
            "layer": name,
            "kind": kind,
            "fraction": fraction,
            "error": errors[name, i] / sizes[name],
        }
        for name, versions in cut.items()
        for i, (kind, fraction, _) in enumerate(versions)
    ]


def run_time(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of both factors and of ten evaluations, in turn, several rounds."""
    name = settings["network"]
    data, layers = subject(name), layers_of(name)
    problem = compression_problem(
        data.network, data.pool, gamma=1.0, choose=data.choose, calibrate=0
    )
    point = {parameter.name: 0.7 for parameter in problem.parameters}
    wanted: dict[str, Any] = {}
    for layer in layers:
        module = data.network.get_submodule(layer.name)
        wanted[layer.name] = layer.decomposition.moments_of(module)
    rounds = []
    for number in range(settings.get("rounds", _ROUNDS)):
        inputs = calibration_inputs(name, CALIBRATE, seed + number)
        # Reference outputs of the images of one round are not known in the next.
        fresh = replace(problem, reference=None)

        def evaluations(fresh: Any = fresh, number: int = number) -> None:
            for index in range(EVALUATIONS):
                fresh.evaluate(point, seed=1_000 * number + index)

        _, weights = _timed(lambda: factorize_network(data.network, layers))
        _, evaluate = _timed(evaluations)
        _, aware = _timed(lambda i=inputs: _factors(name, layers, i, seed))
        _, moments = _timed(
            lambda i=inputs: gather_moments(
                data.network, wanted, i, seed=seed, progress=False
            )
        )
        rounds.append(
            {
                "weights": weights,
                "evaluations": evaluate,
                "data": aware,
                "moments": moments,
            }
        )
    return {"rounds": rounds, "calibrate": CALIBRATE, "layers": len(layers)}


def _factors(
    name: str, layers: Sequence[LayerSpec], inputs: Tensor | None, seed: int
) -> dict[str, Any]:
    """Factors by the inputs, as a search makes them."""
    network = subject(name).network
    return calibrated_factors(network, layers, inputs, seed=seed, progress=False)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the CPU seconds that it took."""
    start = time.process_time()
    found = function()
    return found, time.process_time() - start
