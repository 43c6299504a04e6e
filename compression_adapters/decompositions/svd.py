"""Truncated singular value decomposition of linear layers and 1 x 1 convolutions."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression_adapters.decompositions.base import (
    has_plain_weight,
    in_single_precision,
    require_rank,
)
from compression_adapters.decompositions.convolutions import (
    bias_of,
    empty_bias,
    plain_conv2d,
)
from compression_adapters.decompositions.low_rank_conv import (
    LowRankConv,
    LowRankConv2d,
    LowRankConvFactors,
    empty_conv,
    factorize_conv,
    truncate_conv,
)
from compression_adapters.decompositions.moments import MomentKind, Moments
from compression_adapters.decompositions.output_projection import project_outputs

_TAI = LowRankConv()


@dataclass(frozen=True, eq=False)
class SVDFactors:
    """The weight of a linear layer as `left @ right`, columns in descending order.

    Args:
        left: U sqrt(S). Shape `out_features x full_rank`.
        right: sqrt(S) V^T. Shape `full_rank x in_features`.
        singular_values: Descending. Shape `full_rank`.
        bias: The layer's bias or None. Shape `out_features`.
        mean: With moments, of a layer with a bias: E[W x]. Shape `out_features`.
        inner_mean: With `mean`: E[right @ x]. Shape `full_rank`.
        transposed: Whether the layer's own weight is the transpose.
    """

    left: Tensor
    right: Tensor
    singular_values: Tensor
    bias: Tensor | None
    mean: Tensor | None = None
    inner_mean: Tensor | None = None
    transposed: bool = False

    def bias_at(self, rank: int) -> Tensor | None:
        """Return the bias that makes up for the mean of what a rank leaves out."""
        if self.bias is None or self.mean is None or self.inner_mean is None:
            return self.bias
        kept = self.left[:, :rank].double() @ self.inner_mean[:rank]
        return self.bias + (self.mean - kept).to(self.bias)


class LowRankLinear(nn.Module):
    """A linear layer whose weight is the product of two thin matrices.

    Computes `x @ right.T @ left.T + bias`. It is not an `nn.Linear`, but has the
    attributes that code around linear layers reads: `weight` (reconstructed at each
    access), `bias`, `in_features`, `out_features`; this keeps
    `nn.TransformerEncoderLayer` working.

    Args:
        left: Shape `out_features x rank`.
        right: Shape `rank x in_features`.
        bias: Shape `out_features`, or None.

    Source: Ma et al. 2019, section 3.3.

    Example:
        >>> layer = LowRankLinear(torch.ones(3, 1), torch.ones(1, 2), None)
        >>> layer
        LowRankLinear(in_features=2, out_features=3, rank=1, bias=False)
        >>> layer(torch.ones(1, 2)).tolist()
        [[2.0, 2.0, 2.0]]
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(left, requires_grad=False)
        self.right = nn.Parameter(right, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.transposed = transposed

    @property
    def rank(self) -> int:
        """Number of columns of `left`."""
        return self.left.shape[1]

    @property
    def in_features(self) -> int:
        """Size of each input sample."""
        return self.right.shape[1]

    @property
    def out_features(self) -> int:
        """Size of each output sample."""
        return self.left.shape[0]

    @property
    def weight(self) -> Tensor:
        """The dense weight, `out_features x in_features`, or its transpose."""
        weight = self.left @ self.right
        return weight.T if self.transposed else weight

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer. Shape `... x in_features` to `... x out_features`."""
        return F.linear(F.linear(input, self.right), self.left, self.bias)

    def extra_repr(self) -> str:
        """Describe the layer as `nn.Linear` does, with its rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )


@dataclass(frozen=True)
class TruncatedSVD:
    """Truncated SVD of a linear layer: the best approximation of each rank.

        W = U S V^T ~ (U_K sqrt(S_K)) (sqrt(S_K) V_K^T)
        maximal K = floor(HW / (H + W))

    with W the weight (H = `out_features`, W = `in_features`) and K the rank. Both
    factors include sqrt(S), so that they have the same scale in half precision.

    A 1 x 1 convolution is a linear layer of its channels and becomes two 1 x 1
    convolutions, in groups if it had groups; `LowRankConv` gives the same for these.
    Only exactly `nn.Linear` and `nn.Conv2d`: a subclass may compute something else. And
    Hugging Face's `Conv1D`, a linear layer whose weight is `in x out`.

    With moments of the inputs x, the factors minimise the expected squared error of the
    output, E |W x - W_K x|^2, at every rank: with U the leading eigenvectors of
    E[(W x) (W x)^T],

        left = U_K,  right = U_K^T W,  error = sum of the other eigenvalues

    which needs no inverse, so that nothing is singular. With a bias the moments are
    about the mean, and b' = b + (I - U_K U_K^T) W E[x] makes up for it. `Moments` adds
    a ridge.

    Source: Ma et al. 2019, section 3.3, for the weights alone. Deviation: half
        precision is decomposed in float32 and cast back. The factors of the output's
        moments are those of Chen et al. 2021, "DRONE", without its inverse.

    Example:
        >>> svd, layer = TruncatedSVD(), nn.Linear(30, 20)
        >>> svd.max_rank(layer)
        12
        >>> svd.truncate(svd.factorize(layer), 5)
        LowRankLinear(in_features=30, out_features=20, rank=5, bias=True)
    """

    name: str = "svd"
    searchable: bool = True

    def supports(self, layer: nn.Module) -> bool:
        """Accept plain linear layers and 1 x 1 convolutions that rank 1 makes smaller.

        A weight with a side of one is refused, and so is a weight that is computed from
        other parameters (weight norm, pruning masks), because its layer would overwrite
        it.
        """
        conv = plain_conv2d(layer)
        if conv is not None:
            return conv.kernel_size == (1, 1) and _TAI.supports(conv)
        return (
            (type(layer) is nn.Linear and has_plain_weight(layer))
            or is_transposed_linear(layer)
        ) and min(layer.get_parameter("weight").shape) >= 2

    def max_rank(self, layer: nn.Module) -> int:
        """Return floor(HW / (H + W)), at least 1."""
        layer = _layer(layer)
        if isinstance(layer, nn.Conv2d):
            return _TAI.max_rank(layer)
        height, width = _matrix(layer).shape
        return max(1, height * width // (height + width))

    def moments_of(self, layer: nn.Module) -> MomentKind:
        """Return the kind whose matrix is the smaller one."""
        layer = _layer(layer)
        if isinstance(layer, nn.Conv2d):
            return _TAI.moments_of(layer)
        height, width = _matrix(layer).shape
        return "inputs" if width <= height else "outputs"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> SVDFactors | LowRankConvFactors:
        """Decompose the weight once; all ranks up to min(H, W) are kept."""
        layer = _layer(layer)
        if isinstance(layer, nn.Conv2d):
            return factorize_conv(layer, moments)
        weight, transposed = _matrix(layer), type(layer) is not nn.Linear
        if moments is not None:
            return _factorize_outputs(weight, bias_of(layer), moments, transposed)
        u, s, vh = torch.linalg.svd(in_single_precision(weight), full_matrices=False)
        root = s.sqrt()
        return SVDFactors(
            left=(u * root).to(weight.dtype),
            right=(root[:, None] * vh).to(weight.dtype),
            singular_values=s,
            bias=bias_of(layer),
            transposed=transposed,
        )

    def truncate(
        self, factors: SVDFactors | LowRankConvFactors, rank: int
    ) -> LowRankLinear | LowRankConv2d:
        """Keep the `rank` largest singular values; slices, no copy."""
        if isinstance(factors, LowRankConvFactors):
            return truncate_conv(factors, rank)
        _check_rank(rank, (factors.left.shape[0], factors.right.shape[1]))
        return LowRankLinear(
            factors.left[:, :rank],
            factors.right[:rank],
            factors.bias_at(rank),
            factors.transposed,
        )

    def finalize(
        self, factors: SVDFactors | LowRankConvFactors, rank: int
    ) -> LowRankLinear | LowRankConv2d:
        """Same as `truncate`, which is optimal already."""
        return self.truncate(factors, rank)

    def singular_values(self, factors: SVDFactors | LowRankConvFactors) -> Tensor:
        """Return the singular values, descending. Shape `min(H, W)`.

        With moments, the roots of the eigenvalues of the output's second moments.
        """
        return factors.singular_values

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count HK + KW, as the paper's tables do."""
        height, width, *_ = weight_shape
        return rank * (height + width * groups)

    def empty(self, layer: nn.Module, rank: int) -> LowRankLinear | LowRankConv2d:
        """Build the layer `truncate` would give, with uninitialised weights."""
        layer = _layer(layer)
        if isinstance(layer, nn.Conv2d):
            return empty_conv(layer, rank)
        like = _matrix(layer)
        height, width = like.shape
        _check_rank(rank, (height, width))
        return LowRankLinear(
            like.new_empty(height, rank),
            like.new_empty(rank, width),
            empty_bias(layer),
            type(layer) is not nn.Linear,
        )


def is_transposed_linear(layer: nn.Module) -> bool:
    """Return whether a layer is Hugging Face's `Conv1D`, `x @ weight + bias`.

    By its name and what it holds: `transformers` is not imported.

    Example:
        >>> is_transposed_linear(nn.Linear(3, 2))
        False
    """
    if type(layer).__name__ != "Conv1D" or not has_plain_weight(layer):
        return False
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    fits = weight.ndim == 2 and weight.shape[1] == getattr(layer, "nf", None)
    return fits and bias is not None and bias.shape == weight.shape[1:]


def _factorize_outputs(
    weight: Tensor, bias: Tensor | None, moments: Moments, transposed: bool
) -> SVDFactors:
    """Project the outputs on the leading eigenvectors of their second moments."""
    found = project_outputs(weight.double()[None], moments, centred=bias is not None)
    return SVDFactors(
        left=found.left[0].to(weight.dtype),
        right=found.right[0].to(weight.dtype),
        singular_values=found.values[0],
        bias=bias,
        mean=None if found.mean is None else found.mean[0],
        inner_mean=None if found.inner_mean is None else found.inner_mean[0],
        transposed=transposed,
    )


def _layer(layer: nn.Module) -> nn.Linear | nn.Conv2d:
    """Narrow to a supported layer, refusing every other type by name.

    A transposed linear layer passes as one: it has a weight, see `_matrix`, and a bias.
    """
    if TruncatedSVD().supports(layer):
        return cast("nn.Linear | nn.Conv2d", layer)
    raise ValueError(
        "TruncatedSVD supports exactly nn.Linear, 1 x 1 nn.Conv2d and Hugging Face's "
        f"Conv1D, with a plain weight and both sides at least 2; got {layer!r}. Choose "
        "another decomposition or leave this layer out."
    )


def _matrix(layer: nn.Linear) -> Tensor:
    """Return the weight as `out_features x in_features`."""
    weight = layer.weight.detach()
    return weight if type(layer) is nn.Linear else weight.T


def _check_rank(rank: int, weight_shape: tuple[int, int]) -> None:
    """Raise a ValueError unless 1 <= rank <= min(weight_shape)."""
    height, width = weight_shape
    require_rank(rank, min(weight_shape), f"a linear layer of shape {height} x {width}")
