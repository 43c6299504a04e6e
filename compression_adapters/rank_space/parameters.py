"""Convert between points of the search space and ranks of layers."""

import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from compression_adapters.layers.survey import LayerSpec
from compression_adapters.options import AtMax, require_tie
from compression_adapters.rank_space.scales import (
    Rank,
    RankScale,
    rank_scale,
)
from compression_adapters.rank_space.threshold import threshold_scales

Tie = Callable[[str], str] | Literal["threshold"]
"""Which layers share a coordinate: layer name to group, or one threshold for all."""


# Edges of two scales closer than this are the same edge.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class RankParameter:
    """One search coordinate, driving one layer or several tied ones.

    Args:
        name: Parameter name: an identifier, for Ax.
        layers: Names of the layers it drives.
        scales: Their scales, in the same order.
    """

    name: str
    layers: tuple[str, ...]
    scales: tuple[RankScale, ...]

    def ranks_of_bins(self, edges: Iterable[float]) -> list[dict[str, Rank]]:
        """Return the ranks of the layers in each bin.

        Args:
            edges: Of this parameter, from `bin_edges`.
        """
        return [
            {
                layer: scale.rank_from_unit((low + high) / 2)
                for layer, scale in zip(self.layers, self.scales, strict=True)
            }
            for low, high in pairwise(edges)
        ]


def rank_parameters(
    layers: Iterable[LayerSpec],
    *,
    tie: Tie | None = None,
    encoding: str = "log",
    at_max: AtMax = "dense",
    min_rank: int = 1,
    round_to: int = 1,
    singular_values: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Sequence[int]] | None = None,
) -> tuple[RankParameter, ...]:
    """Build the search coordinates of a set of layers.

    Parameter names are identifiers, because Ax parses them in constraints:
    `layer4.0.conv1` becomes `layer4__0__conv1`, and a leading digit is prefixed by
    `layer_`. Different layers never share a name: if there are both `a.b` and `a__b`,
    the second one is called `a__b_2`.

    Args:
        layers: The layers, from `find_layers`.
        tie: Maps a layer name to a group; layers of one group share one coordinate,
            each through its own scale. None gives each layer its own. `"threshold"`
            gives pruned layers one coordinate, and one threshold on the magnitude of
            their weights, see `threshold_scales`.
        encoding: See `rank_scale`.
        at_max: See `rank_scale`.
        min_rank: See `rank_scale`.
        round_to: See `rank_scale`.
        singular_values: By layer name; needed for the encoding `energy` and for
            `"threshold"`.
        options: Layer name to the ranks that are worth a bin, see `rank_scale`; not
            with `"threshold"`. None: all.

    Returns:
        One parameter per group, in the order in which the groups first appear.

    Raises:
        ValueError: as `rank_scale` and `threshold_scales` do, or for a `tie` that is
            neither a function nor `"threshold"`.

    Source: Ma et al. 2019, section 3.3.

    Example:
        >>> layers = [LayerSpec(f"block.{i}", None, (30, 20), 12, 600) for i in (0, 1)]
        >>> [p.name for p in rank_parameters(layers)]
        ['block__0', 'block__1']
        >>> [p.layers for p in rank_parameters(layers, tie=lambda name: "block")]
        [('block.0', 'block.1')]
    """
    require_tie(tie)
    layers, spectra = tuple(layers), singular_values or {}
    settings: dict[str, Any] = {
        "encoding": encoding,
        "at_max": at_max,
        "min_rank": min_rank,
        "round_to": round_to,
    }
    groups: dict[str, list[tuple[str, RankScale]]] = {}
    if isinstance(tie, str):
        scales = threshold_scales(layers, singular_values=spectra, **settings)
        groups[tie] = list(scales.items())
    else:
        for layer in layers:
            values = spectra.get(layer.name)
            kept = None if options is None else options.get(layer.name)
            scale = rank_scale(layer, singular_values=values, options=kept, **settings)
            group = layer.name if tie is None else tie(layer.name)
            groups.setdefault(group, []).append((layer.name, scale))
    names = identifiers(groups)
    return tuple(
        RankParameter(
            names[group],
            tuple(name for name, _ in members),
            tuple(scale for _, scale in members),
        )
        for group, members in groups.items()
    )


