"""Tucker-2: a 1 x 1 convolution, a small one, and a 1 x 1 convolution."""

from dataclasses import dataclass

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
from compression_adapters.decompositions.low_rank_conv import (
    HorizontalRefit,
    added_values,
    cholesky,
)
from compression_adapters.decompositions.moments import MomentKind, Moments
from compression_adapters.decompositions.output_projection import (
    output_directions,
    square_root,
)
from compression_adapters.decompositions.tensor_algebra import partial_tucker


@dataclass(frozen=True, eq=False)
class TuckerFactors:
    """The kernel of a convolution in bases of its channels, in descending order.

    Args:
        core: Kernel between the bases. Shape `full_out x full_in x height x width`.
        out_basis: Orthonormal columns. Shape `out_channels x full_out`.
        in_basis: Orthonormal columns. Shape `in_channels x full_in`.
        bias: The layer's bias or None. Shape `out_channels`.
        geometry: Stride, padding and so on of the layer.
        dtype: Dtype of the layer; the factors are in double precision.
        fit: With moments: the best kernels in these bases. None: the weight's.
    """

    core: Tensor
    out_basis: Tensor
    in_basis: Tensor
    bias: Tensor | None
    geometry: Geometry
    dtype: torch.dtype
    fit: "CoreFit | None" = None


@dataclass(frozen=True, eq=False)
class CoreFit:
    """The best kernels between the bases for the data, for every pair of ranks.

    Args:
        refit: The least squares solution of A^T y from the input channels' directions
            in a patch, with A the basis of the outputs: that of `HorizontalRefit`, of
            a kernel with all its entries in one row.
        mean: E[W x] of a layer with a bias, else None. Shape `out_channels`.
        singular_values: Roots of what each rank adds to the expected squared norm.
    """

    refit: HorizontalRefit
    mean: Tensor | None
    singular_values: Tensor


