"""Channel convolutions: the layer's own kernel to K channels, then 1 x 1."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import in_single_precision, require_rank
from compression_adapters.decompositions.convolutions import (
    Geometry,
    bias_of,
    conv2d,
    empty_bias,
    largest_rank,
    plain_conv2d,
    shape_in_words,
    supported_conv2d,
)
from compression_adapters.decompositions.moments import MomentKind, Moments
from compression_adapters.decompositions.output_projection import project_outputs


@dataclass(frozen=True, eq=False)
class ChannelConvFactors:
    """The kernel of a convolution as a matrix product, in descending order.

    Args:
        first: Shape `groups x full_rank x in_channels / groups x height x width`.
        last: Shape `out_channels x full_rank`.
        singular_values: Of each rank, over all groups. Shape `full_rank`.
        bias: The layer's bias or None. Shape `out_channels`.
        geometry: Stride, padding and so on of the layer.
        mean: With moments, of a layer with a bias: E[W x]. Shape `groups x out /
            groups`.
        inner_mean: With `mean`: that of the channels between. Shape `groups x
            full_rank`.
    """

    first: Tensor
    last: Tensor
    singular_values: Tensor
    bias: Tensor | None
    geometry: Geometry
    mean: Tensor | None = None
    inner_mean: Tensor | None = None

    def bias_at(self, rank: int) -> Tensor | None:
        """Return the bias that makes up for the mean of what a rank leaves out."""
        if self.bias is None or self.mean is None or self.inner_mean is None:
            return self.bias
        last = self.last[:, :rank].double().unflatten(0, (len(self.mean), -1))
        kept = (last @ self.inner_mean[:, :rank, None]).squeeze(2)
        return self.bias + (self.mean - kept).flatten().to(self.bias)


class ChannelConv2d(nn.Module):
    """A convolution to fewer channels and then a 1 x 1 one to all of them.

    It is not an `nn.Conv2d`, but has the attributes that code around convolutions
    reads: `weight` (reconstructed at each access), `bias`, `in_channels`,
    `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`,
    `padding_mode`.

    Args:
        first: `in_channels` to `groups * rank` channels, without bias, with the
            layer's kernel size.
        last: 1 x 1, `groups * rank` to `out_channels` channels, with the bias.

    Source: Zhang et al. 2016, "Accelerating very deep convolutional networks for
        classification and detection", its linear case.
    """

    def __init__(self, first: nn.Conv2d, last: nn.Conv2d) -> None:
        super().__init__()
        self.first = first
        self.last = last
        self.in_channels = first.in_channels
        self.out_channels = last.out_channels
        self.groups = first.groups
        self.padding_mode = first.padding_mode
        self.kernel_size = first.kernel_size
        self.stride = first.stride
        self.dilation = first.dilation
        self.padding = first.padding

    @property
    def rank(self) -> int:
        """Number of channels between the two convolutions, per group."""
        return self.last.weight.shape[1]

    @property
    def bias(self) -> Tensor | None:
        """The bias, held by the last convolution."""
        return self.last.bias

    @property
    def weight(self) -> Tensor:
        """The dense weight, `out_channels x in_channels / groups x height x width`."""
        groups = self.groups
        first = self.first.weight.unflatten(0, (groups, -1))
        last = self.last.weight.flatten(1).unflatten(0, (groups, -1))
        return torch.einsum("gnk,gkchw->gnchw", last, first).flatten(0, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as `nn.Conv2d` does."""
        outputs: Tensor = self.last(self.first(input))
        return outputs


