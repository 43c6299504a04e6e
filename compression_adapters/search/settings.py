"""What a search evaluates, in plain values that are kept with it and compared."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compression_adapters.evaluation.losses import is_stored_loss, stored_loss_name
from compression_adapters.evaluation.problem import CompressionProblem


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
        before, now = stored.get(setting), asked.get(setting)
        if setting == "loss" and is_stored_loss(str(before), str(now)):
            continue
        if not _same(before, now):
            return setting, _short(before), _short(now)
    return None


def _importance(setting: str) -> tuple[bool, bool, str]:
    """Put the cause first: other layers also change the digest of the network."""
    return setting != "layers", setting == "network", setting


def _same(one: Any, two: Any) -> bool:
    """Whether two settings agree, numbers up to rounding error."""
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-9)
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
    return {
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
