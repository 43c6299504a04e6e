"""Low-rank embeddings: a table of K columns and then a matrix."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression_adapters.decompositions.base import has_plain_weight, require_rank
from compression_adapters.decompositions.moments import (
    RIDGE,
    MomentKind,
    Moments,
    leading_eigenvectors,
)


@dataclass(frozen=True, eq=False)
class EmbeddingFactors:
    """The table of an embedding as `left @ right`, columns in descending order.

    Args:
        left: Shape `num_embeddings x full_rank`.
        right: Shape `full_rank x embedding_dim`.
        singular_values: Descending. Shape `full_rank`.
        padding_idx: The row whose gradient is zero, or None.
    """

    left: Tensor
    right: Tensor
    singular_values: Tensor
    padding_idx: int | None


class LowRankEmbedding(nn.Module):
    """An embedding whose table is the product of two thin matrices.

    Looks up rows of `left` and multiplies them by `right`. It is not an `nn.Embedding`,
    but has the attributes that code around embeddings reads: `weight` (reconstructed at
    each access), `num_embeddings`, `embedding_dim`, `padding_idx`.

    Args:
        left: Shape `num_embeddings x rank`.
        right: Shape `rank x embedding_dim`.
        padding_idx: The row whose gradient is zero, or None. If it is zero, so are the
            outputs for it.

    Source: Lan et al. 2020, "ALBERT", section 3.1; Acharya et al. 2019, "Online
        embedding compression for text classification using low rank matrix
        factorization".

    Example:
        >>> layer = LowRankEmbedding(torch.ones(5, 1), torch.ones(1, 2), None)
        >>> layer
        LowRankEmbedding(5, 2, rank=1)
        >>> layer(torch.tensor([3])).tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, left: Tensor, right: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.left = nn.Parameter(left, requires_grad=False)
        self.right = nn.Parameter(right, requires_grad=False)
        self.padding_idx = padding_idx

    @property
    def rank(self) -> int:
        """Number of columns of `left`."""
        return self.left.shape[1]

    @property
    def num_embeddings(self) -> int:
        """Number of rows of the table."""
        return self.left.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Size of each embedding."""
        return self.right.shape[1]

    @property
    def weight(self) -> Tensor:
        """The dense table of this layer, `num_embeddings x embedding_dim`."""
        return self.left @ self.right

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer. Shape `...` to `... x embedding_dim`."""
        return F.embedding(input, self.left, self.padding_idx) @ self.right

    def extra_repr(self) -> str:
        """Describe the layer as `nn.Embedding` does, with its rank."""
        padding = (
            "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        )
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, rank={self.rank}"


@dataclass(frozen=True)
class LowRankEmbeddings:
    """The table of an embedding in its K most important directions.

        E ~ (E B_K) B_K^T,  maximal K = floor(V D / (V + D))

    with E the table (V = `num_embeddings`, D = `embedding_dim`) and B the eigenvectors
    of E^T E, by falling eigenvalue: the truncated SVD. With the frequencies p of the
    rows among those that calibration inputs look up, B are the eigenvectors of

        E^T diag(p + rho) E,  rho = RIDGE / V

    and the expected squared error, sum_t p_t |E_t - E_t,K|^2, is the least possible at
    every rank. Rows that were not looked up have the weight rho: where calibration
    inputs say nothing this is the plain SVD. A larger weight for them (the Good-Turing
    estimate of how often a new row appears) makes the error on other inputs larger,
    because those that were seen once stand for them already.

    A row of zeros, as of padding, stays one. Exactly `nn.Embedding`, without `max_norm`
    (which changes its weight when it is called), `sparse` or `scale_grad_by_freq`. A
    lookup has no multiply-adds, this one K D for each token.

    Source: Acharya et al. 2019 for the plain SVD.

    Example:
        >>> decomposition, layer = LowRankEmbeddings(), nn.Embedding(100, 20)
        >>> decomposition.max_rank(layer)
        16
        >>> decomposition.truncate(decomposition.factorize(layer), 5)
        LowRankEmbedding(100, 20, rank=5)
    """

    name: str = "embedding"
    searchable: bool = True

    def supports(self, layer: nn.Module) -> bool:
        """Accept plain embeddings that rank 1 makes smaller."""
        return (
            type(layer) is nn.Embedding
            and has_plain_weight(layer)
            and min(layer.weight.shape) >= 2
            and layer.max_norm is None
            and not layer.sparse
            and not layer.scale_grad_by_freq
        )

    def max_rank(self, layer: nn.Module) -> int:
        """Return floor(VD / (V + D)), at least 1."""
        rows, columns = _embedding(layer).weight.shape
        return max(1, rows * columns // (rows + columns))

    def moments_of(self, layer: nn.Module) -> MomentKind:
        """Return `"frequencies"` of the rows."""
        return "frequencies"

    def factorize(
        self, layer: nn.Module, moments: Moments | None = None
    ) -> EmbeddingFactors:
        """Decompose the table once; all ranks up to min(V, D) are kept."""
        layer = _embedding(layer)
        # As in Tucker, double precision makes up for the Gram matrix, which is much
        # smaller than the table.
        table = layer.weight.detach().double()
        weighted = table
        if moments is not None:
            weighted = table * (moments.second[0] + RIDGE / len(table))[:, None]
        squares, basis = leading_eigenvectors(weighted.mT @ table, min(table.shape))
        left = table @ basis
        # Both factors at the same scale, for half precision.
        scale = left.norm(dim=0).div(len(table) ** 0.5).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        dtype = layer.weight.dtype
        return EmbeddingFactors(
            left=(left / scale).to(dtype),
            right=(basis * scale).mT.to(dtype).contiguous(),
            singular_values=squares.clamp_min(0.0).sqrt(),
            padding_idx=layer.padding_idx,
        )

    def truncate(self, factors: EmbeddingFactors, rank: int) -> LowRankEmbedding:
        """Keep the `rank` leading directions; slices, no copy."""
        _check_rank(rank, (factors.left.shape[0], factors.right.shape[1]))
        return LowRankEmbedding(
            factors.left[:, :rank], factors.right[:rank], factors.padding_idx
        )

    def finalize(self, factors: EmbeddingFactors, rank: int) -> LowRankEmbedding:
        """Same as `truncate`, which is optimal already."""
        return self.truncate(factors, rank)

    def singular_values(self, factors: EmbeddingFactors) -> Tensor:
        """Return the singular values, descending. Shape `min(V, D)`.

        With frequencies, those of the table with its rows weighted by their roots.
        """
        return factors.singular_values

    def num_weights(
        self, weight_shape: tuple[int, ...], rank: int, groups: int = 1
    ) -> int:
        """Count VK + KD."""
        rows, columns = weight_shape
        return rank * (rows + columns)

    def empty(self, layer: nn.Module, rank: int) -> LowRankEmbedding:
        """Build the layer `truncate` would give, with uninitialised weights."""
        layer = _embedding(layer)
        rows, columns = layer.weight.shape
        _check_rank(rank, (rows, columns))
        like = layer.weight.detach()
        return LowRankEmbedding(
            like.new_empty(rows, rank), like.new_empty(rank, columns), layer.padding_idx
        )


def _embedding(layer: nn.Module) -> nn.Embedding:
    """Narrow to a supported layer, refusing every other type by name."""
    if not isinstance(layer, nn.Embedding) or not LowRankEmbeddings().supports(layer):
        raise ValueError(
            "LowRankEmbeddings supports exactly nn.Embedding with a plain weight and "
            "both sides at least 2, without max_norm, sparse or scale_grad_by_freq; "
            f"got {layer!r}. Leave this layer out."
        )
    return layer


def _check_rank(rank: int, weight_shape: tuple[int, int]) -> None:
    """Raise a ValueError unless 1 <= rank <= min(weight_shape)."""
    rows, columns = weight_shape
    require_rank(rank, min(weight_shape), f"an embedding of shape {rows} x {columns}")
