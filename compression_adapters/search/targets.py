"""Targets in place of gamma, a size or a loss, found by a search over gamma."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import nn

from ax_pac.ax_internals import experiment_of
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.evaluation.quality import QualityTest, expected_to_pass
from compression_adapters.options import (
    AUTO,
    TARGETS,
    CompressionOptions,
    SearchOptions,
    read_ratio,
)
from compression_adapters.search.auto import search_auto
from compression_adapters.search.client import new_client, reweighted_client
from compression_adapters.search.dry_run import carrying, checked_problem
from compression_adapters.search.first_gamma import gamma_for, gamma_for_ratio
from compression_adapters.search.quality_target import (
    best_of_results,
    choosing_seeds,
    quality_test,
    stated,
)
from compression_adapters.search.result import CompressionResult, summed, timed
from compression_adapters.search.run import finished, search_problem
from compression_adapters.search.sample_size import most_samples
from compression_adapters.search.settle import (
    CLOSE,
    least_losses_within,
    nearest,
    replaced_network,
)
from compression_adapters.search.time_limit import TimeLimit

_FIRST_STEP = 1.5
"""Factor between the first two gammas; its square between the next two, and so on."""


def compress_to(
    network: nn.Module,
    inputs: Any,
    *,
    ratio: float | str | None = None,
    loss_at_most: float | None = None,
    max_gammas: int = 6,
    tolerance: float = 0.02,
    **options: Any,
) -> CompressionResult:
    """Find the best network of a size, or the smallest one with a given loss.

    Both are constrained problems, whose multiplier is gamma: the larger it is, the more
    weights are kept and the smaller is the loss. Gamma is bracketed and then bisected
    geometrically. Every evaluation serves all gammas: loss and ratio are stored
    separately, and the results so far are weighted with a new gamma before it asks for
    further evaluations.

    No gamma meets a target exactly if it lies between two corners of the lower convex
    hull of loss and ratio. For a loss the result is then the nearest corner that meets
    it. For a ratio it is the network of at most that size that loses the least, of
    those of the price path, the incumbents and the best that were evaluated, each made
    as large as the ratio allows and compared on the same fresh samples; its
    `beside_incumbent` says by how much its objective is above the incumbent's, which
    the certificate is of.

    Args:
        network: See `compress`.
        inputs: See `compress`.
        ratio: The largest compression ratio, of the size that is counted (`size`,
            `size_of`), as a number in (0, 1) or as text such as `"30%"`.
        loss_at_most: The largest loss, in its own unit. Pass one of the two.
        max_gammas: Largest number of searches.
        tolerance: Stop when the ratio is this close below its target, or within 7 % of
            it.
        **options: Keywords of `compress`, except gamma and client.
            `num_samples="auto"` is decided in the first search, for all: if that is
            certified before, all draw 50. With `db` the searches are called `name/1`
            for the first gamma, and so on.

    Returns:
        The search that meets the target best. Its `gammas` has one row per search, and
        its `timings` are those of all of them.

    Raises:
        ValueError: when not exactly one target is given, it is not a valid ratio or
            loss, or no gamma that was tried meets it; the message lists the results.

    Source: Ma et al. 2019, supplementary material (the dual problem). Deviation: a
        bisection with all evaluations shared.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        >>> pool = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
        >>> settings = {"delta": 0.5, "epsilon": 0.05, "level": "pairwise"}
        >>> result = compress_to(network, pool, ratio="60%", max_gammas=2, **settings)
        >>> bool(result.gammas["compression_ratio"].min() <= 0.6)
        True
    """
    if "speedup" in options:
        raise ValueError("speedup is a target of its own: compress(..., speedup=2.0).")
    if "gamma" in options or max_gammas < 1:
        raise ValueError(
            "gamma is what is searched and cannot be given, and max_gammas must be at "
            f"least 1; got gamma={options.get('gamma')}, max_gammas={max_gammas}."
        )
    asked = CompressionOptions.of(ratio=ratio, loss_at_most=loss_at_most, **options)
    if len(asked.target.given) != 1:
        raise ValueError(
            "Expected either ratio or loss_at_most, or another target; got "
            f"{' and '.join(asked.target.given) or 'none'}."
        )
    found = search_target(
        network,
        inputs,
        asked,
        max_gammas=max_gammas,
        tolerance=tolerance,
    )
    return timed(found)


def search_target(
    network: nn.Module,
    inputs: Any,
    options: CompressionOptions,
    *,
    max_gammas: int = 6,
    tolerance: float = 0.02,
    limit: TimeLimit | None = None,
) -> CompressionResult:
    """Search for a target: `compress_to` with its options in one value.

    Args:
        network: See `compress`.
        inputs: See `compress`.
        options: With `ratio` or `loss_at_most` as their target.
        max_gammas: Searches, at most.
        tolerance: See `compress_to`.
        limit: When to end; None: as `minutes` says, from now on.
    """
    if limit is None:
        limit = TimeLimit.of(options.search.minutes, refit=options.search.refit)
    began = time.perf_counter()
    wanted = options.target
    target = None if wanted.ratio is None else read_ratio(wanted.ratio)
    options = options.with_held_out()
    auto = options.problem.num_samples == AUTO
    # Only the network that is kept in the end is worth refitting.
    search = replace(options.search, refit=False)
    problem = checked_problem(network, inputs, 1.0, options.problem)
    factorize_seconds = time.perf_counter() - began
    if target is not None:
        _require_reachable(problem, target)
    test = None
    if wanted.is_quality:
        test = quality_test(problem, options.search, wanted)
    results: list[CompressionResult] = []
    gamma = _first_gamma(problem, options, test)
    low = high = None  # gammas that keep too little, or too much
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, float]] = []
    best: tuple[float, CompressionResult] | None = None
    client = None
    for number in range(1, max_gammas + 1):
        weighted = replace(problem, gamma=gamma)
        known = 0
        if client is not None:
            client = reweighted_client(client, weighted)
            known = len(experiment_of(client).trials)
        if auto and client is None:
            most = most_samples(problem)
            result = search_auto(weighted, search, most=most, limit=limit)
            # One number for all gammas, which share their evaluations.
            problem = result.problem
        else:
            named = replace(search, name=f"{search.name}/{number}")
            result = search_problem(weighted, named, client=client, limit=limit)
        client = result.client
        timings.append(result.timings)
        size, loss = _size(result), result.loss.mean
        results.append(result)
        if target is not None:
            meets = size <= target
        elif test is not None:
            meets = expected_to_pass(
                test.on_trials(result.network, choosing_seeds(problem, search.seed)),
                test.quality,
                test.held_out.count,
                search.epsilon,
            )
        else:
            meets = loss <= (wanted.loss_at_most or 0.0)
        rows.append(
            {
                "gamma": gamma,
                "compression_ratio": size,
                "loss": loss,
                "loss_sem": result.loss.sem,
                "meets_target": meets,
                "certified": result.certificate.holds,
                "evaluations": len(result.trials) - known,
            }
        )
        # For a size the smallest loss is best, for a loss the smallest size.
        value = loss if target is not None else size
        if meets and (best is None or value < best[0]):
            best = (value, result)
        if target is not None and _is_near(size, target, tolerance, problem):
            break
        if not limit.leaves(0.0):
            break
        if meets == (target is not None):
            low = gamma  # may keep more
        else:
            high = gamma
        gamma = _next(low, high, number)
        if target is not None and size > target and low is None:
            # Sizes have steps: as far below the target as the last one was above it.
            path = price_path(problem)
            aim = max(target**2 / size, float(path.table["compression_ratio"].iloc[0]))
            gamma = min(gamma, gamma_for_ratio(path, aim))
    settling = time.perf_counter()
    settled = None
    if target is not None and problem.minimize and limit.leaves(0.0):
        with carrying(results[-1].client):
            settled = _settled(results, search, target)
    if best is None and test is None and settled is None:
        with carrying(client or new_client(problem)):
            raise ValueError(
                "No gamma that was tried meets the target; they reached\n"
                f"{pd.DataFrame(rows).to_string(index=False)}\nAllow more "
                "(max_gammas), or choose another target."
            )
    spent = {
        **summed(timings),
        "factorize": factorize_seconds,
        "settle": time.perf_counter() - settling,
        "total": time.perf_counter() - began,
    }
    if test is not None:
        kept = best_of_results(results, options.search, test, limit)
    elif (ended := settled or (best and best[1])) is not None:
        kept = stated(finished(ended, options.search, limit), options.search, wanted)
    return replace(kept, timings=spent, gammas=pd.DataFrame(rows))


def compress_at(
    network: nn.Module,
    inputs: Any,
    *,
    gammas: Sequence[float],
    **options: Any,
) -> tuple[CompressionResult, ...]:
    """Search at several gammas that share all evaluations.

    This gives the trade-off between size and loss at little more than the cost of one
    search. Loss and ratio are stored separately, so the results so far are weighted
    with each further gamma, and only what its certificate lacks is evaluated. The
    smallest gamma is searched first: its objective varies least and needs the fewest
    evaluations, and each larger one needs a few more (docs/benchmarks/gammas.md).

    Args:
        network: See `compress`.
        inputs: See `compress`.
        gammas: Weights of the loss, positive and different.
        **options: Keywords of `compress`, except a gamma, a target or a client;
            `num_samples` is a number. With `db` the searches are called `name/1` for
            the smallest gamma, and so on.

    Returns:
        One result per gamma, in the given order. Their `trials` include those of the
        smaller gammas; their `timings` are those of the gamma itself.

    Raises:
        ValueError: when gammas are missing or equal, or an option cannot be used.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        >>> pool = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
        >>> settings = {"delta": 0.5, "epsilon": 0.05, "level": "pairwise"}
        >>> large, small = compress_at(network, pool, gammas=(2.0, 0.5), **settings)
        >>> large.problem.gamma, len(large.trials) >= len(small.trials)
        (2.0, True)
    """
    gammas = [float(gamma) for gamma in gammas]
    if not gammas or len(set(gammas)) < len(gammas):
        raise ValueError(
            f"gammas must be at least one weight of the loss, all different; got "
            f"{gammas}."
        )
    refused = [k for k in (*TARGETS, "client") if k in options]
    if refused or options.get("num_samples") == AUTO:
        raise ValueError(
            "With several gammas, gamma, targets and client cannot be given, and "
            "num_samples must be a number; got "
            f"{', '.join(refused) or 'num_samples=' + repr(AUTO)}."
        )
    asked = CompressionOptions.of(**options)
    problem = checked_problem(network, inputs, min(gammas), asked.problem)
    results: dict[float, CompressionResult] = {}
    client = None
    for number, gamma in enumerate(sorted(gammas), 1):
        weighted = replace(problem, gamma=gamma)
        if client is not None:
            client = reweighted_client(client, weighted)
        named = replace(asked.search, name=f"{asked.search.name}/{number}")
        results[gamma] = search_problem(weighted, named, client=client)
        client = results[gamma].client
    return tuple(timed(results[gamma]) for gamma in gammas)


def _is_near(
    size: float, target: float, tolerance: float, problem: CompressionProblem
) -> bool:
    """Whether a search whose network has this size is the last one.

    What is kept in the end is made to fit; of a rate, it is the network itself.
    """
    if problem.minimize and abs(size / target - 1.0) <= CLOSE:
        return True
    return target - tolerance <= size <= target


def _settled(
    results: Sequence[CompressionResult], search: SearchOptions, target: float
) -> CompressionResult:
    """End at the network of the size with the least loss.

    An incumbent balances the loss against the size, and so is smaller than asked for,
    or larger. See `least_losses_within`.
    """
    near = nearest(results, _size, target)
    path = price_path(near.problem)
    points = least_losses_within(path, results, target)
    return replaced_network(near, points[0], search)


def _require_reachable(problem: CompressionProblem, target: float) -> None:
    """Refuse a size below that of the smallest ranks."""
    ranks = problem.ranks({parameter.name: 0.0 for parameter in problem.parameters})
    smallest = problem.ratio(ranks)
    if smallest > target:
        raise ValueError(
            f"ratio is {target:.4g}, and the smallest network, with every layer at "
            f"its smallest rank, has {smallest:.4g} of the {problem.measure.unit}. "
            "Choose a larger target, or another decomposition (choose)."
        )


def _size(result: CompressionResult) -> float:
    """Return a result's compression ratio."""
    return result.problem.ratio(result.ranks)


def _first_gamma(
    problem: CompressionProblem, options: CompressionOptions, test: QualityTest | None
) -> float:
    """Return the gamma at which the price path meets the target."""
    path, wanted, seed = price_path(problem), options.target, options.search.seed
    if wanted.ratio is not None:
        return gamma_for_ratio(path, read_ratio(wanted.ratio))
    if test is None:
        losses, most = path.table["predicted_loss"], wanted.loss_at_most or 0.0
        return gamma_for(path, lambda position: float(losses.iloc[position]) <= most)
    seeds = choosing_seeds(problem, seed)

    def is_expected(position: int) -> bool:
        return expected_to_pass(
            test.of_ranks(path.networks[position], seeds),
            test.quality,
            test.held_out.count,
            options.search.epsilon,
        )

    return gamma_for(path, is_expected)


def _next(low: float | None, high: float | None, number: int) -> float:
    """Return the gamma to try next, after a number of them.

    The first one should be near, so that steps begin small; they grow in case it is
    not.
    """
    if low is not None and high is not None:
        return math.sqrt(low * high)
    step = _FIRST_STEP ** (2.0 ** (number - 1))
    if low is not None:
        return low * step
    if high is not None:
        return high / step
    raise ValueError("No gamma has been tried yet.")
