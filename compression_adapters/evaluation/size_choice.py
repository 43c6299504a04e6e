"""The size that a problem is about, and the ranks that are worth a bin under it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from compression_adapters.decompositions import Factors
from compression_adapters.layers.survey import LayerSpec
from compression_adapters.network.latency import LatencyTable, measure_latency
from compression_adapters.network.sizes import (
    SizeMeasure,
    by_error,
    count_bytes,
    count_multiply_adds,
    count_weights,
    size_of_table,
    with_ranks,
)
from compression_adapters.network.structured_inputs import Inputs
from compression_adapters.options import ProblemOptions
from compression_adapters.rank_space.scales import DENSE, allowed_ranks
from compression_adapters.rank_space.threshold import THRESHOLD


def measured_size(
    network: nn.Module,
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    batch: Inputs,
    few: Inputs,
    options: ProblemOptions,
) -> SizeMeasure:
    """Count or measure what the layers cost at each rank.

    Args:
        network: The reference network.
        layers: The layers in play.
        factors: Their factors.
        batch: The batch that is timed. Shape `n x ...`.
        few: Inputs to count multiply-adds on. Shape `m x ...`.
        options: `size`, `size_of`, `latency_seconds` and `calibration_seed`.

    Returns:
        The measure.

    Raises:
        ValueError: when a table of times is none, or of other layers.
    """
    size = options.size
    if size == "weights":
        measure = count_weights(network, layers)
    elif size == "multiply-adds":
        measure = count_multiply_adds(network, layers, few)
    elif size == "bytes":
        measure = count_bytes(network, layers)
    else:
        if size == "latency":
            table = measure_latency(
                network,
                layers,
                factors,
                batch,
                seconds=options.latency_seconds,
                seed=options.calibration_seed,
            )
        elif isinstance(size, LatencyTable):
            table = size
        else:
            table = LatencyTable.load(size)
        measure = size_of_table(table, layers)
    return replace(measure, size_of=options.size_of)


def worthwhile_ranks(
    layers: Sequence[LayerSpec],
    factors: Mapping[str, Factors],
    size: SizeMeasure,
    options: ProblemOptions,
) -> tuple[tuple[LayerSpec, ...], SizeMeasure, dict[str, tuple[int, ...]]]:
    """Leave out the ranks that cost as much as one with a smaller error.

    Of weights, every rank costs more than the one below it and no more than the dense
    layer. Times step and fall: where rank 17 takes as long as rank 24 it is no choice,
    and a rank as slow as the dense layer never is. A layer without a choice is left out
    and becomes part of the rest of the network.

    Of several decompositions of a layer (`Ladder`), the forms that are left are its
    rungs, by growing size: each has the least error of all that are no larger.

    Args:
        layers: The layers in play.
        factors: Their factors, which say what each rank loses.
        size: What they cost.
        options: `tie`, `at_max`, `min_rank` and `round_to`.

    Returns:
        The layers, their maximal rank the largest that is worthwhile; the measure of
        them; and the ranks of those layers that have not all of them.

    Warns:
        UserWarning: with the layers that are left out.

    Raises:
        ValueError: when no layer has a rank that makes it smaller.
    """
    if options.tie == THRESHOLD:
        return tuple(layers), size, {}
    kept: list[LayerSpec] = []
    ranks: dict[str, tuple[int, ...]] = {}
    tables = dict(size.layers)
    for layer in layers:
        if layer.ladder is None and size.name == "weights":
            kept.append(layer)
            continue
        found = tables[layer.name].worthwhile(
            by_error(
                layer, factors[layer.name], tables[layer.name], _allowed(layer, options)
            ),
            dense=options.at_max == DENSE,
            margin=size.margin,
        )
        if not found:
            continue
        if layer.ladder is None:
            ranks[layer.name] = found
        chosen, tables[layer.name] = with_ranks(layer, tables[layer.name], found)
        kept.append(chosen)
    names = {layer.name for layer in kept}
    left = [layer.name for layer in layers if layer.name not in names]
    if not kept:
        raise ValueError(
            f"No rank makes any layer smaller in {size.unit}: {', '.join(left)}. "
            "Choose other layers or another decomposition (choose), a larger batch "
            "(latency_batch), or another size."
        )
    if left:
        warnings.warn(
            f"No rank makes these layers smaller in {size.unit}, so that they are left "
            f"as they are: {', '.join(left)}.",
            stacklevel=2,
        )
    return tuple(kept), replace(size, layers=tables).only(names), ranks


def _allowed(layer: LayerSpec, options: ProblemOptions) -> list[int]:
    """List the ranks that the options allow; each decomposition's, of a ladder."""
    allowed: list[int] = []
    for span in layer.spans:
        own = [layer.form_of(number).rank for number in span]
        low = min(options.min_rank, int(own[-1]))
        wanted = allowed_ranks(low, int(own[-1]), options.round_to)
        allowed += [n for n, rank in zip(span, own, strict=True) if rank in wanted]
    return allowed
