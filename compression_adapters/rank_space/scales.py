"""Encodings: which part of [0, 1] means which rank of a layer."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compression_adapters.layers.survey import LayerSpec
from compression_adapters.options import PATH, AtMax, require_rank_options

Rank = int | Literal["dense"]
"""The rank of a layer, or `"dense"` for a layer that is left unchanged."""
DENSE: Final = "dense"
"""The outcome that leaves a layer unchanged."""


MINIMAL_WIDTH_SHARE: Final = 0.01
"""Share of [0, 1] that the `energy` encoding divides equally among all bins."""


@dataclass(frozen=True)
class RankScale:
    """The bins of one layer: which part of [0, 1] means which rank.

    Bin i is `[edges[i], edges[i + 1])`, the last one closed. The bins stand for the
    ranks `min_rank` to `max_rank` and, with `at_max="dense"`, for the dense layer.

    Args:
        min_rank: Rank of the first bin.
        max_rank: Largest rank.
        at_max: Whether the last bin is `dense` or the factors at `max_rank`.
        edges: Strictly increasing from 0.0 to 1.0, one more than there are bins.
        round_to: Ranks are multiples of this, or `max_rank` if there is no multiple
            between the two.
        options: The ranks that have a bin, ascending, where others were skipped; None:
            all that are allowed.

    Raises:
        ValueError: when the edges do not fit the ranks.

    Example:
        >>> scale = RankScale(1, 2, "dense", (0.0, 0.5, 0.75, 1.0))
        >>> [scale.rank_from_unit(u) for u in (0.0, 0.5, 1.0)]
        [1, 2, 'dense']
        >>> scale.unit_from_rank("dense")
        0.875
    """

    min_rank: int
    max_rank: int
    at_max: AtMax
    edges: tuple[float, ...]
    round_to: int = 1
    options: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_rank <= self.max_rank:
            raise ValueError(
                "ranks must satisfy 1 <= min_rank <= max_rank; "
                f"got {self.min_rank} and {self.max_rank}."
            )
        if self.options is not None:
            allowed = allowed_ranks(self.min_rank, self.max_rank, self.round_to)
            rising = all(a < b for a, b in pairwise(self.options))
            if not self.options or not rising or not set(self.options) <= set(allowed):
                raise ValueError(
                    f"options must be ranks among {self.min_rank} to {self.max_rank}, "
                    f"ascending; got {self.options}."
                )
        bins = len(self.ranks) + (self.at_max == DENSE)
        if (
            len(self.edges) != bins + 1
            or self.edges[0] != 0.0
            or self.edges[-1] != 1.0
            or any(not a < b for a, b in pairwise(self.edges))
        ):
            raise ValueError(
                f"edges must increase strictly from 0.0 to 1.0 around {bins} bins; got "
                f"{len(self.edges)} edges, {self.edges[:2]} to {self.edges[-2:]}."
            )

    @cached_property
    def ranks(self) -> Sequence[int]:
        """The ranks that have a bin, ascending."""
        if self.options is not None:
            return self.options
        return allowed_ranks(self.min_rank, self.max_rank, self.round_to)

    def rank_from_unit(self, u: float) -> Rank:
        """Return the rank whose bin holds the unit coordinate `u`.

        Raises:
            ValueError: when `u` is NaN or outside [0, 1].
        """
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"A unit coordinate must lie in [0, 1]; got {u}.")
        i = bisect_right(self.edges, u, 1, len(self.edges) - 1) - 1
        return self.ranks[i] if i < len(self.ranks) else DENSE

    def bin_of_rank(self, rank: Rank) -> tuple[float, float]:
        """Return the two edges of the bin of `rank`.

        Raises:
            ValueError: when the scale has no such rank.
        """
        if rank == DENSE and self.at_max == DENSE:
            return self.edges[-2], self.edges[-1]
        if isinstance(rank, int) and rank in self.ranks:
            i = self.ranks.index(rank)
            return self.edges[i], self.edges[i + 1]
        dense = " or 'dense'" if self.at_max == DENSE else ""
        multiple = f", a multiple of {self.round_to}" if self.round_to > 1 else ""
        if self.options is not None:
            multiple += ", without those that are never the best at their size"
        raise ValueError(
            f"rank must be {self.min_rank} to {self.max_rank}{multiple}{dense}; got "
            f"{rank!r}."
        )

    def unit_from_rank(self, rank: Rank) -> float:
        """Return the centre of the bin of `rank`, which maps back to it.

        Raises:
            ValueError: when the scale has no such rank.
        """
        low, high = self.bin_of_rank(rank)
        return (low + high) / 2


def allowed_ranks(min_rank: int, max_rank: int, round_to: int) -> Sequence[int]:
    """List the multiples between two ranks; the larger one if there are none."""
    first = -(-min_rank // round_to) * round_to
    return range(first, max_rank + 1, round_to) or range(max_rank, max_rank + 1)


def _linear_edges(
    min_rank: int, max_rank: int, dense: bool, singular_values: Tensor | None
) -> NDArray[np.float64]:
    """Give every outcome the same width."""
    return np.arange(max_rank - min_rank + 2 + dense, dtype=np.float64)


def _log_edges(
    min_rank: int, max_rank: int, dense: bool, singular_values: Tensor | None
) -> NDArray[np.float64]:
    """Give rank r the width log((r + 1) / r); dense counts as rank max_rank + 1."""
    return np.log(np.arange(min_rank, max_rank + 2 + dense) / min_rank)


def _energy_edges(
    min_rank: int, max_rank: int, dense: bool, singular_values: Tensor | None
) -> NDArray[np.float64]:
    """Give rank r the share of squared singular values that it adds."""
    if singular_values is None:
        raise ValueError("encoding 'energy' needs the layer's singular values.")
    s = singular_values.detach().double().cpu().numpy()
    if s.ndim != 1 or len(s) < max_rank or not np.isfinite(s).all() or (s < 0).any():
        raise ValueError(
            f"singular_values must be at least {max_rank} finite numbers, none of them "
            f"negative; got shape {s.shape}."
        )
    if not s.any():
        raise ValueError(
            "encoding 'energy' is not defined for a weight of zeros; use 'log'."
        )
    energy = np.cumsum((s / s.max()) ** 2)
    energy /= energy[-1]
    # Ranks below min_rank join the first bin, all above max_rank the last.
    inner = energy[min_rank - 1 : max_rank if dense else max_rank - 1]
    widths = np.diff(np.concatenate(([0.0], inner, [1.0]))).clip(min=0.0)
    floor = MINIMAL_WIDTH_SHARE / len(widths)
    widths = (1.0 - MINIMAL_WIDTH_SHARE) * widths / widths.sum() + floor
    return np.concatenate(([0.0], np.cumsum(widths)))


def size_edges(sizes: Sequence[float], dense: bool) -> NDArray[np.float64]:
    """Give each rung the logarithm of the factor to the size of the next one.

    That is `log` for sizes: of one decomposition by weights they are multiples of the
    rank. Dense, or the last rung without it, is as wide as the others on average.
    """
    known = np.asarray(sizes if dense else sizes[:-1], dtype=np.float64)
    # A time may be too short for the clock.
    logs = np.log(np.maximum(known, 1e-9 * known[-1]))
    inner = logs - logs[0]
    steps = len(inner) - 1
    last = inner[-1] + (inner[-1] / steps if steps else 1.0)
    return np.append(inner, last)


ENCODINGS: dict[str, Callable[[int, int, bool, Tensor | None], NDArray[np.float64]]] = {
    "linear": _linear_edges,
    "log": _log_edges,
    "energy": _energy_edges,
}
"""Encodings by name: the edges of the bins, from 0 and up to a common factor."""


def rank_scale(
    layer: LayerSpec,
    *,
    encoding: str = "log",
    at_max: AtMax = "dense",
    min_rank: int = 1,
    round_to: int = 1,
    singular_values: Tensor | None = None,
    options: Sequence[int] | None = None,
) -> RankScale:
    """Divide [0, 1] into the bins of one layer's ranks.

    - `linear`: equal widths. The paper's encoding; all useful ranks of a wide layer lie
      in one corner of the cube.
    - `log`: the bin of rank r is [log(r / r_min), log((r + 1) / r_min)), scaled to [0,
      1]: the rank grows geometrically. Dense counts as rank max_rank + 1, so that its
      bin is as wide as that of one more rank, and not the single point 1.0. On a
      ladder of several decompositions the size grows geometrically.
    - `energy`: the coordinate is the share of the layer's squared singular values that
      is kept; dense takes the energy beyond `max_rank`. One hundredth of the range
      (`MINIMAL_WIDTH_SHARE`) is divided equally among the bins, so that each rank stays
      reachable even where singular values are zero.

    Args:
        layer: The layer.
        encoding: A key of `ENCODINGS`. `log` is the default because searches with it
            end at the right answer more often than with the other two.
        at_max: Whether the last bin means *left dense*, or as in the paper the factors
            at `max_rank`, which cost as much as the layer and are less accurate.
        min_rank: Smallest rank. Above the layer's `max_rank` it is clipped to it: a
            floor of 10 on a layer with maximal rank 9 leaves rank 9 (and dense).
        round_to: Use only multiples of this, such as 8, which some hardware prefers. A
            bin includes the ranks below it that are not multiples, the last bin also
            those above. A layer without a multiple keeps its `max_rank`.
        singular_values: For `energy` only. Shape `full_rank`.
        options: The ranks that are worth a bin, ascending, the last one the layer's
            `max_rank`; a bin includes the skipped ranks below it. None: all.

    Returns:
        The scale.

    Raises:
        ValueError: for an unknown encoding or `at_max`, `min_rank` or `round_to` below
            1, or singular values that `energy` cannot use; the message names the layer.

    Source: Ma et al. 2019, section 3.3 (linear, `at_max="factor"`). Deviation: the
        paper does not specify its rounding; here each rank has a bin.

    Example:
        >>> layer = LayerSpec("fc", None, (30, 20), 12, 600)
        >>> scale = rank_scale(layer, encoding="log")
        >>> [scale.rank_from_unit(u / 4) for u in range(5)]
        [1, 1, 3, 7, 'dense']
    """
    check_scale_options(layer, encoding, at_max, min_rank, round_to)
    ladder = layer.ladder
    if ladder is not None:
        # Its rungs are what these options left.
        min_rank, round_to = 1, 1
        if encoding == "log":
            edges = size_edges(ladder.sizes, at_max == DENSE)
            return scale_of_edges(edges, 1, layer, at_max, 1)
    if encoding == PATH:
        raise ValueError(
            f"Layer {layer.name!r}: the encoding 'path' depends on what each layer "
            "costs in loss; use it with compression_problem or compress."
        )
    low = min(min_rank, layer.max_rank)
    try:
        edges = ENCODINGS[encoding](
            low, layer.max_rank, at_max == DENSE, singular_values
        )
    except ValueError as error:
        raise ValueError(f"Layer {layer.name!r}: {error}") from error
    return scale_of_edges(edges, low, layer, at_max, round_to, options)


def check_scale_options(
    layer: LayerSpec, encoding: str, at_max: str, min_rank: int, round_to: int
) -> None:
    """Refuse options that are invalid for every scale.

    Raises:
        ValueError: as `rank_scale` does; the message names the layer.
    """
    try:
        require_rank_options(encoding, at_max, min_rank, round_to)
    except ValueError as error:
        raise ValueError(f"Layer {layer.name!r}: {error}") from error


def scale_of_edges(
    edges: NDArray[np.float64],
    low: int,
    layer: LayerSpec,
    at_max: AtMax,
    round_to: int,
    options: Sequence[int] | None = None,
) -> RankScale:
    """Make a scale from the edges of all ranks, keeping the allowed ones.

    Args:
        edges: Of the ranks from `low` to the layer's maximal one, and of dense with
            `at_max="dense"`; from 0 to any positive number.
        low: Smallest rank.
        layer: The layer.
        at_max: See `rank_scale`.
        round_to: See `rank_scale`.
        options: See `rank_scale`.

    Returns:
        The scale.
    """
    edges = edges / edges[-1]
    allowed = options or allowed_ranks(low, layer.max_rank, round_to)
    if round_to > 1 or options is not None:
        # The upper edge of a rank's bin is at its distance from the lowest rank.
        inner = [edges[rank - low + 1] for rank in allowed[:-1]]
        last = [edges[-2], 1.0] if at_max == DENSE else [1.0]
        edges = np.array([0.0, *inner, *last])
    kept = None if options is None else tuple(options)
    return RankScale(low, layer.max_rank, at_max, tuple(edges.tolist()), round_to, kept)
