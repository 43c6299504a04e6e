"""The network side: which ranks a network has, what they cost, what they lose."""

from typing import TYPE_CHECKING, Any

from compression_adapters.checkpoint import (
    load_compressed,
    load_weights,
    save_compressed,
)
from compression_adapters.choices import (
    choose_linear,
    choose_low_rank,
    choose_pruning,
)
from compression_adapters.decompositions import DECOMPOSITIONS, Decomposition
from compression_adapters.fine_tuning import fine_tune, reestimate_batch_norm
from compression_adapters.layers import LayerSpec, find_layers
from compression_adapters.losses import (
    LOSSES,
    IntermediateSquaredL2,
    Loss,
    RelativeSquaredL2,
    cross_entropy,
    kl_divergence,
    squared_l2,
    top1_error,
)
from compression_adapters.network import (
    compression_ratio,
    factorize_network,
    layer_table,
    num_weights,
    truncate_network,
    truncated,
    whole_network_ratio,
)
from compression_adapters.network_profile import NetworkProfile, profile
from compression_adapters.objective import scalarize, scalarize_rate
from compression_adapters.problem import CompressionProblem, compression_problem
from compression_adapters.ranks import (
    ENCODINGS,
    Rank,
    RankParameter,
    layer_ranks,
    parameterization_from_ranks,
    rank_parameters,
)
from compression_adapters.recipe import CompressionRecipe
from compression_adapters.sampling import (
    Batch,
    Sampler,
    dataset_sampler,
    generator_sampler,
)
from compression_adapters.u_statistics import (
    MeanSEM,
    mean_and_sem,
    pairwise_mean_and_sem,
)

if TYPE_CHECKING:
    from compression_adapters.search import (
        CompressionResult,
        EvaluationError,
        compress,
    )

# Not here, so that this import stays free of torchvision: `presets`. The front door is
# imported when it is first asked for: it brings Ax, which takes seconds.
_FRONT_DOOR = ("CompressionResult", "EvaluationError", "compress")

__all__ = [
    "DECOMPOSITIONS",
    "ENCODINGS",
    "LOSSES",
    "Batch",
    "CompressionProblem",
    "CompressionRecipe",
    "CompressionResult",
    "Decomposition",
    "EvaluationError",
    "IntermediateSquaredL2",
    "LayerSpec",
    "Loss",
    "MeanSEM",
    "NetworkProfile",
    "Rank",
    "RankParameter",
    "RelativeSquaredL2",
    "Sampler",
    "choose_linear",
    "choose_low_rank",
    "choose_pruning",
    "compress",
    "compression_problem",
    "compression_ratio",
    "cross_entropy",
    "dataset_sampler",
    "factorize_network",
    "find_layers",
    "fine_tune",
    "generator_sampler",
    "kl_divergence",
    "layer_ranks",
    "layer_table",
    "load_compressed",
    "load_weights",
    "mean_and_sem",
    "num_weights",
    "pairwise_mean_and_sem",
    "parameterization_from_ranks",
    "profile",
    "rank_parameters",
    "reestimate_batch_norm",
    "save_compressed",
    "scalarize",
    "scalarize_rate",
    "squared_l2",
    "top1_error",
    "truncate_network",
    "truncated",
    "whole_network_ratio",
]


def __getattr__(name: str) -> Any:
    """Import the front door when it is first used."""
    if name in _FRONT_DOOR:
        from compression_adapters import search

        return getattr(search, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
