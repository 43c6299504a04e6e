"""CP: a convolution as a sum of outer products; for use after a search."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import require_rank
from compression_adapters.decompositions.convolutions import (
    Geometry,
    bias_of,
    conv2d,
    empty_bias,
    shape_in_words,
    spatial_conv2d,
)
from compression_adapters.decompositions.moments import MomentKind, Moments
from compression_adapters.decompositions.tensor_algebra import Array, parafac


@dataclass(frozen=True, eq=False)
class CPFactors:
    """The start of a decomposition at any rank: CP has no nested factors.

    Args:
        weight: A copy. Shape `out_channels x in_channels x height x width`.
        bias: The layer's bias or None. Shape `out_channels`.
        geometry: Stride, padding and so on of the layer.
    """

    weight: Tensor
    bias: Tensor | None
    geometry: Geometry


class CPConv2d(nn.Module):
    """A convolution that runs as 1 x 1, k x 1 and 1 x k in each channel, and 1 x 1.

    It is not an `nn.Conv2d`, but has the attributes that code around convolutions
    reads: `weight` (reconstructed at each access), `bias`, `in_channels`,
    `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`,
    `padding_mode`.

    Args:
        first: 1 x 1, `in_channels` to `rank` channels, without bias.
        vertical: `height x 1`, depthwise, without bias.
        horizontal: `1 x width`, depthwise, without bias.
        last: 1 x 1, `rank` to `out_channels` channels, with the bias.

    Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using
        fine-tuned CP-decomposition".
    """

    def __init__(
        self,
        first: nn.Conv2d,
        vertical: nn.Conv2d,
        horizontal: nn.Conv2d,
        last: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.first = first
        self.vertical = vertical
        self.horizontal = horizontal
        self.last = last
        self.in_channels = first.in_channels
        self.out_channels = last.out_channels
        self.groups = 1
        self.padding_mode = vertical.padding_mode
        self.kernel_size = (vertical.kernel_size[0], horizontal.kernel_size[1])
        self.stride = (vertical.stride[0], horizontal.stride[1])
        self.dilation = (vertical.dilation[0], horizontal.dilation[1])
        self.padding = (
            vertical.padding
            if isinstance(vertical.padding, str)
            else (vertical.padding[0], int(horizontal.padding[1]))
        )

    @property
    def rank(self) -> int:
        """Number of outer products."""
        return self.last.weight.shape[1]

    @property
    def bias(self) -> Tensor | None:
        """The bias, held by the last convolution."""
        return self.last.bias

    @property
    def weight(self) -> Tensor:
        """The dense weight, `out_channels x in_channels x height x width`."""
        return torch.einsum(
            "nr,rc,rh,rw->nchw",
            self.last.weight.flatten(1),
            self.first.weight.flatten(1),
            self.vertical.weight.flatten(1),
            self.horizontal.weight.flatten(1),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as `nn.Conv2d` does."""
        outputs: Tensor = self.last(self.horizontal(self.vertical(self.first(input))))
        return outputs


