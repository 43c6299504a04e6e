"""Public names, and where they live: the one list of them."""

from .api import (
    compress as compress,
)
from .calibration.profile import (
    NetworkProfile as NetworkProfile,
)
from .calibration.profile import (
    profile as profile,
)
from .calibration.refit import (
    refit_in_sequence as refit_in_sequence,
)
from .decompositions import (
    DECOMPOSITIONS as DECOMPOSITIONS,
)
from .decompositions import (
    Decomposition as Decomposition,
)
from .decompositions import (
    Ladder as Ladder,
)
from .decompositions import (
    Moments as Moments,
)
from .evaluation.build import (
    compression_problem as compression_problem,
)
from .evaluation.estimates import (
    MeanSEM as MeanSEM,
)
from .evaluation.estimates import (
    apply_sem_floor as apply_sem_floor,
)
from .evaluation.estimates import (
    mean_and_sem as mean_and_sem,
)
from .evaluation.estimates import (
    pairwise_mean_and_sem as pairwise_mean_and_sem,
)
from .evaluation.finishing import (
    FinishRecord as FinishRecord,
)
from .evaluation.finishing import (
    FinishStep as FinishStep,
)
from .evaluation.finishing import (
    finish_network as finish_network,
)
from .evaluation.losses import (
    LOSSES as LOSSES,
)
from .evaluation.losses import (
    IntermediateSquaredL2 as IntermediateSquaredL2,
)
from .evaluation.losses import (
    Loss as Loss,
)
from .evaluation.losses import (
    RelativeSquaredL2 as RelativeSquaredL2,
)
from .evaluation.losses import (
    cross_entropy as cross_entropy,
)
from .evaluation.losses import (
    kl_divergence as kl_divergence,
)
from .evaluation.losses import (
    squared_l2 as squared_l2,
)
from .evaluation.losses import (
    top1_error as top1_error,
)
from .evaluation.price_path import (
    PricePath as PricePath,
)
from .evaluation.price_path import (
    price_path as price_path,
)
from .evaluation.problem import (
    CompressionProblem as CompressionProblem,
)
from .evaluation.sampling import (
    Batch as Batch,
)
from .evaluation.sampling import (
    Sampler as Sampler,
)
from .evaluation.sampling import (
    dataset_sampler as dataset_sampler,
)
from .evaluation.sampling import (
    generator_sampler as generator_sampler,
)
from .evaluation.scalarization import (
    scalarize as scalarize,
)
from .evaluation.scalarization import (
    scalarize_rate as scalarize_rate,
)
from .layers.selection import (
    best_of as best_of,
)
from .layers.selection import (
    choose_best as choose_best,
)
from .layers.selection import (
    choose_linear as choose_linear,
)
from .layers.selection import (
    choose_low_rank as choose_low_rank,
)
from .layers.selection import (
    choose_pruning as choose_pruning,
)
from .layers.survey import (
    LayerSpec as LayerSpec,
)
from .layers.survey import (
    find_layers as find_layers,
)
from .network.checkpoint import (
    load_compressed as load_compressed,
)
from .network.checkpoint import (
    save_compressed as save_compressed,
)
from .network.costs import (
    NetworkCost as NetworkCost,
)
from .network.costs import (
    compare_costs as compare_costs,
)
from .network.costs import (
    layer_losses as layer_losses,
)
from .network.costs import (
    measure_cost as measure_cost,
)
from .network.counts import (
    compression_ratio as compression_ratio,
)
from .network.counts import (
    layer_table as layer_table,
)
from .network.counts import (
    num_weights as num_weights,
)
from .network.counts import (
    whole_network_ratio as whole_network_ratio,
)
from .network.export import (
    export_onnx as export_onnx,
)
from .network.fine_tuning import (
    fine_tune as fine_tune,
)
from .network.fine_tuning import (
    move_batch_norm as move_batch_norm,
)
from .network.fine_tuning import (
    reestimate_batch_norm as reestimate_batch_norm,
)
from .network.latency import (
    LatencyComparison as LatencyComparison,
)
from .network.latency import (
    LatencyTable as LatencyTable,
)
from .network.latency import (
    compare_latency as compare_latency,
)
from .network.latency import (
    measure_latency as measure_latency,
)
from .network.plain import (
    plain_layers as plain_layers,
)
from .network.recipe import (
    CompressionRecipe as CompressionRecipe,
)
from .network.sizes import (
    SizeMeasure as SizeMeasure,
)
from .network.truncation import (
    factorize_network as factorize_network,
)
from .network.truncation import (
    truncate_network as truncate_network,
)
from .network.truncation import (
    truncated as truncated,
)
from .network.weights import load_weights as load_weights
from .options import (
    CompressionOptions as CompressionOptions,
)
from .options import (
    ProblemOptions as ProblemOptions,
)
from .options import (
    SearchOptions as SearchOptions,
)
from .rank_space.parameters import (
    RankParameter as RankParameter,
)
from .rank_space.parameters import (
    layer_ranks as layer_ranks,
)
from .rank_space.parameters import (
    parameterization_from_ranks as parameterization_from_ranks,
)
from .rank_space.parameters import (
    rank_parameters as rank_parameters,
)
from .rank_space.scales import (
    ENCODINGS as ENCODINGS,
)
from .rank_space.scales import (
    Rank as Rank,
)
from .rank_space.scales import (
    rank_scale as rank_scale,
)
from .search.client import (
    range_parameters as range_parameters,
)
from .search.loop import (
    EvaluationError as EvaluationError,
)
from .search.result import (
    CompressionResult as CompressionResult,
)
from .search.result import (
    UnmeasuredNetworkError as UnmeasuredNetworkError,
)
from .search.targets import (
    compress_at as compress_at,
)
from .search.targets import (
    compress_to as compress_to,
)
from .stages import (
    Stage as Stage,
)
from .stages import (
    compress_in_stages as compress_in_stages,
)

