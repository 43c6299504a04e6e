"""One threshold on the magnitude of weights, for all pruned layers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compression_adapters.layers.survey import LayerSpec
from compression_adapters.options import AtMax
from compression_adapters.rank_space.scales import (
    DENSE,
    RankScale,
    check_scale_options,
    scale_of_edges,
)

THRESHOLD: Final = "threshold"
"""Value of `tie` for one threshold and one coordinate for all layers."""


_STEPS: Final = 1000.0


_FLOOR: Final = 1e-6
"""Share of [0, 1] divided equally among a layer's bins, for weights of equal size."""


Floats = NDArray[np.float64]


def threshold_scales(
    layers: Sequence[LayerSpec],
    *,
    encoding: str = "log",
    at_max: AtMax = "dense",
    min_rank: int = 1,
    round_to: int = 1,
    singular_values: Mapping[str, Tensor],
) -> dict[str, RankScale]:
    """Divide one coordinate into the ranks of each layer under one threshold.

    A layer with small weights loses more of them than a layer with large ones, which
    one share for all layers (`tie`) cannot achieve. The coordinate is the share of all
    weights that the threshold keeps: the share itself (`linear`), its logarithm from
    one thousandth on (`log`), or the share of all squared weights (`energy`).

    Layers are cut in steps of one thousandth (`LEVELS`), so the threshold that applies
    to a layer is off by at most half of one of its steps.

    Args:
        layers: The layers, all of them pruned.
        encoding: A key of `ENCODINGS`, of the share over all layers.
        at_max: Whether the last bin means that all layers are left dense.
        min_rank: Smallest rank of a layer, in thousandths of its weights.
        round_to: Use multiples of this as ranks.
        singular_values: By layer name, see `Decomposition.singular_values`.

    Returns:
        Layer name to its scale on the common coordinate.

    Raises:
        ValueError: for an unknown encoding or a layer that is not pruned; the message
            names it.

    Source: Han et al. 2015, through Ma et al. 2019, section 4.3.

    Example:
        >>> import torch
        >>> from compression_adapters import choose_pruning, factorize_network
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad():
        ...     for layer, size in zip(network, (1.0, 9.0)):
        ...         _ = layer.weight.copy_(size + torch.arange(16.0).view(4, 4) / 16)
        >>> layers = find_layers(network, choose_pruning)
        >>> factors = factorize_network(network, layers)
        >>> spectra = {n: layers[0].decomposition.singular_values(f)
        ...            for n, f in factors.items()}
        >>> scales = threshold_scales(
        ...     layers, encoding="linear", singular_values=spectra
        ... )
        >>> [scale.rank_from_unit(0.6) for scale in scales.values()]
        [4, 16]
    """
    for layer in layers:
        check_scale_options(layer, encoding, at_max, min_rank, round_to)
        if layer.decomposition.name != "pruning":
            raise ValueError(
                f"Layer {layer.name!r}: tie='threshold' compares magnitudes of weights "
                f"and needs pruning, this layer's decomposition is "
                f"{layer.decomposition.name!r}. Choose pruning for all layers "
                "(choose=choose_pruning), or leave this one out."
            )
    steps = {layer.name: _steps(layer, singular_values) for layer in layers}
    place = _place_on_coordinate(encoding, tuple(steps.values()))
    scales = {}
    for layer in layers:
        magnitudes, _ = steps[layer.name]
        low = min(min_rank, layer.max_rank)
        # Rank r begins where the threshold falls to the size of the weights it adds.
        # The lowest rank also stands for all higher thresholds.
        inner = place(magnitudes)[low:]
        if at_max == DENSE:
            inner = np.append(inner, place(np.array([-1.0])))
        widths = np.diff(np.concatenate(([0.0], inner, [1.0]))).clip(min=0.0)
        floor = _FLOOR / len(widths)
        widths = (1.0 - _FLOOR) * widths / widths.sum() + floor
        edges = np.concatenate(([0.0], np.cumsum(widths)))
        scales[layer.name] = scale_of_edges(edges, low, layer, at_max, round_to)
    return scales


def _steps(
    layer: LayerSpec, singular_values: Mapping[str, Tensor]
) -> tuple[Floats, Floats]:
    """Return for each rank the size and the number of the weights that it adds."""
    norms = singular_values[layer.name].detach().double().cpu().numpy()
    counts = np.array(
        [0, *(layer.weights_at(rank) for rank in range(1, layer.max_rank + 1))], float
    )
    added = np.diff(counts)
    # Root mean squares fall with the rank, since the weights are sorted.
    return np.minimum.accumulate(norms / np.sqrt(added)), added


def _place_on_coordinate(
    encoding: str, steps: Sequence[tuple[Floats, Floats]]
) -> Callable[[Floats], Floats]:
    """Map a threshold to its coordinate in [0, 1]."""
    sizes = np.concatenate([magnitudes for magnitudes, _ in steps])
    worth = np.concatenate(
        [
            added * magnitudes**2 if encoding == "energy" else added
            for magnitudes, added in steps
        ]
    )
    if not worth.any():
        raise ValueError(
            "encoding 'energy' is not defined for weights that are all zero; use 'log'."
        )
    order = np.argsort(-sizes, kind="stable")
    falling, kept = -sizes[order], np.cumsum(worth[order]) / worth.sum()
    kept = np.concatenate(([0.0], kept))

    def place(thresholds: Floats) -> Floats:
        """Share of the weights above a threshold, on the scale of the encoding."""
        share = kept[np.searchsorted(falling, -thresholds, side="left")]
        if encoding == "log":
            # One more step for dense, as in the encoding of a single layer.
            placed = np.log1p(_STEPS * share) / np.log(_STEPS + 2.0)
        else:
            placed = share * _STEPS / (_STEPS + 1.0)
        return np.asarray(placed, dtype=np.float64)

    return place
