"""The network side: which ranks a network has, what they cost, what they lose."""

import importlib
from typing import TYPE_CHECKING, Any

from compression_adapters.decompositions import DECOMPOSITIONS, Decomposition
from compression_adapters.evaluation.estimates import (
    MeanSEM,
    mean_and_sem,
    pairwise_mean_and_sem,
)
from compression_adapters.evaluation.losses import (
    LOSSES,
    IntermediateSquaredL2,
    Loss,
    RelativeSquaredL2,
    cross_entropy,
    kl_divergence,
    squared_l2,
    top1_error,
)
from compression_adapters.evaluation.problem import (
    CompressionProblem,
    compression_problem,
)
from compression_adapters.evaluation.sampling import (
    Batch,
    Sampler,
    dataset_sampler,
    generator_sampler,
)
from compression_adapters.evaluation.scalarization import scalarize, scalarize_rate
from compression_adapters.layers.selection import (
    choose_linear,
    choose_low_rank,
    choose_pruning,
)
from compression_adapters.layers.survey import LayerSpec, find_layers
from compression_adapters.network.checkpoint import (
    load_compressed,
    load_weights,
    save_compressed,
)
from compression_adapters.network.counts import (
    compression_ratio,
    layer_table,
    num_weights,
    whole_network_ratio,
)
from compression_adapters.network.fine_tuning import fine_tune, reestimate_batch_norm
from compression_adapters.network.profile import NetworkProfile, profile
from compression_adapters.network.recipe import CompressionRecipe
from compression_adapters.network.truncation import (
    factorize_network,
    truncate_network,
    truncated,
)
from compression_adapters.rank_space.parameters import (
    RankParameter,
    layer_ranks,
    parameterization_from_ranks,
    rank_parameters,
)
from compression_adapters.rank_space.scales import ENCODINGS, Rank

if TYPE_CHECKING:
    from compression_adapters.api import compress
    from compression_adapters.search.loop import EvaluationError
    from compression_adapters.search.result import CompressionResult

# Not here, so that this import stays free of torchvision: `presets`. What brings Ax,
# which takes seconds, is imported when it is first asked for.
_SEARCH = {
    "CompressionResult": "compression_adapters.search.result",
    "EvaluationError": "compression_adapters.search.loop",
    "compress": "compression_adapters.api",
}

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
    """Import what brings Ax when it is first used."""
    if name in _SEARCH:
        return getattr(importlib.import_module(_SEARCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