@dataclass(frozen=True)
class CP:
    """The kernel as a sum of R outer products, by alternating least squares.

        W[n, c, y, x] ~ sum_r A[n, r] B[c, r] V[y, r] H[x, r]

    Each rank is a slow optimisation of its own, and the factors of a smaller rank are
    not a slice of those of a larger one. A search therefore refuses it: choose the rank
    afterwards, with `factorize_network` and `truncate_network`. The optimisation finds
    a local minimum. Components that grow and cancel are a known problem (Phan et al.
    2020), so check the error (`error = (module.weight - layer.weight).norm()`) and
    fine-tune.

    Full rank, the product of all sides of the weight but the largest, is exact by
    construction. Every stride, padding, padding mode and dilation; no groups, no 1 x 1
    kernels. Only exactly `nn.Conv2d`.

    Source: Lebedev et al. 2015. Deviation: the norms of the components are divided
        equally among their four factors.

    Example:
        >>> cp, layer = CP(), nn.Conv2d(4, 6, 3, padding=1)
        >>> cp.max_rank(layer)
        13
        >>> cp.truncate(cp.factorize(layer), 3).rank
        3
    """

    name: str = "cp"
    searchable: bool = False

    def supports(self, layer: nn.Module) -> bool:
        """Accept spatial convolutions without groups that rank 1 makes no larger."""
        conv = spatial_conv2d(layer)
        return conv is not None and _max_rank(conv) > 0

    def max_rank(self, layer: nn.Module) -> int:
        """Return the largest rank that adds no weights and is not above full rank."""
        return _max_rank(_convolution(layer))

    def moments_of(self, layer: nn.Module) -> MomentKind | None:
        """Return None: the weights alone are decomposed."""
        return None

    def factorize(self, layer: nn.Module, moments: Moments | None = None) -> CPFactors:
        """Copy what is needed; `truncate` does the work."""
        conv = _convolution(layer)
        return CPFactors(conv.weight.detach().clone(), bias_of(conv), Geometry.of(conv))

    def truncate(self, factors: CPFactors, rank: int) -> CPConv2d:
        """Decompose at this rank; slow, seconds for a wide layer."""
        _require_rank(rank, tuple(factors.weight.shape))
        weight = factors.weight.double().cpu().numpy()
        if rank == _full_rank(weight.shape):
            matrices = _exact(weight)
        else:
            matrices = parafac(weight, rank)
        out, into, vertical, horizontal = (
            torch.from_numpy(matrix).to(factors.weight)
            for matrix in _balanced(matrices)
        )
        geometry = factors.geometry.depthwise(rank)
        return CPConv2d(
            conv2d(into.T[:, :, None, None].contiguous()),
            conv2d(
                vertical.T[:, None, :, None].contiguous(), None, geometry.along_height()
            ),
            conv2d(
                horizontal.T[:, None, None, :].contiguous(),
                None,
                geometry.along_width(),
            ),
            conv2d(out[:, :, None, None].contiguous(), factors.bias),
        )

    def finalize(self, factors: CPFactors, rank: int) -> CPConv2d:
        """As `truncate`."""
        return self.truncate(factors, rank)

    def singular_values(self, factors: CPFactors) -> Tensor:
        """Refuse: the contribution of a rank depends on the other ranks.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "cp has no contributions of single ranks; use another encoding than "
            "'energy', or another decomposition."
        )

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count R (C + N + d + d')."""
        return rank * sum(weight_shape)

    def empty(self, layer: nn.Module, rank: int) -> CPConv2d:
        """Build the layer `truncate` would give, with uninitialised weights."""
        conv = _convolution(layer)
        channels_out, channels_in, height, width = conv.weight.shape
        _require_rank(rank, tuple(conv.weight.shape))
        like, geometry = conv.weight.detach(), Geometry.of(conv).depthwise(rank)
        return CPConv2d(
            conv2d(like.new_empty(rank, channels_in, 1, 1)),
            conv2d(like.new_empty(rank, 1, height, 1), None, geometry.along_height()),
            conv2d(like.new_empty(rank, 1, 1, width), None, geometry.along_width()),
            conv2d(like.new_empty(channels_out, rank, 1, 1), empty_bias(conv)),
        )


def _full_rank(weight_shape: tuple[int, ...]) -> int:
    """Return a rank at which an exact decomposition is known."""
    size = 1
    for side in weight_shape:
        size *= side
    return size // max(weight_shape)


def _max_rank(conv: nn.Conv2d) -> int:
    """Return the largest rank that adds no weights; 0 if rank 1 adds some."""
    shape = tuple(conv.weight.shape)
    return min(conv.weight.numel() // sum(shape), _full_rank(shape))


def _exact(weight: Array) -> list[Array]:
    """Decompose exactly: one outer product for each fibre along the longest mode."""
    longest = int(np.argmax(weight.shape))
    others = [mode for mode in range(4) if mode != longest]
    moved = np.moveaxis(weight, longest, 0)
    places = np.unravel_index(np.arange(moved[0].size), moved.shape[1:])
    matrices: list[Array] = [weight] * 4  # each is replaced
    matrices[longest] = moved.reshape(len(moved), -1)
    for mode, place in zip(others, places, strict=True):
        matrices[mode] = np.eye(weight.shape[mode])[:, place]
    return matrices


def _balanced(matrices: list[Array]) -> list[Array]:
    """Give the columns of a component the same norm in every mode."""
    norms = np.stack([np.linalg.norm(matrix, axis=0) for matrix in matrices])
    mean = np.prod(norms, axis=0) ** 0.25
    # A component of norm zero may have columns of any norm; leave it at zero.
    scales = np.divide(mean, norms, out=np.zeros_like(norms), where=norms > 0)
    return [matrix * scale for matrix, scale in zip(matrices, scales, strict=True)]


def _convolution(layer: nn.Module) -> nn.Conv2d:
    """Narrow to a supported convolution, refusing every other type by name."""
    if not isinstance(layer, nn.Conv2d) or not CP().supports(layer):
        raise ValueError(
            "CP supports exactly nn.Conv2d with a plain weight, without groups, "
            "larger than 1 x 1, that rank 1 makes no larger; got "
            f"{layer!r}. Choose low_rank_conv, which takes groups, svd for 1 x 1, or "
            "leave this layer out."
        )
    return layer


def _require_rank(rank: int, weight_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the rank is legal for this convolution."""
    require_rank(rank, _full_rank(weight_shape), shape_in_words(weight_shape))
