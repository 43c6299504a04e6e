"""Set up the problem of a network: find, factorize and measure its layers."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from compression_adapters.calibration.factors import calibrated_factors
from compression_adapters.evaluation.calibration_split import split_inputs
from compression_adapters.evaluation.losses import (
    LOSSES,
    RelativeSquaredL2,
    disagreement,
)
from compression_adapters.evaluation.path_encoding import even_groups, path_parameters
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.evaluation.size_choice import measured_size, worthwhile_ranks
from compression_adapters.layers.selection import choice_of
from compression_adapters.layers.survey import find_layers, unwrap
from compression_adapters.network.checks import (
    check_forward,
    require_independent,
    require_searchable,
    require_slices,
)
from compression_adapters.network.latency import batch_of
from compression_adapters.network.macs import drop_ranks_without_gain
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.network.parity import layers_in_use, require_parity
from compression_adapters.network.replacement import copy_network
from compression_adapters.options import (
    FEW_COORDINATES,
    PATH,
    ProblemOptions,
    require_gamma,
)
from compression_adapters.rank_space.parameters import layer_ranks, rank_parameters

# For the size of the reference outputs: gives one digit, which gamma needs.
_SCALE_SAMPLES = 200


def compression_problem(
    network: nn.Module,
    inputs: Any,
    *,
    gamma: float,
    **options: Any,
) -> CompressionProblem:
    """Find and factorize a network's layers, and set up their evaluation.

    Args:
        network: The reference network. Everything runs on a copy, on the device of its
            weights, so that the network is left as it is. It may be in any mode, unless
            it has batch norm, which must be in eval mode. `DataParallel` and
            `torch.compile` are removed.
        inputs: A pool (see `open_pool`: tensors, a dataset, a data loader), or a
            function `(num_samples, rng)` that generates any number of inputs. A pool
            has at least `num_samples` inputs.
        gamma: Weight of the loss in the objective, positive.
        **options: Keywords of `compress` that say what is searched, which documents
            them: `labels`, `loss`, `num_samples` (a number), `choose`, `include`,
            `exclude`, `tie`, `coordinates`, `encoding`, `at_max`, `min_rank`,
            `round_to`, `skip_no_gain`, `objective`, `binary_loss`, `collate`, `output`,
            `size`, `size_of`, `latency_batch`, `latency_seconds`.

    Before anything is decomposed, the network runs on a few inputs. Layers that the
    outputs do not depend on take no part, with a warning; to find them takes a pass on
    two inputs for each layer, and where one takes more than a second only those that
    are not called are found. At the smallest ranks the outputs of
    a trial have to be those of the copy to keep.

    Returns:
        The problem.

    Raises:
        ValueError: when an argument is invalid; the message states which and why.
        TypeError: when `inputs` is of an unsupported type, or an option unknown.

    Source: Ma et al. 2019, section 3.

    Example:
        >>> network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
        >>> problem = compression_problem(network, torch.randn(100, 30), gamma=0.1)
        >>> sorted(problem.evaluate({"layer_0": 0.2, "layer_2": 1.0}, seed=0))
        ['compression_ratio', 'loss', 'objective']
        >>> problem.ranks({"layer_0": 0.2, "layer_2": 1.0})
        {'0': 1, '2': 'dense'}
    """
    return build_problem(network, inputs, gamma, ProblemOptions(**options))


def build_problem(
    network: nn.Module,
    inputs: Any,
    gamma: float,
    options: ProblemOptions,
) -> CompressionProblem:
    """Set up a problem: `compression_problem` with its options in one value.

    Args:
        network: See `compression_problem`.
        inputs: See `compression_problem`.
        gamma: Weight of the loss.
        options: What is searched.
    """
    require_gamma(gamma)
    loss = LOSSES[options.loss] if isinstance(options.loss, str) else options.loss
    num_samples = options.first_num_samples
    sampler, known, held_out, pool_size = split_inputs(
        inputs,
        options.labels,
        num_samples=num_samples,
        calibrate=options.calibrate,
        seed=options.calibration_seed,
        held_out=options.held_out or 0,
        collate=options.collate,
        output=options.output,
    )
    network = unwrap(network)
    require_searchable(network)
    # By the user's own modules, which `choose` may compare by identity.
    layers = find_layers(
        network,
        choice_of(options.choose),
        include=options.include,
        exclude=options.exclude,
    )
    require_slices(layers)
    network = copy_network(network)
    device = next(network.parameters()).device
    few, many = (
        sampler(n, torch.Generator().manual_seed(0)).inputs.to(device)
        for n in (2, num_samples)
    )
    fresh = copy_network(network)
    channels_last = check_forward(network, few, getattr(loss, "outputs", None))
    require_independent(network, fresh, many[:8])
    del fresh
    layers = layers_in_use(network, layers, few, many)
    if options.skip_no_gain:
        layers = drop_ranks_without_gain(network, layers, few)
    factors = calibrated_factors(
        network,
        layers,
        None if known is None else known.inputs,
        seed=options.calibration_seed,
    )
    batch = batch_of(many, options.latency_batch or num_samples)
    size = measured_size(network, layers, factors, batch, few, options)
    layers, size, worthwhile = worthwhile_ranks(layers, factors, size, options)
    spectra = {
        layer.name: layer.decomposition.singular_values(factors[layer.name])
        for layer in layers
    }
    number = _coordinates(options, len(layers), known is not None)
    on_path = options.encoding == PATH or number is not None
    # What each layer loses is not known before there is a problem.
    tie, encoding = (None, "log") if on_path else (options.tie, options.encoding)
    parameters = rank_parameters(
        layers,
        tie=tie,
        encoding=encoding,
        at_max=options.at_max,
        min_rank=options.min_rank,
        round_to=options.round_to,
        singular_values=spectra,
        options=worthwhile,
    )
    binary = options.binary_loss
    if binary is None and loss is disagreement:
        # Of many positions it is a share of these.
        with evaluation_mode(network):
            binary = forward(network, few).ndim == 2
    smallest = layer_ranks({p.name: 0.0 for p in parameters}, parameters)
    require_parity(network, layers, factors, smallest, few)
    problem = CompressionProblem(
        network=network,
        layers=layers,
        parameters=parameters,
        factors=factors,
        sampler=sampler,
        loss=loss,
        gamma=gamma,
        num_samples=num_samples,
        objective=options.objective,
        binary_loss=binary,
        channels_last=channels_last,
        calibration=known,
        held_out=held_out,
        pool_size=pool_size,
        size=size,
        encoding=encoding,
    )
    if isinstance(loss, RelativeSquaredL2) and loss.scale is None:
        problem = _with_scale(problem, loss)
    elif loss is disagreement and options.binary_loss is None:
        outputs = problem.batch_of(0).reference_outputs
        # Of one prediction an input, not the share of many.
        single = outputs is not None and outputs.ndim == 2
        problem = replace(problem, binary_loss=single)
    if on_path:
        tie = options.tie if number is None else even_groups(problem, number)
        parameters = path_parameters(problem, tie)
        problem = replace(problem, parameters=parameters, encoding=PATH)
    return problem


def _coordinates(options: ProblemOptions, layers: int, calibrated: bool) -> int | None:
    """Return how many coordinates layers share along the path, None if they do not.

    With one each, a certificate takes three times as many evaluations for eight layers
    and more for sixteen, and the network is no better (docs/benchmarks/data_aware.md).
    Without calibration inputs the search is the paper's.
    """
    shared = options.is_shared_by_default and calibrated and layers > FEW_COORDINATES
    return FEW_COORDINATES if shared else options.coordinates


def _with_scale(
    problem: CompressionProblem, loss: RelativeSquaredL2
) -> CompressionProblem:
    """Measure the size of the reference outputs, on batches of a trial's size."""
    seeds = range(-(-_SCALE_SAMPLES // problem.num_samples))
    outputs = [problem.batch_of(seed).reference_outputs for seed in seeds]
    known = [rows for rows in outputs if rows is not None]
    return replace(problem, loss=loss.measured(torch.cat(known)))
