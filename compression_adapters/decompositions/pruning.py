"""Magnitude pruning: keep the largest weights of a layer and set the others to zero."""

import copy
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import has_plain_weight, require_rank
from compression_adapters.decompositions.channel_conv import ChannelConv2d
from compression_adapters.decompositions.cp import CPConv2d
from compression_adapters.decompositions.embedding import LowRankEmbedding
from compression_adapters.decompositions.low_rank_conv import LowRankConv2d
from compression_adapters.decompositions.moments import MomentKind, Moments
from compression_adapters.decompositions.svd import LowRankLinear
from compression_adapters.decompositions.tucker import TuckerConv2d

LEVELS: Final = 1000
"""Rank r keeps r thousandths of the weights; of a layer with fewer weights, r weights.

Stored with saved networks in the sense that their ranks mean this; never changed."""

_DENSE = (nn.Linear, nn.Conv2d)
_FACTORED = (LowRankLinear, LowRankConv2d, ChannelConv2d, TuckerConv2d, CPConv2d)
FACTORED_LAYERS: Final = (*_FACTORED, LowRankEmbedding)
"""The modules that the low-rank decompositions make."""


@dataclass(frozen=True, eq=False)
class PruningFactors:
    """A layer's weights with the first rank that keeps each of them.

    Args:
        layer: A copy of the layer.
        first_rank: For the entries of the weight tensors, in the order of `_weights`:
            the smallest rank that keeps an entry.
        singular_values: Norm of the weights that each rank adds. Shape `full_rank`.
    """

    layer: nn.Module
    first_rank: tuple[Tensor, ...]
    singular_values: Tensor


