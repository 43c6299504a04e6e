"""Count weights: of a network, of its layers, before and after."""

from collections.abc import Iterable, Mapping

import pandas as pd
from torch import nn

from compression_adapters.layers.survey import LayerSpec
from compression_adapters.rank_space.scales import DENSE, Rank


def num_weights(layers: Iterable[LayerSpec], ranks: Mapping[str, Rank]) -> int:
    """Count the weights of the layers in play, without biases.

    Args:
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`.

    Returns:
        Number of weights, without the triangular saving, as in the paper's tables.

    Raises:
        ValueError: when a layer has no rank.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> layers = find_layers(nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10)))
        >>> num_weights(layers, {"0": 3, "1": "dense"})
        350
    """
    return sum(_layer_weights(layer, ranks) for layer in layers)


def compression_ratio(layers: Iterable[LayerSpec], ranks: Mapping[str, Rank]) -> float:
    """Return compressed / original weights, over the layers in play.

    Args:
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`.

    Returns:
        The ratio R, dimensionless. In (0, 1] for ranks up to `max_rank`.

    Raises:
        ValueError: when a layer has no rank.

    Source: Ma et al. 2019, section 3.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> layers = find_layers(nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10)))
        >>> compression_ratio(layers, {"0": 3, "1": "dense"})
        0.4375
    """
    layers = tuple(layers)
    return num_weights(layers, ranks) / sum(layer.num_weights for layer in layers)


def whole_network_ratio(
    network: nn.Module, layers: Iterable[LayerSpec], ranks: Mapping[str, Rank]
) -> float:
    """Return compressed / original weights, over the whole network.

    Weights are the entries of all parameters with two or more dimensions (linear
    layers, convolutions, embeddings), each counted once however often it is used.
    Biases and the scales of normalisation layers are not counted.

    Args:
        network: The reference network.
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`.

    Returns:
        The ratio, dimensionless; at least `compression_ratio` when that is below 1.

    Raises:
        ValueError: when a layer has no rank.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
        >>> whole_network_ratio(network, find_layers(network)[:1], {"0": 3})
        0.4375
    """
    layers = tuple(layers)
    total = sum(p.numel() for p in network.parameters() if p.ndim >= 2)
    saved = sum(layer.num_weights for layer in layers) - num_weights(layers, ranks)
    return (total - saved) / total


def layer_table(layers: Iterable[LayerSpec], ranks: Mapping[str, Rank]) -> pd.DataFrame:
    """Tabulate the rank and the weights of each layer.

    Args:
        layers: The layers in play.
        ranks: Layer name to rank or `"dense"`.

    Returns:
        One row per layer: `layer`, `kind` (the decomposition's name), `weight_shape`,
        `max_rank`, `rank`, `weights`, `weights_before`, `ratio`. Where a layer has a
        ladder also `rung`, the number of its rung or `"dense"`; then `max_rank` is the
        number of rungs, and `kind` and `rank` are those of the rung.

    Raises:
        ValueError: when a layer has no rank.

    Example:
        >>> from compression_adapters.layers.survey import find_layers
        >>> layers = find_layers(nn.Sequential(nn.Linear(30, 20)))
        >>> layer_table(layers, {"0": 3})[["rank", "weights", "ratio"]]
           rank  weights  ratio
        0     3      150   0.25
    """
    layers = tuple(layers)
    rows = []
    for layer in layers:
        weights = _layer_weights(layer, ranks)
        kind, own = layer.form_of(ranks[layer.name])
        rows.append(
            {
                "layer": layer.name,
                "kind": kind,
                "weight_shape": layer.weight_shape,
                "max_rank": layer.max_rank,
                "rank": own,
                "weights": weights,
                "weights_before": layer.num_weights,
                "ratio": weights / layer.num_weights,
            }
        )
    table = pd.DataFrame(rows)
    if any(layer.ladder is not None for layer in layers):
        table["rung"] = [ranks[layer.name] for layer in layers]
    return table


def _rank_of(layer: LayerSpec, ranks: Mapping[str, Rank]) -> Rank:
    """Return a layer's rank, or raise if it is missing."""
    try:
        return ranks[layer.name]
    except KeyError:
        raise ValueError(
            f"ranks has no entry for layer {layer.name!r}; it has "
            f"{', '.join(ranks) or 'none'}."
        ) from None


def _layer_weights(layer: LayerSpec, ranks: Mapping[str, Rank]) -> int:
    """Count one layer's weights at its rank."""
    rank = _rank_of(layer, ranks)
    if rank == DENSE:
        return layer.num_weights
    return layer.weights_at(rank)
