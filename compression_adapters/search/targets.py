"""Targets in a user's words: a size, or a loss; found by a search over gamma."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import nn

from compression_adapters.evaluation.problem import CompressionProblem, build_problem
from compression_adapters.options import AUTO, CompressionOptions, read_ratio
from compression_adapters.search.auto import search_auto
from compression_adapters.search.client import reweighted_client
from compression_adapters.search.result import CompressionResult, summed
from compression_adapters.search.run import search_problem
from compression_adapters.search.sample_size import most_samples
from compression_adapters.search.trials import trial_seed

_FIRST_STEP = 8.0
"""Factor between two gammas until the target lies between them."""


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
    """Find the best network of a size, or the smallest one that is good enough.

    Both are constrained problems, whose multiplier is gamma: the larger it is, the more
    weights are kept and the less is lost. Gamma is bracketed and then halved
    geometrically. Every evaluation serves all gammas: loss and ratio are stored apart,
    and a new gamma weighs them anew before it asks for more.

    A target between two corners of the lower convex hull of loss and ratio cannot be
    met exactly by any gamma; the result is the nearest corner that meets it.

    Args:
        network: See `compress`.
        inputs: See `compress`.
        ratio: The largest compression ratio, over the layers in play, as a number in
            (0, 1) or as text such as `"30%"`.
        loss_at_most: The largest loss, in its own unit. One of the two is given.
        max_gammas: Searches, at most.
        tolerance: Stop when the ratio is this close below its target.
        **options: Keywords of `compress`, except gamma and client.
            `num_samples="auto"` is decided in the first search, for all: if that is
            certified before, all draw 50. With `db` the searches are called `name/1`
            for the first gamma, and so on.

    Returns:
        The search that meets the target best. Its `gammas` has one row per search, and
        its `timings` are those of all of them.

    Raises:
        ValueError: when not exactly one target is given, it cannot be a ratio or a
            loss, or no gamma that was tried meets it; the message says what was met.

    Source: Ma et al. 2019, supplementary material (the dual problem). Deviation: a
        bisection with all evaluations shared.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        >>> pool = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
        >>> settings = {"delta": 0.5, "epsilon": 0.05, "max_gammas": 2}
        >>> result = compress_to(network, pool, ratio="60%", **settings)
        >>> bool(result.gammas["compression_ratio"].min() <= 0.6)
        True
    """
    if "gamma" in options or max_gammas < 1:
        raise ValueError(
            "gamma is what is searched and cannot be given, and max_gammas must be at "
            f"least 1; got gamma={options.get('gamma')}, max_gammas={max_gammas}."
        )
    if (ratio is None) == (loss_at_most is None):
        raise ValueError("Expected either ratio or loss_at_most; got both or none.")
    return search_target(
        network,
        inputs,
        CompressionOptions.of(ratio=ratio, loss_at_most=loss_at_most, **options),
        max_gammas=max_gammas,
        tolerance=tolerance,
    )


def search_target(
    network: nn.Module,
    inputs: Any,
    options: CompressionOptions,
    *,
    max_gammas: int = 6,
    tolerance: float = 0.02,
) -> CompressionResult:
    """Search for a target: `compress_to` with its options in one value.

    Args:
        network: See `compress`.
        inputs: See `compress`.
        options: With `ratio` or `loss_at_most` as their target.
        max_gammas: Searches, at most.
        tolerance: Stop when the ratio is this close below its target.
    """
    began = time.perf_counter()
    wanted = options.target
    target = None if wanted.ratio is None else read_ratio(wanted.ratio)
    search, auto = options.search, options.problem.num_samples == AUTO
    problem = build_problem(network, inputs, 1.0, options.problem)
    factorize_seconds = time.perf_counter() - began
    gamma = 1.0 / _largest_loss(problem, search.seed)
    low = high = None  # gammas that keep too little, and too much
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, float]] = []
    best: tuple[float, CompressionResult] | None = None
    client = None
    for number in range(1, max_gammas + 1):
        weighted = replace(problem, gamma=gamma)
        known = 0
        if client is not None:
            client = reweighted_client(client, weighted)
            known = len(client._experiment.trials)
        if auto and client is None:
            most = most_samples(inputs, problem)
            result = search_auto(weighted, search, most=most)
            # One number for all gammas, which share their evaluations.
            problem = result.problem
        else:
            named = replace(search, name=f"{search.name}/{number}")
            result = search_problem(weighted, named, client=client)
        client = result.client
        timings.append(result.timings)
        size, loss = _size(result), result.loss.mean
        if target is not None:
            meets = size <= target
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
        # With a size the least loss is best, with a loss the least size.
        value = loss if target is not None else size
        if meets and (best is None or value < best[0]):
            best = (value, result)
        if meets and target is not None and size >= target - tolerance:
            break
        if meets == (target is not None):
            low = gamma  # may keep more
        else:
            high = gamma
        gamma = _next(low, high)
    if best is None:
        raise ValueError(
            "No gamma that was tried meets the target; they reached\n"
            f"{pd.DataFrame(rows).to_string(index=False)}\nAllow more (max_gammas), or "
            "choose another target."
        )
    spent = {
        **summed(timings),
        "factorize": factorize_seconds,
        "total": time.perf_counter() - began,
    }
    return replace(best[1], timings=spent, gammas=pd.DataFrame(rows))


def compress_at(
    network: nn.Module,
    inputs: Any,
    *,
    gammas: Sequence[float],
    **options: Any,
) -> tuple[CompressionResult, ...]:
    """Search at several gammas, each evaluation serving all of them.

    The trade-off between size and loss, for little more than one search: loss and ratio
    are stored apart, so that another gamma weighs anew what the ones before have
    measured, and evaluates only what its own certificate lacks. The smallest gamma is
    searched first: its objective varies least, so that it needs the fewest evaluations,
    and of the larger ones each needs a few more (docs/benchmarks/gammas.md).

    Args:
        network: See `compress`.
        inputs: See `compress`.
        gammas: Weights of the loss, positive and different.
        **options: Keywords of `compress`, except a gamma, a target or a client;
            `num_samples` is a number. With `db` the searches are called `name/1` for
            the smallest gamma, and so on.

    Returns:
        One result a gamma, in the order that was given. Their `trials` hold those of
        the smaller gammas too; `timings` are of the gamma's own.

    Raises:
        ValueError: when gammas are missing or equal, or an option cannot be used.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        >>> pool = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
        >>> settings = {"delta": 0.5, "epsilon": 0.05}
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
    refused = [k for k in ("gamma", "ratio", "loss_at_most", "client") if k in options]
    if refused or options.get("num_samples") == AUTO:
        raise ValueError(
            "With several gammas there is no gamma, target or client to give, and "
            "num_samples is a number; got "
            f"{', '.join(refused) or 'num_samples=' + repr(AUTO)}."
        )
    asked = CompressionOptions.of(**options)
    problem = build_problem(network, inputs, min(gammas), asked.problem)
    results: dict[float, CompressionResult] = {}
    client = None
    for number, gamma in enumerate(sorted(gammas), 1):
        weighted = replace(problem, gamma=gamma)
        if client is not None:
            client = reweighted_client(client, weighted)
        named = replace(asked.search, name=f"{asked.search.name}/{number}")
        results[gamma] = search_problem(weighted, named, client=client)
        client = results[gamma].client
    return tuple(results[gamma] for gamma in gammas)


def _size(result: CompressionResult) -> float:
    """Return a result's compression ratio."""
    return float(result.layers["weights"].sum() / result.layers["weights_before"].sum())


def _next(low: float | None, high: float | None) -> float:
    """Return the gamma to try next."""
    if low is not None and high is not None:
        return math.sqrt(low * high)
    if low is not None:
        return low * _FIRST_STEP
    if high is not None:
        return high / _FIRST_STEP
    raise ValueError("No gamma has been tried yet.")


def _largest_loss(problem: CompressionProblem, seed: int) -> float:
    """Return the loss where every layer has its smallest rank: what gamma scales."""
    point = {parameter.name: 0.0 for parameter in problem.parameters}
    loss = problem.evaluate(point, seed=trial_seed(seed, 2**31))["loss"].mean
    if loss <= 0.0:
        raise ValueError(
            "The loss is zero even where every layer has its smallest rank, so that "
            "any size will do; compress by giving ranks to truncate_network."
        )
    return loss