@dataclass(frozen=True)
class MagnitudePruning:
    """Keep a share of a layer's weights, the largest ones.

    The rank is the share in thousandths (`LEVELS`), so that under the `linear` encoding
    the coordinate is the share itself. Weights are sorted once; a trial compares each
    weight's rank with the requested one.

    The result is a layer of the same type with zeros among its weights. It runs, is
    exported and is trained like any other, but not faster. Only the kept weights are
    counted; `sparse_bytes` counts their size in a sparse format. A layer that was
    factored before is pruned with all its factors together, so that pruning can follow
    a low-rank stage. Biases are kept.

    Source: Han et al. 2015, through Ma et al. 2019, section 4.3. Deviation: a share per
        layer instead of a threshold in units of the weights' standard deviation.

    Example:
        >>> pruning, layer = MagnitudePruning(), nn.Linear(30, 20)
        >>> pruning.max_rank(layer)
        600
        >>> small = pruning.truncate(pruning.factorize(layer), 60)
        >>> int((small.weight != 0).sum())
        60
    """

    name: str = "pruning"
    searchable: bool = True

    def supports(self, layer: nn.Module) -> bool:
        """Accept plain linear layers and 2d convolutions, and their factored forms."""
        if type(layer) in _DENSE:
            return has_plain_weight(layer)
        return type(layer) in _FACTORED and not any(
            "forward" in vars(part) for part in layer.modules()
        )

    def max_rank(self, layer: nn.Module) -> int:
        """Return the rank that keeps every weight: 1000, or their number if less."""
        return _levels(_size(_supported(layer)))

    def moments_of(self, layer: nn.Module) -> MomentKind | None:
        """Return None: the weights alone are decomposed."""
        return None

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> PruningFactors:
        """Sort the weights by magnitude, once."""
        own = _bare(_supported(layer))
        weights = _weights(own)
        flat = torch.cat([weight.detach().flatten() for weight in weights]).abs()
        order = flat.argsort(descending=True, stable=True)
        size = len(flat)
        levels = _levels(size)
        counts = _counts(size).to(flat.device)
        positions = torch.arange(size, device=flat.device)
        ranks = torch.searchsorted(counts, positions, right=True) + 1
        first_rank = torch.empty(size, dtype=torch.int16, device=flat.device)
        first_rank[order] = ranks.to(torch.int16)
        added = torch.zeros(levels, dtype=torch.float64, device=flat.device)
        added.index_add_(0, first_rank.long() - 1, flat.double().square())
        sizes = [weight.numel() for weight in weights]
        return PruningFactors(
            own,
            tuple(
                part.reshape(weight.shape)
                for part, weight in zip(first_rank.split(sizes), weights, strict=True)
            ),
            added.sqrt(),
        )

    def truncate(self, factors: PruningFactors, rank: int) -> nn.Module:
        """Keep the weights whose rank is at most this one."""
        _require_rank(rank, len(factors.singular_values))
        memo: dict[int, nn.Parameter] = {}
        weights = _weights(factors.layer)
        for weight, first_rank in zip(weights, factors.first_rank, strict=True):
            kept = weight.detach().where(first_rank <= rank, 0)
            memo[id(weight)] = nn.Parameter(kept, requires_grad=False)
        # The memo makes deepcopy use the new tensors in place of the old ones.
        return copy.deepcopy(factors.layer, memo)

    def finalize(self, factors: PruningFactors, rank: int) -> nn.Module:
        """As `truncate`."""
        return self.truncate(factors, rank)

    def singular_values(self, factors: PruningFactors) -> Tensor:
        """Return the norm of the weights that each rank adds. Shape `max_rank`."""
        return factors.singular_values

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count the weights that are kept, at least 1; zeros do not count."""
        size = math.prod(weight_shape)
        return int(_counts(size)[rank - 1])

    def empty(self, layer: nn.Module, rank: int) -> nn.Module:
        """Return a copy of the layer, whose structure pruning does not change."""
        layer = _supported(layer)
        _require_rank(rank, _levels(_size(layer)))
        with torch.no_grad():
            return _bare(layer)


def sparse_bytes(size: int, kept: int, bytes_per_weight: int) -> int:
    """Count the bytes of a pruned weight in the smaller of two sparse formats.

    The kept values and their positions: one bit per weight of the dense layer, or four
    bytes per kept weight.

    Args:
        size: Number of weights of the layer before pruning.
        kept: Number of kept weights.
        bytes_per_weight: 4 for float32.

    Returns:
        Bytes, without the bias.

    Example:
        >>> sparse_bytes(8000, 800, 4), sparse_bytes(8000, 80, 4)
        (4200, 640)
    """
    return kept * bytes_per_weight + min(-(-size // 8), 4 * kept)


def _bare(layer: nn.Module) -> nn.Module:
    """Copy a layer without its hooks and what else a user put on it."""
    bare = object.__new__(type(layer))
    nn.Module.__init__(bare)
    for name, value in vars(layer).items():
        # Sizes and settings; the types are ours and torch's.
        if isinstance(value, int | str | tuple | list):
            object.__setattr__(bare, name, copy.copy(value))
    for name, p in layer._parameters.items():
        copied = None if p is None else nn.Parameter(p.detach().clone(), False)
        bare.register_parameter(name, copied)
    for name, part in layer.named_children():
        bare.add_module(name, _bare(part))
    return bare


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    """Return the weight tensors of a layer, all parts of a factored one."""
    return [p for p in layer.parameters() if p.ndim >= 2]


def _size(layer: nn.Module) -> int:
    """Count the weights of a layer."""
    return sum(weight.numel() for weight in _weights(layer))


def _levels(size: int) -> int:
    """Return the number of ranks of a layer with that many weights."""
    return min(LEVELS, size)


def _counts(size: int) -> Tensor:
    """Return the number of weights that each rank keeps. Shape `levels`."""
    levels = _levels(size)
    return torch.arange(1, levels + 1) * size // levels


def _supported(layer: nn.Module) -> nn.Module:
    """Refuse every other type by name."""
    if not MagnitudePruning().supports(layer):
        raise ValueError(
            "MagnitudePruning supports exactly nn.Linear and nn.Conv2d with a plain "
            f"weight, and layers that this package factored; got {layer!r}. Leave this "
            "layer out."
        )
    return layer


def _require_rank(rank: int, levels: int) -> None:
    """Raise a ValueError unless the rank is legal."""
    require_rank(rank, levels, f"magnitude pruning in {levels} steps")
