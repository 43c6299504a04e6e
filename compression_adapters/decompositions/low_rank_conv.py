"""Low-rank convolutions: a k x 1 convolution and then a 1 x k one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import in_single_precision, require_rank
from compression_adapters.decompositions.convolutions import (
    Geometry,
    bias_of,
    conv2d,
    empty_bias,
    plain_conv2d,
    shape_in_words,
)


@dataclass(frozen=True, eq=False)
class LowRankConvFactors:
    """The kernel of a convolution as a sum of separable ones, in descending order.

    Args:
        vertical: Shape `groups x full_rank x in_channels / groups x height x 1`.
        horizontal: Shape `out_channels x full_rank x 1 x width`.
        singular_values: Of each rank, over all groups. Shape `full_rank`.
        bias: The layer's bias or None. Shape `out_channels`.
        geometry: Stride, padding and so on of the layer.
    """

    vertical: Tensor
    horizontal: Tensor
    singular_values: Tensor
    bias: Tensor | None
    geometry: Geometry


class LowRankConv2d(nn.Module):
    """A convolution that runs as a `height x 1` and then a `1 x width` one.

    It is not an `nn.Conv2d`, but has the attributes that code around convolutions
    reads: `weight` (reconstructed at each access), `bias`, `in_channels`,
    `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`,
    `padding_mode`.

    Args:
        vertical: `in_channels` to `groups * rank` channels, without bias.
        horizontal: `groups * rank` to `out_channels` channels, with the bias.

    Source: Tai et al. 2016, through Ma et al. 2019, section 3.3.
    """

    def __init__(self, vertical: nn.Conv2d, horizontal: nn.Conv2d) -> None:
        super().__init__()
        self.vertical = vertical
        self.horizontal = horizontal
        self.in_channels = vertical.in_channels
        self.out_channels = horizontal.out_channels
        self.groups = vertical.groups
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
        """Number of separable kernels per group."""
        return self.horizontal.weight.shape[1]

    @property
    def bias(self) -> Tensor | None:
        """The bias, held by the second convolution."""
        return self.horizontal.bias

    @property
    def weight(self) -> Tensor:
        """The dense weight, `out_channels x in_channels / groups x height x width`."""
        groups, rank = self.groups, self.rank
        vertical = self.vertical.weight.squeeze(3).unflatten(0, (groups, rank))
        horizontal = self.horizontal.weight.squeeze(2).unflatten(0, (groups, -1))
        return torch.einsum("grch,gnrw->gnchw", vertical, horizontal).flatten(0, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as `nn.Conv2d` does."""
        outputs: Tensor = self.horizontal(self.vertical(input))
        return outputs