class TuckerConv2d(nn.Module):
    """A convolution between fewer channels, and 1 x 1 convolutions to and from them.

    It is not an `nn.Conv2d`, but has the attributes that code around convolutions
    reads: `weight` (reconstructed at each access), `bias`, `in_channels`,
    `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`,
    `padding_mode`.

    Args:
        first: 1 x 1, `in_channels` to `rank_in` channels, without bias.
        core: The layer's kernel size, `rank_in` to `rank_out` channels, without bias.
        last: 1 x 1, `rank_out` to `out_channels` channels, with the bias.

    Source: Kim et al. 2016, "Compression of deep convolutional neural networks for
        fast and low power mobile applications".
    """

    def __init__(self, first: nn.Conv2d, core: nn.Conv2d, last: nn.Conv2d) -> None:
        super().__init__()
        self.first = first
        self.core = core
        self.last = last
        self.in_channels = first.in_channels
        self.out_channels = last.out_channels
        self.groups = 1
        self.padding_mode = core.padding_mode
        self.kernel_size = core.kernel_size
        self.stride = core.stride
        self.dilation = core.dilation
        self.padding = core.padding

    @property
    def bias(self) -> Tensor | None:
        """The bias, held by the last convolution."""
        return self.last.bias

    @property
    def weight(self) -> Tensor:
        """The dense weight, `out_channels x in_channels x height x width`."""
        first, last = self.first.weight.flatten(1), self.last.weight.flatten(1)
        return torch.einsum("no,oihw,ic->nchw", last, self.core.weight, first)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as `nn.Conv2d` does."""
        outputs: Tensor = self.last(self.core(self.first(input)))
        return outputs


@dataclass(frozen=True)
class Tucker:
    """Tucker-2: the kernel between the most important directions of its channels.

        W[n, c, y, x] ~ sum_{i, j} A[n, i] B[c, j] G[i, j, y, x]

    One rank K drives both sides: the larger side has K directions and the other one
    proportionally many, rounded up. `truncate` slices the higher-order SVD, in which
    the error is exactly the norm of what is cut off; `finalize` improves the slice by
    higher-order orthogonal iteration (tensorly), which lowers the error slightly.

    Every stride, padding, padding mode and dilation; no groups, no 1 x 1 kernels. Only
    exactly `nn.Conv2d`.

    With moments S of the patches, the outputs are projected on the leading eigenvectors
    of their covariance, A. For the inputs, let V = L L^T be the moments of the channels
    in a patch, averaged over its entries: their directions are the rows of U_K^T L^-1,
    with U the left singular vectors of L^T W as a matrix of C rows. This is the
    higher-order SVD in the norm of the data, and nested, but not the minimum of the
    expected error. The kernel in between is then the best one for the data, given both
    sides (`CoreFit`), at every rank up to the maximal one. `finalize` is the slice.

    Source: Kim et al. 2016; De Lathauwer et al. 2000. Deviation: one coordinate instead
        of two ranks.

    Example:
        >>> tucker, layer = Tucker(), nn.Conv2d(16, 32, 3, padding=1)
        >>> tucker.max_rank(layer)
        27
        >>> module = tucker.truncate(tucker.factorize(layer), 10)
        >>> module.core
        Conv2d(5, 10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    name: str = "tucker"
    searchable: bool = True

    def supports(self, layer: nn.Module) -> bool:
        """Accept spatial convolutions without groups that rank 1 makes no larger."""
        conv = spatial_conv2d(layer)
        return conv is not None and _max_rank(conv) > 0

    def max_rank(self, layer: nn.Module) -> int:
        """Return the largest rank that adds no weights."""
        return _max_rank(_convolution(layer))

    def moments_of(self, layer: nn.Module) -> MomentKind:
        """Return `"inputs"`: moments of patches."""
        return "inputs"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> TuckerFactors:
        """Compute the higher-order SVD of the two channel modes once."""
        conv = _convolution(layer)
        # The bases come from Gram matrices, which square the condition number. Double
        # precision compensates for this, and is faster than an SVD of the long
        # matrices.
        weight = conv.weight.detach().double()
        full_out, full_in = _full_ranks(tuple(weight.shape))
        fit = None
        if moments is None:
            out_basis = _basis(weight.flatten(1), full_out)
            in_basis = _basis(weight.transpose(0, 1).flatten(1), full_in)
            core = torch.einsum("nchw,no,ci->oihw", weight, out_basis, in_basis)
        else:
            centred = conv.bias is not None
            _, directions = output_directions(
                weight.flatten(1)[None], moments, centred=centred
            )
            out_basis = directions[0]
            in_basis, core = _input_directions(weight, moments, full_in, centred)
            core = torch.einsum("nihw,no->oihw", core, out_basis)
            fit = _fit(weight, moments, out_basis, in_basis, _max_rank(conv), centred)
        return TuckerFactors(
            core=core,
            out_basis=out_basis,
            in_basis=in_basis,
            bias=bias_of(conv),
            geometry=Geometry.of(conv),
            dtype=conv.weight.dtype,
            fit=fit,
        )

    def truncate(self, factors: TuckerFactors, rank: int) -> TuckerConv2d:
        """Keep the leading directions of both sides."""
        rank_out, rank_in = _ranks_of(factors, rank)
        core, bias = _core_at(factors, rank_out, rank_in)
        return _module(
            factors,
            core,
            factors.out_basis[:, :rank_out],
            factors.in_basis[:, :rank_in],
            bias,
        )

    def finalize(self, factors: TuckerFactors, rank: int) -> TuckerConv2d:
        """Improve the slice by higher-order orthogonal iteration; slow.

        With moments, the slice itself, which the iteration would make worse.
        """
        if factors.fit is not None:
            return self.truncate(factors, rank)
        ranks = _ranks_of(factors, rank)
        # In the bases of the factors, the slice is the start of the iteration.
        array = factors.core.cpu().numpy()
        core, (out_basis, in_basis) = partial_tucker(array, ranks)
        like = factors.core
        return _module(
            factors,
            torch.from_numpy(core.copy()).to(like),
            factors.out_basis @ torch.from_numpy(out_basis.copy()).to(like),
            factors.in_basis @ torch.from_numpy(in_basis.copy()).to(like),
            factors.bias,
        )

    def singular_values(self, factors: TuckerFactors) -> Tensor:
        """Return the root of each rank's share of the squared norm of the slice.

        With moments, the root of what each rank adds to the expected squared norm.
        """
        if factors.fit is not None:
            return factors.fit.singular_values
        energy = factors.core.square().sum((2, 3)).cumsum(0).cumsum(1)
        full = _full_ranks(_weight_shape(factors))
        pairs = [_split(rank, full) for rank in range(1, max(full) + 1)]
        kept = torch.stack([energy[out - 1, into - 1] for out, into in pairs])
        added = kept.diff(prepend=kept.new_zeros(1))
        return added.clamp_min(0.0).sqrt()

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count N K_out + K_out K_in d d' + K_in C."""
        return _num_weights(weight_shape, rank)

    def empty(self, layer: nn.Module, rank: int) -> TuckerConv2d:
        """Build the layer `truncate` would give, with uninitialised weights."""
        conv = _convolution(layer)
        channels_out, channels_in, height, width = conv.weight.shape
        full = _full_ranks(tuple(conv.weight.shape))
        require_rank(rank, max(full), shape_in_words(tuple(conv.weight.shape)))
        rank_out, rank_in = _split(rank, full)
        like = conv.weight.detach()
        return TuckerConv2d(
            conv2d(like.new_empty(rank_in, channels_in, 1, 1)),
            conv2d(
                like.new_empty(rank_out, rank_in, height, width),
                None,
                Geometry.of(conv),
            ),
            conv2d(like.new_empty(channels_out, rank_out, 1, 1), empty_bias(conv)),
        )


def _basis(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors of a matrix, by its Gram matrix."""
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1)[:, :rank]


def _input_directions(
    weight: Tensor, moments: Moments, full_in: int, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return directions of the input channels, and the kernel between them.

    Args:
        weight: Shape `out_channels x in_channels x height x width`.
        moments: Of the patches.
        full_in: How many directions.
        centred: About the mean.

    Returns:
        Columns with E[(T^T x)^2] = 1, averaged over the kernel's entries, shape
        `in_channels x full_in`, and the kernel, `out_channels x full_in x height x
        width`, so that both together are the weight.
    """
    area = weight[0, 0].numel()
    # (c p) (d q) -> c d, the mean over p = q
    pairs = moments.of_inputs(centred=centred)[0].unflatten(1, (-1, area))
    channels = pairs.unflatten(0, (-1, area)).diagonal(dim1=1, dim2=3).mean(-1)
    root = square_root(channels[None])[0]
    weighted = torch.einsum("dc,ndhw->cnhw", root, weight)
    basis = _basis(weighted.flatten(1), full_in)
    directions = torch.linalg.lstsq(root.T, basis).solution
    return directions, torch.einsum("cnhw,ci->nihw", weighted, basis)


def _fit(
    weight: Tensor,
    moments: Moments,
    out_basis: Tensor,
    in_basis: Tensor,
    max_rank: int,
    centred: bool,
) -> CoreFit:
    """Fit kernels between the bases to the data, for every rank.

    Args:
        weight: Shape `out_channels x in_channels x height x width`.
        moments: Of the patches.
        out_basis: Shape `out_channels x full_out`.
        in_basis: Shape `in_channels x full_in`.
        max_rank: Largest rank of a search.
        centred: About the mean.
    """
    full, area = (out_basis.shape[1], in_basis.shape[1]), weight[0, 0].numel()
    used = in_basis[:, : _split(max_rank, full)[1]]
    second = moments.of_inputs(centred=centred)[0]
    # (c p) (d q) -> (c p) (k q), in the order (direction, entry)
    by_patch = torch.einsum("rdq,dk->rkq", second.unflatten(1, (-1, area)), used)
    inner = torch.einsum(
        "cps,ck->kps", by_patch.flatten(1).unflatten(0, (-1, area)), used
    )
    projected = out_basis.T @ weight.flatten(1)
    outer = (projected @ by_patch.flatten(1)).T
    root = cholesky(inner.flatten(0, 1)[None])
    rows = torch.linalg.solve_triangular(root, outer[None], upper=False)
    mean = None
    inner_mean, outer_mean = root.new_zeros(1, len(outer)), root.new_zeros(full[0])
    if centred:
        mean = moments.output_mean(weight.flatten(1)[None])[0]
        inner_mean = (used.T @ moments.mean[0].unflatten(0, (-1, area))).flatten()[None]
        outer_mean = out_basis.T @ mean
    refit = HorizontalRefit(root.float(), rows.float(), inner_mean, outer_mean, area)
    # The squared norm kept by the first outputs and the first inputs.
    energy = rows[0].square().unflatten(0, (-1, area)).sum(1).cumsum(0).cumsum(1)
    pairs = [_split(rank, full) for rank in range(1, max_rank + 1)]
    kept = torch.stack([energy[into - 1, out - 1] for out, into in pairs])
    total = (weight.flatten(1) @ second).mul(weight.flatten(1)).sum()
    values = added_values(kept, total, max(full))
    return CoreFit(refit, mean, values)


def _core_at(
    factors: TuckerFactors, rank_out: int, rank_in: int
) -> tuple[Tensor, Tensor | None]:
    """Return the kernel between the bases at two ranks, and the bias."""
    fit, bias = factors.fit, factors.bias
    if fit is None or rank_in > fit.refit.max_rank:
        return factors.core[:rank_out, :rank_in], bias
    kernels, shift = fit.refit.at(rank_in)
    core = kernels[:rank_out].unflatten(3, factors.core.shape[2:]).squeeze(2)
    if bias is not None and fit.mean is not None:
        basis = factors.out_basis
        kept = basis[:, :rank_out] @ (basis.T @ fit.mean - shift)[:rank_out]
        bias = bias + (fit.mean - kept).to(bias)
    return core.to(factors.core), bias


def _full_ranks(weight_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many directions the outputs and the inputs can have."""
    channels_out, channels_in, height, width = weight_shape
    area = height * width
    return (
        min(channels_out, channels_in * area),
        min(channels_in, channels_out * area),
    )


def _split(rank: int, full: tuple[int, int]) -> tuple[int, int]:
    """Return the ranks of outputs and inputs: in proportion, rounded up."""
    larger = max(full)
    return -(-rank * full[0] // larger), -(-rank * full[1] // larger)


def _num_weights(weight_shape: tuple[int, ...], rank: int) -> int:
    """Count the weights of the three convolutions."""
    channels_out, channels_in, height, width = weight_shape
    rank_out, rank_in = _split(rank, _full_ranks(weight_shape))
    core = rank_out * rank_in * height * width
    return channels_out * rank_out + core + rank_in * channels_in


def _max_rank(conv: nn.Conv2d) -> int:
    """Return the largest rank that adds no weights; 0 if rank 1 adds some."""
    shape = tuple(conv.weight.shape)
    rank = 0
    while rank < max(_full_ranks(shape)):
        if _num_weights(shape, rank + 1) > conv.weight.numel():
            break
        rank += 1
    return rank


def _weight_shape(factors: TuckerFactors) -> tuple[int, ...]:
    """Return the shape of the dense weight."""
    sides = len(factors.out_basis), len(factors.in_basis)
    return (*sides, *factors.core.shape[2:])


def _ranks_of(factors: TuckerFactors, rank: int) -> tuple[int, int]:
    """Split a rank, after refusing one that is not legal."""
    shape = _weight_shape(factors)
    full = _full_ranks(shape)
    require_rank(rank, max(full), shape_in_words(shape))
    return _split(rank, full)


def _module(
    factors: TuckerFactors,
    core: Tensor,
    out_basis: Tensor,
    in_basis: Tensor,
    bias: Tensor | None,
) -> TuckerConv2d:
    """Build the three convolutions in the layer's own precision."""
    dtype = factors.dtype
    return TuckerConv2d(
        conv2d(in_basis.T[:, :, None, None].to(dtype)),
        conv2d(core.to(dtype), None, factors.geometry),
        conv2d(out_basis[:, :, None, None].to(dtype), bias),
    )


def _convolution(layer: nn.Module) -> nn.Conv2d:
    """Narrow to a supported convolution, refusing every other type by name."""
    if not isinstance(layer, nn.Conv2d) or not Tucker().supports(layer):
        raise ValueError(
            "Tucker supports exactly nn.Conv2d with a plain weight, without groups, "
            "larger than 1 x 1, that rank 1 makes no larger; got "
            f"{layer!r}. Choose low_rank_conv, which takes groups, svd for 1 x 1, or "
            "leave this layer out."
        )
    return layer