def layer_ranks(
    parameterization: Mapping[str, float], parameters: Iterable[RankParameter]
) -> dict[str, Rank]:
    """Convert a point of the search space to the rank of every layer.

    Args:
        parameterization: Parameter name to unit coordinate.
        parameters: The search space.

    Returns:
        Layer name to rank or `"dense"`.

    Raises:
        ValueError: when parameters are missing or unknown, or a coordinate is NaN or
            outside [0, 1]; the message lists the names.

    Example:
        >>> layers = [LayerSpec("fc.1", None, (30, 20), 12, 600)]
        >>> layer_ranks({"fc__1": 1.0}, rank_parameters(layers))
        {'fc.1': 'dense'}
    """
    parameters = tuple(parameters)
    _require_names(parameterization, (p.name for p in parameters), "parameter")
    ranks: dict[str, Rank] = {}
    for parameter in parameters:
        u = parameterization[parameter.name]
        for layer, scale in zip(parameter.layers, parameter.scales, strict=True):
            try:
                ranks[layer] = scale.rank_from_unit(u)
            except ValueError as error:
                raise ValueError(f"Parameter {parameter.name!r}: {error}") from error
    return ranks


def parameterization_from_ranks(
    ranks: Mapping[str, Rank], parameters: Iterable[RankParameter]
) -> dict[str, float]:
    """Convert the ranks of the layers to a point of the search space.

    The inverse of `layer_ranks`: the centre of the rank's bin, or for tied layers the
    centre of the intersection of their bins.

    Args:
        ranks: Layer name to rank or `"dense"`.
        parameters: The search space.

    Returns:
        Parameter name to unit coordinate.

    Raises:
        ValueError: when layers are missing or unknown, a rank is not in its scale, or
            no coordinate gives tied layers their ranks.

    Example:
        >>> layers = [LayerSpec("fc", None, (30, 20), 12, 600)]
        >>> space = rank_parameters(layers)
        >>> layer_ranks(parameterization_from_ranks({"fc": 7}, space), space)
        {'fc': 7}
    """
    parameters = tuple(parameters)
    _require_names(ranks, (name for p in parameters for name in p.layers), "layer")
    point: dict[str, float] = {}
    for parameter in parameters:
        low, high = 0.0, 1.0
        for layer, scale in zip(parameter.layers, parameter.scales, strict=True):
            try:
                left, right = scale.bin_of_rank(ranks[layer])
            except ValueError as error:
                raise ValueError(f"Layer {layer!r}: {error}") from error
            low, high = max(low, left), min(high, right)
        if not low < high:
            wanted = {layer: ranks[layer] for layer in parameter.layers}
            raise ValueError(
                f"Parameter {parameter.name!r}: no coordinate gives the tied layers "
                f"the ranks {wanted}."
            )
        point[parameter.name] = (low + high) / 2
    return point


def bin_edges(parameters: Iterable[RankParameter]) -> dict[str, list[float]]:
    """Return the edges of the bins in which all points are the same network.

    These are the `cells` of `pac_generation_strategy`. Tied layers divide their
    coordinate at the edges of all of them, so that a bin holds one combination of
    ranks.

    Args:
        parameters: The search space.

    Returns:
        Parameter name to edges, strictly increasing from 0.0 to 1.0.

    Example:
        >>> layers = [LayerSpec("fc", None, (5, 9), 3, 45)]
        >>> bin_edges(rank_parameters(layers, encoding="linear"))
        {'fc': [0.0, 0.25, 0.5, 0.75, 1.0]}
    """
    return {parameter.name: _common_edges(parameter) for parameter in parameters}


def _common_edges(parameter: RankParameter) -> list[float]:
    """Merge the edges of tied layers; edges equal up to rounding become one."""
    merged = sorted({edge for scale in parameter.scales for edge in scale.edges})
    apart = [low for low, high in pairwise(merged) if high - low > _ROUNDING]
    return [*apart, 1.0]


def _require_names(given: Iterable[str], expected: Iterable[str], kind: str) -> None:
    """Raise a ValueError that lists missing and unknown names."""
    given, expected = list(given), list(expected)
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if missing or unknown:
        raise ValueError(
            f"Expected one entry for each {kind} ({', '.join(expected)}); "
            f"missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}."
        )


def identifiers(groups: Iterable[str]) -> dict[str, str]:
    """Map group names to identifiers, distinct ones for distinct groups."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for group in groups:
        base = re.sub(r"\W", "_", group.replace(".", "__"), flags=re.ASCII)
        if not base or base[0].isdigit() or keyword.iskeyword(base):
            base = f"layer_{base}"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        names[group] = name
    return names
