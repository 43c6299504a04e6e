"""Magnitude pruning: keep the largest weights of a layer and set the others to zero."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import (
    has_plain_weight,
    in_single_precision,
    require_rank,
)
from compression_adapters.decompositions.channel_conv import ChannelConv2d
from compression_adapters.decompositions.cp import CPConv2d
from compression_adapters.decompositions.embedding import LowRankEmbedding
from compression_adapters.decompositions.low_rank_conv import LowRankConv2d
from compression_adapters.decompositions.moments import RIDGE, MomentKind, Moments
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
        means: With moments, of a layer with a bias: E[x] of the inputs of each part.
            Shapes `groups x p`.
    """

    layer: nn.Module
    first_rank: tuple[Tensor, ...]
    singular_values: Tensor
    means: tuple[Tensor, ...] | None = None


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

    With moments of the inputs x, weights are sorted by what they contribute to the
    output instead,

        |w_ij| sqrt(Var[x_j]),  b_i' = b_i + sum of the w_ij E[x_j] that are cut

    and, in a layer without a bias, |w_ij| sqrt(E[x_j^2]). The sum of the squares of
    what is cut is the expected squared error of the output where inputs are
    uncorrelated. In a factored layer each factor has inputs of its own, and a weight is
    multiplied by the norm of the response of the layer's output to the channel that it
    adds to, so that all factors are comparable.

    Source: Han et al. 2015, through Ma et al. 2019, section 4.3. Deviation: a share per
        layer instead of a threshold in units of the weights' standard deviation. With
        moments: Sun et al. 2024, "A simple and effective pruning approach for large
        language models". Deviations: variances, and the bias; weights are compared in
        the layer and not in each output.

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

    def moments_of(self, layer: nn.Module) -> MomentKind:
        """Return `"squares"` of the inputs, of all factors of a factored layer."""
        return "squares"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> PruningFactors:
        """Sort the weights by magnitude or by what they contribute, once."""
        own = _bare(_supported(layer))
        weights = _weights(own)
        means = None
        if moments is None:
            scores = [weight.detach().abs() for weight in weights]
        else:
            parts, centred = parts_of(own), own.bias is not None
            found = _contributions(parts, moments, centred)
            scores = [found[id(weight)] for weight in weights]
            if centred:
                flat_means = moments.mean.flatten().split([_inputs(p) for p in parts])
                means = tuple(
                    mean.unflatten(0, (_groups(part), -1))
                    for part, mean in zip(parts, flat_means, strict=True)
                )
        flat = torch.cat([score.flatten() for score in scores])
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
            means,
        )

    def truncate(self, factors: PruningFactors, rank: int) -> nn.Module:
        """Keep the weights whose rank is at most this one."""
        _require_rank(rank, len(factors.singular_values))
        memo: dict[int, nn.Parameter] = {}
        weights = _weights(factors.layer)
        for weight, first_rank in zip(weights, factors.first_rank, strict=True):
            kept = weight.detach().where(first_rank <= rank, 0)
            memo[id(weight)] = nn.Parameter(kept, requires_grad=False)
        bias = factors.layer.bias
        if factors.means is not None and isinstance(bias, nn.Parameter):
            shift = _mean_lost(parts_of(factors.layer), factors.means, memo)
            memo[id(bias)] = nn.Parameter(bias.detach() + shift.to(bias), False)
        # The memo makes deepcopy use the new tensors in place of the old ones.
        return copy.deepcopy(factors.layer, memo)

    def finalize(self, factors: PruningFactors, rank: int) -> nn.Module:
        """As `truncate`."""
        return self.truncate(factors, rank)

    def singular_values(self, factors: PruningFactors) -> Tensor:
        """Return the norm of the weights that each rank adds. Shape `max_rank`.

        With moments, of what they contribute to the output.
        """
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


def parts_of(layer: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return the linear layers or convolutions that a layer runs, one after another.

    Args:
        layer: A dense layer, or one that this package factored (no embedding).

    Returns:
        Modules that hold the very weights of the layer.

    Example:
        >>> ones = torch.ones
        >>> parts_of(LowRankLinear(ones(3, 1), ones(1, 2), ones(3)))
        [Linear(in_features=2, out_features=1, bias=False), \
Linear(in_features=1, out_features=3, bias=True)]
    """
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return [layer]
    if isinstance(layer, LowRankLinear):
        first = nn.Linear(layer.in_features, layer.rank, bias=False, device="meta")
        second = nn.Linear(layer.rank, layer.out_features, device="meta")
        first.weight, second.weight = layer.right, layer.left
        second.register_parameter("bias", layer.bias)
        return [first, second]
    return [part for part in layer.children() if isinstance(part, nn.Conv2d)]


def _groups(part: nn.Linear | nn.Conv2d) -> int:
    return part.groups if isinstance(part, nn.Conv2d) else 1


def _inputs(part: nn.Linear | nn.Conv2d) -> int:
    """Return the number of entries of an input or patch, over all groups."""
    return _groups(part) * part.weight[0].numel()


def _contributions(
    parts: list[nn.Linear | nn.Conv2d], moments: Moments, centred: bool
) -> dict[int, Tensor]:
    """Return what each weight contributes to the layer's output, root mean square.

    Args:
        parts: Of the layer.
        moments: Squares of the inputs of all parts, one after another.
        centred: About the mean, which a bias makes up for.

    Returns:
        Identity of a weight to a tensor of its shape.
    """
    second = moments.of_entries(centred=centred).flatten()
    found: dict[int, Tensor] = {}
    # The squared norm of the output's response to each channel of a part's output.
    gain = second.new_ones(len(parts[-1].weight))
    sizes = [_inputs(part) for part in parts]
    for part, squares in reversed(list(zip(parts, second.split(sizes), strict=True))):
        groups, weight = _groups(part), part.weight.detach()
        inputs = squares.unflatten(0, (groups, 1, -1))
        level = RIDGE * inputs.mean(2, keepdim=True)
        inputs = inputs + torch.where(level > 0, level, 1.0)
        # (g n) ... -> g n p
        matrices = weight.double().flatten(1).unflatten(0, (groups, -1))
        energy = matrices.square() * gain.unflatten(0, (groups, -1, 1))
        own = (energy * inputs).sqrt().reshape(weight.shape)
        found[id(part.weight)] = own.to(in_single_precision(weight).dtype)
        # g n (c p) -> g c
        gain = energy.sum(1).flatten().unflatten(0, (-1, weight[0, 0].numel())).sum(1)
    return found


def _mean_lost(
    parts: list[nn.Linear | nn.Conv2d],
    means: tuple[Tensor, ...],
    pruned: Mapping[int, Tensor],
) -> Tensor:
    """Return what the mean output loses, as it is away from borders.

    Args:
        parts: Of the layer.
        means: Of the inputs of each. Shapes `groups x p`.
        pruned: Identity of a weight to what is left of it.

    Returns:
        Shape `out_channels`.
    """
    lost = means[0].new_zeros(())
    for i, (part, mean) in enumerate(zip(parts, means, strict=True)):
        if i:  # of a channel, in all entries of a patch
            area = part.weight[0, 0].numel()
            lost = lost.repeat_interleave(area).unflatten(0, (_groups(part), -1))
        before, after = (
            weight.detach().double().flatten(1).unflatten(0, (_groups(part), -1))
            for weight in (part.weight, pruned[id(part.weight)])
        )
        change = before @ mean[:, :, None] - after @ (mean - lost)[:, :, None]
        lost = change.flatten()
    return lost


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