__version__: str

from .evaluation.sampling import (
    open_pool as open_pool,
)
from .network.modes import (
    forward as forward,
)
from .network.outputs import (
    read_output as read_output,
)
from .network.structured_inputs import (
    NetworkInputs as NetworkInputs,
)
from .network.structured_inputs import (
    as_inputs as as_inputs,
)

__all__ = [
    "DECOMPOSITIONS",
    "ENCODINGS",
    "LOSSES",
    "Batch",
    "CompressionOptions",
    "CompressionProblem",
    "CompressionRecipe",
    "CompressionResult",
    "Decomposition",
    "EvaluationError",
    "IntermediateSquaredL2",
    "Ladder",
    "LatencyComparison",
    "LatencyTable",
    "LayerSpec",
    "Loss",
    "MeanSEM",
    "NetworkCost",
    "NetworkInputs",
    "NetworkProfile",
    "ProblemOptions",
    "Rank",
    "RankParameter",
    "RelativeSquaredL2",
    "Sampler",
    "SearchOptions",
    "SizeMeasure",
    "Stage",
    "UnmeasuredNetworkError",
    "apply_sem_floor",
    "as_inputs",
    "best_of",
    "choose_best",
    "choose_linear",
    "choose_low_rank",
    "choose_pruning",
    "compare_costs",
    "compare_latency",
    "compress",
    "compress_at",
    "compress_in_stages",
    "compress_to",
    "compression_problem",
    "compression_ratio",
    "cross_entropy",
    "dataset_sampler",
    "export_onnx",
    "factorize_network",
    "find_layers",
    "fine_tune",
    "forward",
    "generator_sampler",
    "kl_divergence",
    "layer_losses",
    "layer_ranks",
    "layer_table",
    "load_compressed",
    "load_weights",
    "mean_and_sem",
    "measure_cost",
    "measure_latency",
    "num_weights",
    "open_pool",
    "pairwise_mean_and_sem",
    "parameterization_from_ranks",
    "plain_layers",
    "profile",
    "range_parameters",
    "rank_parameters",
    "rank_scale",
    "read_output",
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
