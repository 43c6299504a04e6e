"""Low-rank convolutions: a k x 1 convolution and then a 1 x k one."""

from dataclasses import dataclass, field

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
from compression_adapters.decompositions.moments import (
    MomentKind,
    Moments,
    leading_eigenvectors,
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
        refit: With moments: the horizontal kernels of each rank. None: slices.
    """

    vertical: Tensor
    horizontal: Tensor
    singular_values: Tensor
    bias: Tensor | None
    geometry: Geometry
    refit: "HorizontalRefit | None" = None

    def horizontal_at(self, rank: int) -> tuple[Tensor, Tensor | None]:
        """Return the horizontal kernels at a rank, and the bias.

        Args:
            rank: From 1 to full rank.

        Returns:
            Shapes `out_channels x rank x 1 x width` and `out_channels`.
        """
        if self.refit is None or rank > self.refit.max_rank:
            return self.horizontal[:, :rank], self.bias
        kernels, shift = self.refit.at(rank)
        bias = None if self.bias is None else self.bias + shift.to(self.bias)
        return kernels.to(self.horizontal), bias


@dataclass(frozen=True, eq=False)
class HorizontalRefit:
    """The best horizontal kernels for the vertical ones of each rank.

    With z the outputs of the vertical kernels in the columns of a patch, in the order
    (rank, column), they are the least squares solution of y from z:

        H_K = E[y z_K^T] E[z_K z_K^T]^-1

    The matrices of a smaller rank are leading blocks, and so is the Cholesky factor R
    of E[z z^T], and the leading rows of R^-1 E[z y^T] are those of the smaller rank:
    one triangular system is left for each rank, whose solution is kept.

    Args:
        root: R, in single precision, which is half the memory: the error is at its
            minimum and does not notice. Shape `groups x max_rank width x max_rank
            width`.
        projected: R^-1 E[z y^T], likewise. Shape `groups x max_rank width x out /
            groups`.
        inner_mean: E[z] of a layer with a bias, else zero. Shape `groups x max_rank
            width`.
        mean: E[y] of a layer with a bias, else zero. Shape `out_channels`.
        width: Columns of the kernel.
    """

    root: Tensor
    projected: Tensor
    inner_mean: Tensor
    mean: Tensor
    width: int
    _known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def max_rank(self) -> int:
        """Largest rank that has kernels of its own."""
        return self.root.shape[-1] // self.width

    def at(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return kernels, `out_channels x rank x 1 x width`, and the bias's shift."""
        if rank not in self._known:
            size = rank * self.width
            solved = torch.linalg.solve_triangular(
                self.root[:, :size, :size].mT.double(),
                self.projected[:, :size].double(),
                upper=True,
            )
            kept = (self.inner_mean[:, None, :size] @ solved).flatten()
            # g (k x) n -> (g n) k 1 x
            kernels = solved.mT.flatten(0, 1).unflatten(1, (rank, 1, self.width))
            self._known[rank] = kernels.float(), self.mean - kept
        return self._known[rank]

    def kept(self) -> Tensor:
        """Return the expected squared norm that each rank keeps. Shape `max_rank`."""
        rows = self.projected.double().square().sum((0, 2))
        return rows.unflatten(0, (-1, self.width)).sum(1).cumsum(0)


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

    With moments S of the patches, the matrix M of the kernel is projected on the
    leading eigenvectors of M^T V M, where V are the moments of the patches' columns (c,
    y), averaged over the columns: the SVD of L^T M, L L^T = V, without an inverse. This
    is nested but not the minimum of the expected error of the output; the horizontal
    kernels are then those with the least error given the vertical ones, for every rank
    up to the maximal one (`HorizontalRefit`).

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
        conv = supported_conv2d(self, layer)
        return _max_rank(tuple(conv.weight.shape), conv.groups)

    def moments_of(self, layer: nn.Module) -> MomentKind:
        """Return `"inputs"`: moments of patches."""
        return "inputs"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> LowRankConvFactors:
        """Decompose the weight once; all ranks up to the full one are kept."""
        return factorize_conv(supported_conv2d(self, layer), moments)

    def truncate(self, factors: LowRankConvFactors, rank: int) -> LowRankConv2d:
        """Keep the `rank` largest singular values of each group; slices, no copy."""
        return truncate_conv(factors, rank)

    def finalize(self, factors: LowRankConvFactors, rank: int) -> LowRankConv2d:
        """Same as `truncate`, which is optimal already."""
        return truncate_conv(factors, rank)

    def singular_values(self, factors: LowRankConvFactors) -> Tensor:
        """Return the singular values, descending; over groups, root sum of squares.

        With moments, the root of what each rank adds to the expected squared norm.
        """
        return factors.singular_values

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count K (C d + N d')."""
        return rank * _weights_per_rank(weight_shape, groups)

    def empty(self, layer: nn.Module, rank: int) -> LowRankConv2d:
        """Build the layer `truncate` would give, with uninitialised weights."""
        return empty_conv(supported_conv2d(self, layer), rank)


def factorize_conv(
    layer: nn.Conv2d, moments: Moments | None = None
) -> LowRankConvFactors:
    """Decompose a plain 2d convolution.

    Args:
        layer: With or without groups; neither mutated nor aliased.
        moments: Of its patches, or None.

    Returns:
        The factors of all ranks.
    """
    weight = layer.weight.detach()
    width, groups = weight.shape[3], layer.groups
    if moments is None:
        matrices = _matrices(in_single_precision(weight), groups)
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        root = s.sqrt()
        vertical, horizontal = u * root[:, None, :], root[:, :, None] * vh
        values = s.square().sum(0).sqrt()
        refit = None
    else:
        second = moments.of_inputs(centred=layer.bias is not None)
        columns = _column_moments(second, width)
        # Single precision halves the time of what is large, and is enough for it.
        exact = in_single_precision(weight)
        second, columns = second.to(exact.dtype), columns.to(exact.dtype)
        vertical, horizontal = _project(_matrices(exact, groups), columns)
        used = vertical[..., : _max_rank(tuple(weight.shape), groups)]
        refit = _refit(exact, used, second, moments, layer.bias)
        flat = exact.unflatten(0, (groups, -1)).flatten(2)
        total = (flat @ second).mul_(flat).sum(dtype=torch.float64)
        values = added_values(refit.kept(), total, vertical.shape[2])
    # g (c y) k -> g k c y 1;  g k (n x) -> (g n) k 1 x
    return LowRankConvFactors(
        vertical=vertical.transpose(1, 2)
        .unflatten(2, (*weight.shape[1:3], 1))
        .to(weight.dtype)
        .contiguous(),
        horizontal=horizontal.unflatten(2, (-1, width))
        .transpose(1, 2)
        .flatten(0, 1)[:, :, None, :]
        .to(weight.dtype)
        .contiguous(),
        singular_values=values,
        bias=bias_of(layer),
        geometry=Geometry.of(layer),
        refit=refit,
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
    horizontal, bias = factors.horizontal_at(rank)
    return LowRankConv2d(
        conv2d(factors.vertical[:, :rank].flatten(0, 1), None, geometry.along_height()),
        conv2d(horizontal, bias, geometry.along_width()),
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


def _matrices(weight: Tensor, groups: int) -> Tensor:
    """Return the kernels of each group as a matrix of (c, y) rows, (n, x) columns."""
    # (g n) c y x -> g (c y) (n x)
    return (
        weight.unflatten(0, (groups, -1))
        .permute(0, 2, 3, 1, 4)
        .flatten(3)
        .flatten(1, 2)
    )


def _column_moments(second: Tensor, width: int) -> Tensor:
    """Return the moments of a patch's columns, averaged over the columns.

    Args:
        second: Of patches (channel, row, column). Shape `groups x p x p`.
        width: Columns of a patch.

    Returns:
        Shape `groups x in height x in height`.
    """
    size = second.shape[-1] // width
    total = second.new_zeros(len(second), size, size)
    for x in range(width):
        total += second[:, x::width, x::width]
    return total / width


def _by_columns(second: Tensor, width: int) -> Tensor:
    """Return the moments of patches between pairs of their columns.

    Returns:
        Shape `groups x width x width x in_channels height x in_channels height`.
    """
    # g (r x) (s z) -> g x z r s
    pairs = second.unflatten(2, (-1, width)).unflatten(1, (-1, width))
    return pairs.permute(0, 2, 4, 1, 3).contiguous()


def _project(matrices: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Project a kernel's matrix on leading directions of its columns' outputs.

    Args:
        matrices: M. Shape `groups x in height x out width`.
        columns: From `_column_moments`.

    Returns:
        Vertical and horizontal factors at the same scale, shapes `groups x in height x
        full_rank` and `groups x full_rank x out width`.
    """
    second = matrices.mT @ columns @ matrices
    _, basis = leading_eigenvectors(second, min(matrices.shape[1:]))
    vertical = matrices @ basis
    scale = vertical.norm(dim=1, keepdim=True).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return vertical / scale, (basis * scale).mT


def _refit(
    weight: Tensor,
    vertical: Tensor,
    second: Tensor,
    moments: Moments,
    bias: Tensor | None,
) -> HorizontalRefit:
    """Fit horizontal kernels to the outputs, given the vertical ones.

    Args:
        weight: Shape `out_channels x in_channels / groups x height x width`.
        vertical: Shape `groups x in height x max_rank`.
        second: Second moments of the patches, in the precision of the weight.
        moments: Of the patches, for the mean.
        bias: Of the layer, or None.
    """
    width, groups = weight.shape[3], len(vertical)
    mean, pairs = moments.mean, _by_columns(second, width)
    # g k s: the vertical kernels in one column, against the patch in another.
    by_patch = vertical.mT[:, None, None] @ pairs  # g x z k s
    inner = by_patch @ vertical[:, None, None]  # g x z k l
    # (g n) c y x -> g x (c y) n
    kernels = weight.unflatten(0, (groups, -1)).permute(0, 4, 2, 3, 1).flatten(2, 3)
    outer = (by_patch @ kernels[:, None]).sum(2)  # g x k n
    # Rank-major: g (k x) (l z), g (k x) n.
    inner = inner.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)
    outer = outer.transpose(1, 2).flatten(1, 2)
    root = cholesky(inner.double())
    projected = torch.linalg.solve_triangular(root, outer.double(), upper=False)
    if bias is None:
        return HorizontalRefit(
            root.float(),
            projected.float(),
            root.new_zeros(root.shape[:2]),
            root.new_zeros(len(weight)),
            width,
        )
    # g (r x) -> g r x, g k x, g (k x)
    inner_mean = (vertical.double().mT @ mean.unflatten(1, (-1, width))).flatten(1)
    flat = weight.double().unflatten(0, (groups, -1)).flatten(2)
    return HorizontalRefit(
        root.float(),
        projected.float(),
        inner_mean,
        moments.output_mean(flat).flatten(),
        width,
    )


def cholesky(second: Tensor) -> Tensor:
    """Return the Cholesky factor of what may be singular, as of a zero weight.

    Directions without any energy get some; their kernels come out as zero. The more of
    it, the more rounding has made moments indefinite.

    Args:
        second: Symmetric. Shape `groups x p x p`.
    """
    energy = second.diagonal(dim1=1, dim2=2)
    least = energy.amax(1, keepdim=True).clamp_min(1e-30).expand_as(energy)
    for share in (1e-10, 1e-7, 1e-4):
        root, failed = torch.linalg.cholesky_ex(
            second + torch.diag_embed(share * least)
        )
        if not bool(failed.any()):
            return root
    return torch.linalg.cholesky(second + torch.diag_embed(1e-2 * least))


def added_values(kept: Tensor, total: Tensor, full_rank: int) -> Tensor:
    """Return the root of what each rank adds to an expected squared norm.

    Args:
        kept: By each rank that has kernels of its own; the last one is the maximal
            rank. Above it, which no search uses, what is left is shared out.
        total: The whole of it.
        full_rank: Length of the result.
    """
    kept = kept.clamp_max(total)
    added = kept.diff(prepend=kept.new_zeros(1)).clamp_min(0.0)
    above = full_rank - len(kept)
    if above:
        rest = (total - kept[-1]).clamp_min(0.0)
        added = torch.cat([added, (rest / above).expand(above)])
    return added.sqrt()


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
