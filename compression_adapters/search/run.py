"""Search a problem until a certificate holds: the second half of `compress`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pandas as pd
import torch
from ax.api.client import Client
from ax.generation_strategy.generation_strategy import GenerationStrategy
from torch import nn

from ax_pac import PACCertificate, incumbent_arm, pac_generation_strategy
from ax_pac.ax_internals import experiment_of
from compression_adapters.evaluation.finishing import FinishRecord, finish_network
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.costs import layer_losses
from compression_adapters.network.counts import layer_table
from compression_adapters.options import SearchOptions
from compression_adapters.rank_space.parameters import bin_edges
from compression_adapters.rank_space.scales import Rank
from compression_adapters.search.client import check_same_problem, new_client, quiet_ax
from compression_adapters.search.dry_run import carrying
from compression_adapters.search.initial_design import attach_first_points
from compression_adapters.search.known_part import known_part
from compression_adapters.search.loop import StopReason
from compression_adapters.search.ray_loop import check_workers, search_loop
from compression_adapters.search.result import (
    CompressionResult,
    require_measured,
    warn_if_worse_than_dense,
)
from compression_adapters.search.sample_size import recorded_sample_size
from compression_adapters.search.stored import open_search, released
from compression_adapters.search.time_limit import NO_LIMIT, TimeLimit
from compression_adapters.search.trials import fresh_seed, trial_table

_ERROR_SAMPLES: Final = 200
"""Fresh inputs that the errors of layers' outputs are measured on."""


