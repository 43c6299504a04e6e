"""Decompositions of single layers, one file each."""

from compression_adapters.decompositions.base import Decomposition, Factors
from compression_adapters.decompositions.svd import (
    LowRankLinear,
    SVDFactors,
    TruncatedSVD,
    num_weights_triangular,
)

DECOMPOSITIONS: dict[str, Decomposition] = {
    "svd": TruncatedSVD(),
}
"""Decompositions by name, for loading. Names are stored and never renamed."""

__all__ = [
    "DECOMPOSITIONS",
    "Decomposition",
    "Factors",
    "LowRankLinear",
    "SVDFactors",
    "TruncatedSVD",
    "num_weights_triangular",
]