@dataclass(frozen=True)
class ChannelConv:
    """The layer's own kernel to K channels, then 1 x 1: exact on the data.

        W[n, (c, y, x)] ~ sum_k U[n, k] F[k, (c, y, x)]

    is the truncated SVD of the kernel as a matrix of N rows. With groups, each group
    has its own; they share the rank. The maximal rank is

        K = floor(C N d d' / (g (C d d' + N)))

    with C, N the channels in and out, d x d' the kernel, g the groups.

    At equal weights the error is usually larger than that of `low_rank_conv`, whose
    kernels are smaller. But the first convolution does all of a stride, so that fewer
    multiply-adds are left, and both run on the kernels that libraries make fast.

    Every stride, padding, padding mode, dilation, groups and depthwise. Only exactly
    `nn.Conv2d`.

    With moments of the outputs y, U are the leading eigenvectors of E[y y^T], and
    F = U_K^T W: the least expected squared error of the output at every rank, as for
    `TruncatedSVD`. No patches are needed where there are more entries in one than
    outputs. With a bias the moments are about the mean, which the bias makes up for.

    Source: Zhang et al. 2016, section 2.1.

    Example:
        >>> channel, layer = ChannelConv(), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        >>> channel.max_rank(layer)
        26
        >>> channel.truncate(channel.factorize(layer), 5)
        ChannelConv2d(
          (first): Conv2d(16, 5, kernel_size=(3, 3), stride=(2, 2), \
padding=(1, 1), bias=False)
          (last): Conv2d(5, 32, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    name: str = "channel_conv"
    searchable: bool = True

    def supports(self, layer: nn.Module) -> bool:
        """Accept plain 2d convolutions of which rank 1 adds no weights."""
        conv = plain_conv2d(layer)
        return conv is not None and _max_rank(tuple(conv.weight.shape), conv.groups) > 0

    def max_rank(self, layer: nn.Module) -> int:
        """Return the largest rank that adds no weights and is not above full rank."""
        conv = supported_conv2d(self, layer)
        return _max_rank(tuple(conv.weight.shape), conv.groups)

    def moments_of(self, layer: nn.Module) -> MomentKind:
        """Return the kind whose matrices are the smaller ones."""
        conv = supported_conv2d(self, layer)
        out, size = len(conv.weight) // conv.groups, conv.weight[0].numel()
        return "inputs" if size <= out else "outputs"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> ChannelConvFactors:
        """Decompose the weight once; all ranks up to the full one are kept."""
        conv = supported_conv2d(self, layer)
        weight = conv.weight.detach()
        matrices = weight.unflatten(0, (conv.groups, -1)).flatten(2)
        mean = inner_mean = None
        if moments is None:
            u, s, vh = torch.linalg.svd(
                in_single_precision(matrices), full_matrices=False
            )
            root = s.sqrt()
            last, first = u * root[:, None, :], root[:, :, None] * vh
        else:
            found = project_outputs(
                matrices.double(), moments, centred=conv.bias is not None
            )
            last, first, s = found.left, found.right, found.values
            mean, inner_mean = found.mean, found.inner_mean
        return ChannelConvFactors(
            first=first.unflatten(2, weight.shape[1:]).to(weight.dtype).contiguous(),
            last=last.flatten(0, 1).to(weight.dtype).contiguous(),
            singular_values=s.square().sum(0).sqrt(),
            bias=bias_of(conv),
            geometry=Geometry.of(conv),
            mean=mean,
            inner_mean=inner_mean,
        )

    def truncate(self, factors: ChannelConvFactors, rank: int) -> ChannelConv2d:
        """Keep the `rank` leading directions of each group; slices, no copy."""
        geometry = factors.geometry
        weight_shape = (len(factors.last), *factors.first.shape[2:])
        _require_rank(rank, weight_shape, geometry.groups)
        return ChannelConv2d(
            conv2d(factors.first[:, :rank].flatten(0, 1), None, geometry),
            conv2d(
                factors.last[:, :rank, None, None],
                factors.bias_at(rank),
                Geometry(groups=geometry.groups),
            ),
        )

    def finalize(self, factors: ChannelConvFactors, rank: int) -> ChannelConv2d:
        """Same as `truncate`, which is optimal already."""
        return self.truncate(factors, rank)

    def singular_values(self, factors: ChannelConvFactors) -> Tensor:
        """Return the singular values, descending; over groups, root sum of squares.

        With moments, the roots of the eigenvalues of the output's second moments.
        """
        return factors.singular_values

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count K (C d d' + N)."""
        return rank * _weights_per_rank(weight_shape, groups)

    def empty(self, layer: nn.Module, rank: int) -> ChannelConv2d:
        """Build the layer `truncate` would give, with uninitialised weights."""
        conv = supported_conv2d(self, layer)
        weight_shape = tuple(conv.weight.shape)
        _require_rank(rank, weight_shape, conv.groups)
        like = conv.weight.detach()
        return ChannelConv2d(
            conv2d(
                like.new_empty(conv.groups * rank, *weight_shape[1:]),
                None,
                Geometry.of(conv),
            ),
            conv2d(
                like.new_empty(len(like), rank, 1, 1),
                empty_bias(conv),
                Geometry(groups=conv.groups),
            ),
        )


def _weights_per_rank(weight_shape: tuple[int, ...], groups: int) -> int:
    """Count the weights of one more rank in every group: C d d' + N."""
    channels_out, channels_in, height, width = weight_shape
    return groups * channels_in * height * width + channels_out


def _full_rank(weight_shape: tuple[int, ...], groups: int) -> int:
    """Return the smaller side of a group's matrix."""
    channels_out, channels_in, height, width = weight_shape
    return min(channels_out // groups, channels_in * height * width)


def _max_rank(weight_shape: tuple[int, ...], groups: int) -> int:
    """Return the largest rank that adds no weights; 0 if rank 1 adds some."""
    return largest_rank(
        weight_shape,
        _weights_per_rank(weight_shape, groups),
        _full_rank(weight_shape, groups),
    )


def _require_rank(rank: int, weight_shape: tuple[int, ...], groups: int) -> None:
    """Raise a ValueError unless the rank is legal for this convolution."""
    require_rank(
        rank, _full_rank(weight_shape, groups), shape_in_words(weight_shape, groups)
    )
