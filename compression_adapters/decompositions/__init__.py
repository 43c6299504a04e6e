"""Decompositions of single layers, one file per decomposition."""

from compression_adapters.decompositions.base import Decomposition, Factors
from compression_adapters.decompositions.channel_conv import (
    ChannelConv,
    ChannelConv2d,
)
from compression_adapters.decompositions.cp import CP, CPConv2d
from compression_adapters.decompositions.embedding import (
    LowRankEmbedding,
    LowRankEmbeddings,
)
from compression_adapters.decompositions.ladder import (
    Ladder,
    LadderFactors,
    Rung,
    error_shares,
)
from compression_adapters.decompositions.low_rank_conv import (
    LowRankConv,
    LowRankConv2d,
)
from compression_adapters.decompositions.moments import MomentKind, Moments
from compression_adapters.decompositions.pruning import (
    FACTORED_LAYERS,
    MagnitudePruning,
    parts_of,
    sparse_bytes,
)
from compression_adapters.decompositions.svd import (
    LowRankLinear,
    SVDFactors,
    TruncatedSVD,
    is_transposed_linear,
)
from compression_adapters.decompositions.tucker import Tucker, TuckerConv2d

DECOMPOSITIONS: dict[str, Decomposition] = {
    "svd": TruncatedSVD(),
    "low_rank_conv": LowRankConv(),
    "channel_conv": ChannelConv(),
    "embedding": LowRankEmbeddings(),
    "tucker": Tucker(),
    "cp": CP(),
    "pruning": MagnitudePruning(),
}
"""Decompositions by name, for loading. Names are stored and never renamed."""

__all__ = [
    "CP",
    "DECOMPOSITIONS",
    "FACTORED_LAYERS",
    "CPConv2d",
    "ChannelConv",
    "ChannelConv2d",
    "Decomposition",
    "Factors",
    "Ladder",
    "LadderFactors",
    "LowRankConv",
    "LowRankConv2d",
    "LowRankEmbedding",
    "LowRankEmbeddings",
    "LowRankLinear",
    "MagnitudePruning",
    "MomentKind",
    "Moments",
    "Rung",
    "SVDFactors",
    "TruncatedSVD",
    "Tucker",
    "TuckerConv2d",
    "error_shares",
    "is_transposed_linear",
    "parts_of",
    "sparse_bytes",
]
