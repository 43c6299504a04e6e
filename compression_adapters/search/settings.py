"""What a search evaluates, in plain values that are kept with it and compared."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from compression_adapters.decompositions import Decomposition, Factors
from compression_adapters.evaluation.losses import is_stored_loss, stored_loss_name
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.structured_inputs import NetworkInputs
from compression_adapters.options import PATH

ENCODING: Final = "encoding"
"""Setting with the encoding, where it is `path`. Never renamed."""
SIZE_TABLE: Final = "table of times"
"""Setting with the measured times of a search by latency. Never renamed."""

_NUMBERS_DIFFER: Final = 1e-9
# Of what factors keep: of another machine, or another number of threads.
_FACTORS_DIFFER: Final = 1e-3
_ABSENT: Final = {
    **{"calibrate": 0, "size": "weights", "size_of": "layers"},
    ENCODING: "of each layer's ranks",
}
"""What a setting that was not kept stands for."""


def first_difference(
    stored: Mapping[str, Any], asked: Mapping[str, Any]
) -> tuple[str, str, str] | None:
    """Return the setting that explains a difference, with both values, None if equal.

    Args:
        stored: Settings as they were kept.
        asked: Settings of now.
    """
    asked = json.loads(json.dumps(asked))
    for setting in sorted({*stored, *asked}, key=_importance):
        before, now = (of.get(setting, _ABSENT.get(setting)) for of in (stored, asked))
        if setting == "loss" and is_stored_loss(str(before), str(now)):
            continue
        tolerance = _FACTORS_DIFFER if setting == "factors" else _NUMBERS_DIFFER
        if not _same(before, now, tolerance):
            return setting, _short(before), _short(now)
    return None


def _importance(setting: str) -> tuple[int, str]:
    """Put causes first: other layers also change the digest of the network."""
    causes: tuple[str, ...] = ("size", "size_of", SIZE_TABLE, "layers", "calibrate")
    causes += ("calibration_seed", ENCODING)
    if setting in causes:
        return causes.index(setting), setting
    derived = ("calibration inputs", "network", "factors")
    first = len(causes)
    place = first + 1 + derived.index(setting) if setting in derived else first
    return place, setting


def _same(one: Any, two: Any, tolerance: float) -> bool:
    """Whether two settings agree, numbers up to a relative tolerance."""
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=tolerance)
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return all(_same(a, b, tolerance) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def _short(value: Any) -> str:
    printer = reprlib.Repr()
    printer.maxstring = printer.maxother = 60
    return printer.repr(value)


def problem_settings(problem: CompressionProblem) -> dict[str, Any]:
    """Describe a problem by what determines its evaluations, as plain JSON values."""
    coordinates = [
        [parameter.name, parameter.layers, [scale.edges for scale in parameter.scales]]
        for parameter in problem.parameters
    ]
    settings: dict[str, Any] = {
        "layers": [
            [layer.name, layer.decomposition.name, layer.max_rank]
            for layer in problem.layers
        ],
        "encoding of the ranks": _digest(json.dumps(coordinates).encode()),
        "network": network_digest(problem.network),
        "gamma": problem.gamma,
        "objective": problem.objective,
        "loss": stored_loss_name(problem.loss),
        "num_samples": problem.num_samples,
    }
    if problem.encoding == PATH:  # absent as in searches from before there was one
        settings[ENCODING] = PATH
    size = problem.measure
    if not size.is_default:  # absent as in searches from before there was a choice
        settings["size"] = size.name
        settings["size_of"] = size.size_of
    if size.table is not None:
        settings[SIZE_TABLE] = size.table.to_dict()
    known = problem.calibration
    if known is not None:  # absent as in searches from before there was any
        settings["calibrate"] = known.count
        settings["calibration_seed"] = known.seed
        settings["calibration inputs"] = known.digest()
        settings["factors"] = [
            [layer.name, *_spectrum(layer.decomposition, problem.factors[layer.name])]
            for layer in problem.layers
        ]
    few = problem.sampler(2, torch.Generator().manual_seed(0)).inputs
    output = few.output if isinstance(few, NetworkInputs) else None
    if output is not None:  # absent as in searches from before there was a choice
        settings["output"] = output if not callable(output) else _path(output)
    if problem.held_out is not None:
        settings["held_out"] = problem.held_out.count
    return settings


def _path(function: Any) -> str:
    """Return where a function is defined."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _spectrum(decomposition: Decomposition, factors: Factors) -> list[float]:
    """Return what a layer's factors keep at a few ranks, up to which they may differ.

    Factors come out the same up to signs and to the rounding of another machine or
    number of threads.
    """
    squares = decomposition.singular_values(factors).double().square().cumsum(0)
    ranks = sorted({0, len(squares) // 10, len(squares) // 2, len(squares) - 1})
    return [float(squares[rank]) for rank in ranks]


def network_digest(network: nn.Module) -> str:
    """Return a short digest of a network's weights and buffers, by name.

    Args:
        network: Any network, on any device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
