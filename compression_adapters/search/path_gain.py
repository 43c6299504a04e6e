"""What a search added to the best network of the price path."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

from compression_adapters.evaluation.estimates import MeanSEM, mean_and_sem
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.rank_space.scales import Rank
from compression_adapters.search.trials import fresh_seed

_BATCHES = 4


def gain_over_path(
    problem: CompressionProblem,
    trials: pd.DataFrame,
    found: Mapping[str, Rank],
    seed: int,
) -> MeanSEM | None:
    """Return by how much a search improved on the best network of the path it tried.

    Both networks are evaluated on the same fresh samples, four times those of a trial,
    so that the difference is known better than either objective.

    Args:
        problem: What was searched.
        trials: The trials of the search, from `trial_table`.
        found: Ranks of the network that it found.
        seed: Of the search; the fresh samples are not those of its trials.

    Returns:
        Positive where the search's network is better; exactly zero where it is the
        same one. Unit: objective units. None if no network of the path was evaluated.
    """
    path = price_path(problem)
    names = [layer.name for layer in problem.layers]
    best: dict[str, Rank] | None = None
    least = 0.0
    for row in trials[trials["status"] == "COMPLETED"].to_dict("records"):
        ranks = {name: row[f"rank_{name}"] for name in names}
        value = float(row["objective"]) * (1.0 if problem.minimize else -1.0)
        better = best is None or value < least
        if better and path.position_of(ranks) is not None:
            best, least = ranks, value
    if best is None:
        return None
    if best == dict(found):
        return MeanSEM(0.0, 0.0)
    before, after = (_objectives(problem, ranks, seed) for ranks in (best, found))
    return mean_and_sem(before - after if problem.minimize else after - before)


def _objectives(
    problem: CompressionProblem, ranks: Mapping[str, Rank], seed: int
) -> torch.Tensor:
    """Return the objective of each of the fresh samples."""
    losses = torch.cat(
        [
            problem.sample_losses(ranks, seed=fresh_seed(seed, number + 1))
            for number in range(_BATCHES)
        ]
    ).double()
    ratio = problem.ratio(ranks)
    if problem.minimize:
        return problem.gamma * losses + ratio
    return 1.0 / ratio - problem.gamma * losses
