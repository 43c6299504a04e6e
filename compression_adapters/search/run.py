"""Search a problem until a certificate holds: `compress` without its first half."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ax.api.client import Client

from ax_pac import (
    DEFAULT_LEVEL,
    incumbent_arm,
    pac_generation_strategy,
)
from compression_adapters.evaluation.problem import (
    CompressionProblem,
)
from compression_adapters.network.costs import layer_losses
from compression_adapters.network.counts import layer_table
from compression_adapters.rank_space.parameters import bin_edges
from compression_adapters.search.client import check_same_space, new_client, quiet_ax
from compression_adapters.search.initial_design import (
    Start,
    attach_line,
    begins_on_line,
)
from compression_adapters.search.ray_loop import check_workers, search_loop
from compression_adapters.search.result import (
    CompressionResult,
    warn_if_worse_than_dense,
)
from compression_adapters.search.sample_size import (
    recorded_sample_size,
)
from compression_adapters.search.stored import DEFAULT_NAME, open_search
from compression_adapters.search.trials import fresh_seed, trial_table


def search_problem(
    problem: CompressionProblem,
    *,
    delta: float = 0.05,
    epsilon: float = 0.05,
    level: str = DEFAULT_LEVEL,
    relative: bool = False,
    num_initial_trials: int | None = None,
    sampling: str = "leader_challenger",
    start: Start = "auto",
    max_trials: int = 200,
    seed: int = 0,
    progress: bool | None = None,
    client: Client | None = None,
    db: str | Path | None = None,
    name: str = DEFAULT_NAME,
    workers: int | None = None,
) -> CompressionResult:
    """Search a problem that was set up before: `compress` without its first half.

    Args:
        problem: From `compression_problem`.
        delta: See `compress`, as are all others.
        epsilon: Allowed failure probability.
        level: What the certificate accounts for.
        relative: Whether delta is a share.
        num_initial_trials: Space-filling evaluations first.
        sampling: What to evaluate next.
        start: What to evaluate first.
        max_trials: Evaluations, not counting those the client already has; in a
            database, those of earlier runs count.
        seed: Determines samples and proposals.
        progress: Whether to show a progress bar.
        client: The client of an earlier search of the same objective. With `db`, its
            trials are what a search that begins there starts from.
        db: See `compress`.
        name: Of the search in the database.
        workers: Evaluations at the same time, on Ray.

    Returns:
        The result.

    Raises:
        ValueError: as `compress` does.
        EvaluationError: when three evaluations in a row fail.
    """
    began = time.perf_counter()
    check_workers(problem, workers, db)
    begins_on_line(start, problem, workers)  # refuses what is none before any work
    asked: dict[str, Any] = {
        "delta": delta,
        "epsilon": epsilon,
        "level": level,
        "relative": relative,
        "num_initial_trials": num_initial_trials,
        "sampling": sampling,
        "seed": seed,
    }
    cells = bin_edges(problem.parameters)
    strategy = pac_generation_strategy(
        **asked, num_samples=problem.num_samples, cells=cells
    )
    if max_trials < 2:
        raise ValueError(f"max_trials must be at least 2, got {max_trials}")
    known = None
    if client is not None:
        check_same_space(client, problem)
    if db is not None:
        client, known = open_search(
            problem, strategy, asked, db=db, name=name, start=client
        )
    elif client is None:
        client = new_client(problem)
    with quiet_ax():
        if db is None:
            client.set_generation_strategy(strategy)
        if begins_on_line(start, problem, workers) and not client._experiment.trials:
            attach_line(client, problem, most=max_trials)
            known = 0  # they count as trials of this search
        how: dict[str, Any] = {"seed": seed, "progress": progress, "known": known}
        search = search_loop(problem, client, workers, **how)
        stop_reason = search.run(max_trials)
        certificate = search.certify(delta, epsilon, level, relative)
    if stop_reason == "max_trials" and certificate.holds:
        stop_reason = "certified"
    arm = incumbent_arm(client)
    if arm is None:
        raise RuntimeError("no trial lies at the incumbent; please report this")
    parameterization = {name: float(value) for name, value in arm.parameters.items()}
    ranks = problem.ranks(parameterization)
    timings = search.timings()
    chosen = recorded_sample_size(client)
    if chosen is not None and chosen.num_samples != problem.num_samples:
        chosen = None  # continued with another number, given by the caller
    compressed = problem.compress(parameterization).eval()
    lost = layer_losses(
        problem.network, compressed, problem.layers, problem.factors, ranks
    )
    result = CompressionResult(
        network=compressed,
        parameterization=parameterization,
        ranks=ranks,
        certificate=certificate,
        layers=layer_table(problem.layers, ranks).merge(lost, on="layer"),
        loss=problem.network_loss(compressed, seed=fresh_seed(seed)),
        trials=trial_table(client, problem),
        client=client,
        problem=problem,
        timings={
            "factorize": 0.0,
            **timings,
            "total": time.perf_counter() - began,
        },
        stop_reason=stop_reason,
        seed=seed,
        sample_size=chosen,
    )
    warn_if_worse_than_dense(result)
    return result
