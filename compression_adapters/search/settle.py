"""The network of a size that loses the least, of all that a search knows of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from compression_adapters.evaluation.estimates import mean_and_sem
from compression_adapters.evaluation.price_path import PricePath
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.rank_space.parameters import parameterization_from_ranks
from compression_adapters.rank_space.scales import Rank
from compression_adapters.search.result import CompressionResult
from compression_adapters.search.run import make_result
from compression_adapters.search.trials import fresh_seed

_TRIALS: Final = 8
"""Evaluated networks that are moved to the size that is wanted."""

_BATCHES: Final = 8
"""Batches of a trial's size, the same for all networks that are compared."""

_FIRST_SEED: Final = 1000
"""Of fresh samples that nothing else uses."""

CLOSE: Final = 0.07
"""A search whose network is this close to the size asked for is the last one."""

Measured = dict[tuple[tuple[str, Rank], ...], float]
"""Losses of networks, by their ranks."""


def nearest(
    results: Sequence[CompressionResult],
    size: Callable[[CompressionResult], float],
    wanted: float,
) -> CompressionResult:
    """Return the search whose network is nearest to a size, a certified one if any.

    Args:
        results: Searches for one target.
        size: What is asked for, of a result.
        wanted: What it should be.
    """
    return min(
        results,
        key=lambda r: (not r.certificate.holds, abs(math.log(size(r) / wanted))),
    )


def least_losses_within(
    path: PricePath,
    results: Sequence[CompressionResult],
    ratio: float,
    measured: Measured | None = None,
) -> list[dict[str, float]]:
    """Return the networks of a size, from the one that loses the least.

    Candidates are the network of the price path, and the incumbents and evaluated
    networks whose objective is least, each made as large as the ratio allows
    (`PricePath.moved`). All are evaluated on the same fresh samples, eight times those
    of a trial.

    Args:
        path: The price path of the problem.
        results: Searches of the problem that share their trials.
        ratio: The largest compression ratio.
        measured: Losses of networks that were compared before, and of these after.

    Returns:
        Their points in the search space.

    Raises:
        ValueError: when the smallest network is larger.
    """
    problem = path.problem
    known = [dict(path.networks[path.at_ratio(ratio)])]
    seed = results[-1].seed
    known += [dict(result.ranks) for result in results]
    table = results[-1].trials
    done = table[table["status"] == "COMPLETED"]
    objective = problem.gamma * done["loss"] + done["compression_ratio"]
    names = [layer.name for layer in problem.layers]
    for place in objective.sort_values().index[:_TRIALS]:
        known.append({name: done.loc[place, f"rank_{name}"] for name in names})
    moved: list[dict[str, Rank]] = []
    for ranks in known:
        fitting = path.moved(ranks, ratio)
        if fitting not in moved:
            moved.append(fitting)
    seen = {} if measured is None else measured
    keys = [tuple(ranks.items()) for ranks in moved]
    for ranks, key in zip(moved, keys, strict=True):
        if key not in seen:
            seen[key] = float(_losses(problem, ranks, seed).mean())
    order = sorted(range(len(moved)), key=[seen[key] for key in keys].__getitem__)
    return [
        parameterization_from_ranks(moved[place], problem.parameters) for place in order
    ]


def replaced_network(
    result: CompressionResult, point: dict[str, float], options: SearchOptions
) -> CompressionResult:
    """Put another network into the result of a search.

    Args:
        result: Of the search.
        point: The network's point in the search space.
        options: Of the search.

    Returns:
        The result with that network. Its certificate remains the one of the incumbent;
        `beside_incumbent` says by how much the network's objective is worse.
    """
    problem = result.problem
    if problem.ranks(point) == result.ranks:
        return result
    other = make_result(
        problem,
        result.client,
        options,
        result.certificate,
        result.stop_reason,
        point,
    )
    ours, theirs = (
        problem.gamma * _losses(problem, ranks, result.seed) + problem.ratio(ranks)
        for ranks in (other.ranks, result.ranks)
    )
    return replace(other, beside_incumbent=mean_and_sem(ours - theirs))


def _losses(
    problem: CompressionProblem, ranks: Mapping[str, Rank], seed: int
) -> Tensor:
    """Return the losses of a network on the samples that networks are compared on."""
    return torch.cat(
        [
            problem.sample_losses(ranks, seed=fresh_seed(seed, _FIRST_SEED + batch))
            for batch in range(_BATCHES)
        ]
    ).double()
