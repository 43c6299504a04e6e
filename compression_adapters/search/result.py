"""The result of a search of a network's ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from ax.api.client import Client
from torch import nn

from ax_pac import PACCertificate
from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.checkpoint import save_compressed
from compression_adapters.network.costs import NetworkCost, compare_costs, measure_cost
from compression_adapters.network.counts import compression_ratio
from compression_adapters.rank_space.scales import DENSE, Rank
from compression_adapters.search.loop import StopReason
from compression_adapters.search.sample_size import SampleSize


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """The result of a search.

    Args:
        network: The compressed network, an independent copy in eval mode.
        parameterization: Its point in the search space: parameter name to unit
            coordinate.
        ranks: Layer name to rank or `"dense"`.
        certificate: The certificate on the last data. `certificate.holds` states
            whether the search is certified, at `certificate.level`.
        layers: One row per layer: rank, weights, ratio (see `layer_table`), energy kept
            and local error (see `layer_losses`).
        loss: Loss of `network` itself, on fresh samples that no trial has used.
        trials: One row per trial: objective, loss and ratio with their SEMs, score of
            the proposal, unit coordinates and ranks.
        client: The Ax client, to inspect or continue the search.
        problem: The problem that was searched.
        timings: Wall seconds: `factorize`, `fit`, `propose`, `evaluate`, `total`.
        stop_reason: `certified`, `max_trials` or `interrupted`.
        seed: The seed of the search.
        sample_size: With `num_samples="auto"`, what was chosen and why.
        gammas: With a target in place of gamma, one row per gamma that was tried:
            `gamma`, `compression_ratio`, `loss` and `loss_sem` on fresh samples,
            `meets_target`, `certified`, and `evaluations`, those that were made for it.
    """

    network: nn.Module = field(repr=False)
    parameterization: dict[str, float]
    ranks: dict[str, Rank]
    certificate: PACCertificate
    layers: pd.DataFrame = field(repr=False)
    loss: MeanSEM
    trials: pd.DataFrame = field(repr=False)
    client: Client = field(repr=False)
    problem: CompressionProblem = field(repr=False)
    timings: dict[str, float]
    stop_reason: StopReason
    seed: int
    sample_size: SampleSize | None = None
    gammas: pd.DataFrame | None = field(default=None, repr=False)

    def measure(
        self, batch_sizes: Sequence[int] = (1, 32), repeats: int = 9
    ) -> pd.DataFrame:
        """Measure weights, multiply-adds, bytes and latency, before and after.

        Warns if the compressed network is not faster.

        Args:
            batch_sizes: Batch sizes of the timed forward passes.
            repeats: Number of timed passes each, of which the median is taken.

        Returns:
            One row per quantity, see `compare_costs`.
        """
        return compare_costs(*self.costs(batch_sizes, repeats))

    def costs(
        self, batch_sizes: Sequence[int] = (1, 32), repeats: int = 9
    ) -> tuple[NetworkCost, NetworkCost]:
        """Measure the reference network and the compressed one, see `measure`."""
        rng = torch.Generator().manual_seed(self.seed)
        example = self.problem.sampler(2, rng).inputs
        names = self.layers["layer"][self.layers["kind"] == "pruning"].tolist()
        before, after = (
            measure_cost(
                network,
                example,
                batch_sizes=batch_sizes,
                repeats=repeats,
                pruned=pruned,
            )
            for network, pruned in ((self.problem.network, []), (self.network, names))
        )
        return before, after

    def save(self, folder: str | Path) -> None:
        """Save the compressed network, see `load_compressed`."""
        save_compressed(self.network, self.problem.layers, self.ranks, folder)


def summed(timings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add up the wall seconds of several searches, part by part.

    Example:
        >>> summed([{"fit": 1.0}, {"fit": 2.0, "propose": 0.5}])
        {'fit': 3.0, 'propose': 0.5}
    """
    total: dict[str, float] = {}
    for one in timings:
        for part, seconds in one.items():
            total[part] = total.get(part, 0.0) + seconds
    return total


def warn_if_worse_than_dense(result: CompressionResult) -> None:
    """Warn if the uncompressed network would have been better.

    A dense network has zero loss and a ratio of 1, so its objective is 1 without an
    evaluation.

    Args:
        result: The result of a search.

    Warns:
        UserWarning: when the objective of the network that was found is above 1 by more
            than the search's delta plus two standard errors.
    """
    problem, loss = result.problem, result.loss
    dense = all(s.at_max == DENSE for p in problem.parameters for s in p.scales)
    if not problem.minimize or not dense:
        return
    ratio = compression_ratio(problem.layers, result.ranks)
    found = problem.gamma * loss.mean + ratio
    if found - 2.0 * problem.gamma * loss.sem > 1.0 + result.certificate.delta:
        warnings.warn(
            "The network that was found is worse than the uncompressed one: "
            f"gamma * loss + ratio is {found:.3g}, and 1 without compression. Search "
            "with start='line' (--start line), a smaller gamma, or more trials "
            f"(max_trials); gamma is {problem.gamma:g}, the loss {loss.mean:.3g}.",
            stacklevel=3,
        )