def search_problem(
    problem: CompressionProblem,
    options: SearchOptions,
    *,
    client: Client | None = None,
    limit: TimeLimit = NO_LIMIT,
) -> CompressionResult:
    """Search a problem from `compression_problem`: the second half of `compress`.

    Args:
        problem: From `compression_problem`.
        options: How; `max_trials` does not count the trials that the client already
            has; in a database, those of earlier runs count.
        client: The client of an earlier search of the same objective. With `db`, a new
            search starts with its trials.
        limit: When to end.

    Returns:
        The result.

    Raises:
        ValueError: as `compress` does.
        EvaluationError: when three evaluations in a row fail.
        UnmeasuredNetworkError: see `require_measured`.
    """
    began = time.perf_counter()
    check_workers(problem, options)
    strategy = search_strategy(problem, options)
    known = None
    if client is not None:
        check_same_problem(client, problem)
    if options.db is not None:
        client, known = open_search(problem, strategy, options, start=client)
    elif client is None:
        client = new_client(problem)
    # The model is fitted by gradients, whatever mode the caller is in.
    with (
        released(client),
        quiet_ax(),
        carrying(client),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        if options.db is None:
            client.set_generation_strategy(strategy)
        if not experiment_of(client).trials and attach_first_points(
            client, problem, options
        ):
            known = 0  # they count as trials of this search
        search = search_loop(problem, client, options, known=known)
        search.limit = limit
        if options.db is None:  # which keeps one strategy for a search
            search.if_flat = lambda: search_strategy(problem, options, with_known=False)
        stop_reason = search.run(options.max_trials)
        certificate = search.certify()
        if stop_reason in ("max_trials", "out_of_time") and certificate.holds:
            stop_reason = "certified"
        result = make_result(problem, client, options, certificate, stop_reason)
        require_measured(result)
        result = finished(result, options, limit)
    timings = {"factorize": 0.0, **search.timings()}
    timings["total"] = time.perf_counter() - began
    result = replace(result, timings=timings)
    warn_if_worse_than_dense(result)
    return result


def _with_size(
    table: pd.DataFrame, problem: CompressionProblem, ranks: Mapping[str, Rank]
) -> pd.DataFrame:
    """Add to a table of layers what each costs, where that is not its weights."""
    size = problem.measure
    if size.name == "weights":
        return table
    return table.assign(
        size=[size.layers[name].at(ranks[name]) for name in table["layer"]],
        size_before=[size.layers[name].dense for name in table["layer"]],
    )


def finished(
    result: CompressionResult, options: SearchOptions, limit: TimeLimit = NO_LIMIT
) -> CompressionResult:
    """Refit the network that is kept, once it is known to be the one that was measured.

    Args:
        result: Before.
        options: `refit` says whether.
        limit: When to end; a network that is not refitted by then stays as it is.
    """
    if not options.refit:
        return result
    network, record = finished_network(
        result.problem, result.network, result.ranks, options, limit
    )
    if network is result.network:
        return replace(result, finish=record)
    loss = result.fresh_loss(network)
    return replace(result, network=network, loss=loss, finish=record)


def finished_network(
    problem: CompressionProblem,
    network: nn.Module,
    ranks: Mapping[str, Rank],
    options: SearchOptions,
    limit: TimeLimit = NO_LIMIT,
) -> tuple[nn.Module, FinishRecord | None]:
    """Finish a network, or return it as it is where that fails or is not asked for.

    Args:
        problem: What was searched.
        network: As the search measured it.
        ranks: Layer name to rank or `"dense"`.
        options: `refit` says whether.
        limit: When to end.

    Returns:
        The network to keep, and what was tried; None: nothing.
    """
    if not options.refit:
        return network, None
    try:
        return finish_network(
            problem,
            network,
            ranks,
            seed=options.seed,
            progress=options.progress,
            is_over=limit.is_over,
        )
    except KeyboardInterrupt:
        return network, None  # as the search measured it
    except Exception as error:  # whatever the network raises, or too little memory
        warnings.warn(
            f"The network was not refitted: {type(error).__name__}: {error}. It is the "
            "one that the search measured; refit=False does not try.",
            stacklevel=2,
        )
        return network, None


def search_strategy(
    problem: CompressionProblem, options: SearchOptions, *, with_known: bool = True
) -> GenerationStrategy:
    """Return the generation strategy of a search.

    Args:
        problem: What is searched.
        options: How.
        with_known: Whether it models the loss alone, beside the known part.
    """
    return pac_generation_strategy(
        delta=options.delta,
        epsilon=options.epsilon,
        level=options.level,
        relative=options.relative,
        num_initial_trials=options.num_initial_trials,
        sampling=options.sampling,
        seed=options.seed,
        num_samples=problem.num_samples,
        cells=bin_edges(problem.parameters),
        known=known_part(problem) if with_known else None,
    )


def make_result(
    problem: CompressionProblem,
    client: Client,
    options: SearchOptions,
    certificate: PACCertificate,
    stop_reason: StopReason,
    parameterization: dict[str, float] | None = None,
) -> CompressionResult:
    """Build a network and measure it.

    Args:
        problem: What was searched.
        client: With the trials.
        options: How it was searched.
        certificate: On the last data.
        stop_reason: Why it ended.
        parameterization: The network's point; None: the incumbent's.
    """
    if parameterization is None:
        arm = incumbent_arm(client)
        if arm is None:
            raise RuntimeError("there is no trial at the incumbent; please report this")
        point = arm.parameters
        parameterization = {name: float(value) for name, value in point.items()}
    ranks = problem.ranks(parameterization)
    chosen = recorded_sample_size(client)
    if chosen is not None and chosen.num_samples != problem.num_samples:
        chosen = None  # continued with another number from the caller
    compressed = problem.compress(parameterization).eval()
    rng = torch.Generator().manual_seed(fresh_seed(options.seed))
    lost = layer_losses(
        *(problem.network, compressed, problem.layers, problem.factors, ranks),
        inputs=problem.sampler(_ERROR_SAMPLES, rng).inputs,
    )
    return CompressionResult(
        network=compressed,
        parameterization=parameterization,
        ranks=ranks,
        certificate=certificate,
        layers=_with_size(layer_table(problem.layers, ranks), problem, ranks).merge(
            lost, on="layer"
        ),
        loss=problem.network_loss(compressed, seed=fresh_seed(options.seed)),
        trials=trial_table(client, problem),
        client=client,
        problem=problem,
        timings={},
        stop_reason=stop_reason,
        seed=options.seed,
        sample_size=chosen,
    )
