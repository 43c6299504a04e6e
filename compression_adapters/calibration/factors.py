"""Factors of a network's layers, fitted to what the layers see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from torch import nn

from compression_adapters.calibration.gather import gather_moments
from compression_adapters.decompositions import (
    Factors,
    MomentKind,
    is_transposed_linear,
)
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.structured_inputs import Inputs
from compression_adapters.network.truncation import factorize_network

MOST_BYTES: Final = 2**30
"""Memory for the moments of one pass; where layers need more, there are more passes."""


def calibrated_factors(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    inputs: Inputs | None,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Factors]:
    """Decompose every layer once, by the moments of its inputs or outputs.

    The moments take 8 p^2 bytes for a layer with p entries in an input (of a
    convolution: in a patch) or output. Layers are taken together until that is
    `MOST_BYTES`; then they are decomposed, their moments are dropped, and the inputs
    are passed again for the next ones. A layer that alone would need four times as
    much, is complex, or was not called, is decomposed by its weights alone.

    Args:
        network: The reference network; not modified and not aliased.
        layers: The layers, from `find_layers`.
        inputs: Calibration inputs, shape `n x ...`; None for the weights alone.
        seed: Of the choice of patches, see `gather_moments`.
        progress: See `gather_moments`.

    Returns:
        Layer name to the factors of its decomposition.

    Raises:
        ValueError: when a layer is missing, or its weights or inputs are not finite.
    """
    if inputs is None:
        return factorize_network(network, layers)
    factors: dict[str, Factors] = {}
    for together in _groups(network, layers):
        wanted = {layer.name: kind for layer, kind in together if kind is not None}
        moments = gather_moments(network, wanted, inputs, seed=seed, progress=progress)
        specs = [layer for layer, _ in together]
        factors |= factorize_network(network, specs, moments)
    return {layer.name: factors[layer.name] for layer in layers}


def _groups(
    network: nn.Module, layers: Sequence[LayerSpec]
) -> Iterator[list[tuple[LayerSpec, MomentKind | None]]]:
    """Divide the layers into groups whose moments fit into memory together."""
    group: list[tuple[LayerSpec, MomentKind | None]] = []
    used = 0
    for layer in layers:
        module = network.get_submodule(layer.name)
        kind_of = getattr(layer.decomposition, "moments_of", None)
        kind: MomentKind | None = None if kind_of is None else kind_of(module)
        if any(parameter.is_complex() for parameter in module.parameters()):
            kind = None
        size = 0 if kind is None else _bytes(layer, kind, is_transposed_linear(module))
        if size > 4 * MOST_BYTES:
            kind, size = None, 0
        if group and used + size > MOST_BYTES:
            yield group
            group, used = [], 0
        group.append((layer, kind))
        used += size
    if group:
        yield group


def _bytes(layer: LayerSpec, kind: MomentKind, transposed: bool) -> int:
    """Return the memory of a layer's moments."""
    rows, columns = layer.weight_shape[0], 1
    for size in layer.weight_shape[1:]:
        columns *= size
    if transposed:
        rows, columns = columns, rows
    if kind == "inputs":
        return 8 * layer.groups * columns**2
    return 8 * rows**2 // layer.groups if kind == "outputs" else 8 * rows