@dataclass(frozen=True)
class LowRankConv:
    """The best sum of K separable kernels, in closed form by one SVD.

        W[n, c, y, x] ~ sum_k H[n, k, x] V[k, c, y]

    is the truncated SVD of the kernel as a matrix of `C d` rows (c, y) and `N d'`
    columns (n, x), both factors with sqrt(S). With groups, each group has its own; they
    share the rank. The maximal rank is

        K = floor(C N d d' / (g (C d + N d'))),  d = d', g = 1: floor(d C N / (C + N))

    with C, N the channels in and out, d x d' the kernel, g the groups.

    Strides, dilation, numeric, `same` and `valid` padding, every padding mode, groups
    and depthwise convolutions are supported. The first convolution uses the rows of a
    stride or a padding, the second one the columns. Only exactly `nn.Conv2d`.

    Source: Tai et al. 2016, "Convolutional neural networks with low-rank
        regularization", Theorem 1; Ma et al. 2019, section 3.3. Deviations: kernels
        that are not square, and groups; half precision is decomposed in float32 and
        cast back.

    Example:
        >>> tai, layer = LowRankConv(), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        >>> tai.max_rank(layer)
        32
        >>> tai.truncate(tai.factorize(layer), 5)
        LowRankConv2d(
          (vertical): Conv2d(16, 5, kernel_size=(3, 1), stride=(2, 1), \
padding=(1, 0), bias=False)
          (horizontal): Conv2d(5, 32, kernel_size=(1, 3), stride=(1, 2), padding=(0, 1))
        )
    """

    name: str = "low_rank_conv"
    searchable: bool = True

    def supports(self, layer: nn.Module) -> bool:
        """Accept plain 2d convolutions of which rank 1 adds no weights."""
        conv = plain_conv2d(layer)
        return conv is not None and _max_rank(tuple(conv.weight.shape), conv.groups) > 0

    def max_rank(self, layer: nn.Module) -> int:
        """Return the largest rank that adds no weights and is not above full rank."""
        conv = _convolution(layer)
        return _max_rank(tuple(conv.weight.shape), conv.groups)

    def factorize(self, layer: nn.Module) -> LowRankConvFactors:
        """Decompose the weight once; all ranks up to the full one are kept."""
        return factorize_conv(_convolution(layer))

    def truncate(self, factors: LowRankConvFactors, rank: int) -> LowRankConv2d:
        """Keep the `rank` largest singular values of each group; slices, no copy."""
        return truncate_conv(factors, rank)

    def finalize(self, factors: LowRankConvFactors, rank: int) -> LowRankConv2d:
        """Same as `truncate`, which is optimal already."""
        return truncate_conv(factors, rank)

    def singular_values(self, factors: LowRankConvFactors) -> Tensor:
        """Return the singular values, descending; over groups, root sum of squares."""
        return factors.singular_values

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count K (C d + N d')."""
        return rank * _weights_per_rank(weight_shape, groups)

    def empty(self, layer: nn.Module, rank: int) -> LowRankConv2d:
        """Build the layer `truncate` would give, with uninitialised weights."""
        return empty_conv(_convolution(layer), rank)


def factorize_conv(layer: nn.Conv2d) -> LowRankConvFactors:
    """Decompose a plain 2d convolution.

    Args:
        layer: With or without groups; neither mutated nor aliased.

    Returns:
        The factors of all ranks.
    """
    weight = layer.weight.detach()
    channels_out, channels_in, height, width = weight.shape
    groups = layer.groups
    matrices = in_single_precision(weight).unflatten(0, (groups, -1))
    # g n c y x -> g (c y) (n x)
    matrices = matrices.permute(0, 2, 3, 1, 4).reshape(
        groups, channels_in * height, channels_out // groups * width
    )
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s.sqrt()
    vertical = (u * root[:, None, :]).transpose(1, 2)
    horizontal = (root[:, :, None] * vh).unflatten(2, (-1, width)).transpose(1, 2)
    return LowRankConvFactors(
        vertical=vertical.unflatten(2, (channels_in, height, 1))
        .to(weight.dtype)
        .contiguous(),
        horizontal=horizontal.flatten(0, 1)[:, :, None, :]
        .to(weight.dtype)
        .contiguous(),
        singular_values=s.square().sum(0).sqrt(),
        bias=bias_of(layer),
        geometry=Geometry.of(layer),
    )


def truncate_conv(factors: LowRankConvFactors, rank: int) -> LowRankConv2d:
    """Cut the factors of a convolution to a rank.

    Args:
        factors: From `factorize_conv`.
        rank: From 1 to full rank.

    Returns:
        The module; it shares memory with the factors.

    Raises:
        ValueError: when the rank is not legal.
    """
    channels_in, height = factors.vertical.shape[2:4]
    channels_out, width = len(factors.horizontal), factors.horizontal.shape[3]
    geometry = factors.geometry
    weight_shape = (channels_out, channels_in, height, width)
    _require_rank(rank, weight_shape, geometry.groups)
    return LowRankConv2d(
        conv2d(factors.vertical[:, :rank].flatten(0, 1), None, geometry.along_height()),
        conv2d(factors.horizontal[:, :rank], factors.bias, geometry.along_width()),
    )


def empty_conv(layer: nn.Conv2d, rank: int) -> LowRankConv2d:
    """Build what `truncate_conv` would give, with uninitialised weights.

    Args:
        layer: The dense layer.
        rank: From 1 to full rank.

    Returns:
        The module.

    Raises:
        ValueError: when the rank is not legal.
    """
    channels_out, channels_in, height, width = layer.weight.shape
    _require_rank(rank, tuple(layer.weight.shape), layer.groups)
    like, geometry = layer.weight.detach(), Geometry.of(layer)
    vertical = like.new_empty(layer.groups * rank, channels_in, height, 1)
    horizontal = like.new_empty(channels_out, rank, 1, width)
    return LowRankConv2d(
        conv2d(vertical, None, geometry.along_height()),
        conv2d(horizontal, empty_bias(layer), geometry.along_width()),
    )


def _weights_per_rank(weight_shape: tuple[int, ...], groups: int) -> int:
    """Count the weights of one more rank in every group: C d + N d'."""
    channels_out, channels_in, height, width = weight_shape
    return groups * channels_in * height + channels_out * width


def _full_rank(weight_shape: tuple[int, ...], groups: int) -> int:
    """Return the smaller side of a group's matrix."""
    channels_out, channels_in, height, width = weight_shape
    return min(channels_in * height, channels_out // groups * width)


def _max_rank(weight_shape: tuple[int, ...], groups: int) -> int:
    """Return the largest rank that adds no weights; 0 if rank 1 adds some."""
    channels_out, channels_in, height, width = weight_shape
    size = channels_out * channels_in * height * width
    largest = size // _weights_per_rank(weight_shape, groups)
    return min(largest, _full_rank(weight_shape, groups))


def _convolution(layer: nn.Module) -> nn.Conv2d:
    """Narrow to a convolution, refusing every other type by name."""
    if not isinstance(layer, nn.Conv2d) or not LowRankConv().supports(layer):
        raise ValueError(
            "LowRankConv supports exactly nn.Conv2d with a plain weight that rank 1 "
            f"makes no larger; got {layer!r}. Choose another decomposition or leave "
            "this layer out."
        )
    return layer


def _require_rank(rank: int, weight_shape: tuple[int, ...], groups: int) -> None:
    """Raise a ValueError unless the rank is legal for this convolution."""
    require_rank(
        rank, _full_rank(weight_shape, groups), shape_in_words(weight_shape, groups)
    )
