"""The result of a search of a network's ranks."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from ax.api.client import Client
from torch import nn

from ax_pac import PACCertificate
from compression_adapters.evaluation.estimates import MeanSEM, apply_sem_floor
from compression_adapters.evaluation.finishing import FinishRecord
from compression_adapters.evaluation.losses import RelativeSquaredL2, is_nonnegative
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.evaluation.quality import QualityStatement
from compression_adapters.network.checkpoint import save_compressed
from compression_adapters.network.costs import NetworkCost, compare_costs, measure_cost
from compression_adapters.network.counts import whole_network_ratio
from compression_adapters.network.latency import (
    LatencyComparison,
    batch_of,
    compare_latency,
)
from compression_adapters.network.truncation import copy_of_trial
from compression_adapters.rank_space.scales import DENSE, Rank
from compression_adapters.search.loop import StopReason
from compression_adapters.search.path_gain import gain_over_path
from compression_adapters.search.sample_size import SampleSize
from compression_adapters.search.trials import fresh_seed

_EXACT = 1e-4
"""Share of the largest loss of a search below which a difference is none."""


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """The result of a search.

    Args:
        network: The compressed network, an independent copy in eval mode.
        parameterization: Its point in the search space: parameter name to unit
            coordinate.
        ranks: Layer name to rank or `"dense"`.
        certificate: The certificate on the last data. `certificate.holds` states
            whether the search is certified, at `certificate.level`. It is of the
            networks as the trials measured them; what was done to `network` after that
            made it better by what `finish` says.
        layers: One row per layer: rank, weights, ratio (see `layer_table`), `size` and
            `size_before` where the search counted something else than weights, and
            errors as the trials measured it (see `layer_losses`).
        loss: Loss of `network` itself, on fresh samples that no trial has used.
        trials: One row per trial: objective, loss and ratio with their SEMs, score of
            the proposal, unit coordinates and ranks.
        client: The Ax client, to inspect or continue the search.
        problem: The problem that was searched.
        timings: Wall seconds: `factorize`, `fit`, `propose`, `evaluate`, `total`.
        stop_reason: `certified`, `max_trials`, `out_of_time`, `interrupted`, or
            `no_search`.
        seed: The seed of the search.
        sample_size: With `num_samples="auto"`, what was chosen and why.
        gammas: With a target in place of gamma, one row per gamma that was tried:
            `gamma`, `compression_ratio`, `loss` and `loss_sem` on fresh samples,
            `meets_target`, `certified`, and `evaluations`, those that were made for it.
        finish: What was done to the network after the search, see `finish_network`;
            None: nothing was tried.
        statement: What is true of the quality of `network`, on inputs that neither
            calibration nor a trial has drawn; None: none were held out.
        latency: Where the size is a time: that of the whole network, measured before
            and after, beside what was predicted. None else.
        beside_incumbent: Where a target chose another network than the incumbent that
            the certificate is of: by how much its objective is worse, on the same fresh
            samples. Unit: objective units. None where it is the incumbent.
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
    finish: FinishRecord | None = None
    statement: QualityStatement | None = None
    latency: LatencyComparison | None = None
    beside_incumbent: MeanSEM | None = None

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        """Show the three sentences and the layers in a notebook."""
        said = "".join(f"<p>{html.escape(one)}</p>" for one in self.sentences())
        table = self.layers.to_html(index=False, border=0, float_format="{:.4f}".format)
        return f"<div>{said}{table}</div>"

    def sentences(self) -> tuple[str, str, str]:
        """Say how large the network is, how good it is, and what is certified.

        Returns:
            Three sentences for a person.
        """
        problem, loss = self.problem, self.problem.loss
        left = self.layers[["weights", "weights_before"]].sum()
        whole = whole_network_ratio(problem.network, problem.layers, self.ranks)
        layers = f"{len(self.layers)} layers" if len(self.layers) != 1 else "1 layer"
        size = (
            f"{left['weights'] / left['weights_before']:.1%} of the weights of "
            f"{layers} are left, {whole:.1%} of the whole network."
        )
        if problem.measure.name != "weights":
            size = f"{self.size_ratio:.1%} of the {problem.measure.name}; {size}"
        if isinstance(loss, RelativeSquaredL2):
            quality = (
                f"The squared error of the outputs is {self.loss.mean:.2%} of their "
                "squared size"
            )
        else:
            name = getattr(loss, "__name__", type(loss).__name__)
            quality = f"The loss ({name}) is {self.loss.mean:.4g}"
        if self.statement is not None:
            quality = f"It {self.statement.sentence()}"
        return size, f"{quality}.", self._certified()

    def _certified(self) -> str:
        """Say what is certified, or why nothing is."""
        found = self.certificate
        if found.holds:
            than = ""
            if self.beside_incumbent is not None:
                than = (
                    " than the best balance of loss and size that was found, which "
                    "this network is beside by "
                    f"{self.beside_incumbent.mean:+.3g} to meet the target"
                )
            problem, of = self.problem, "choice of ranks"
            if len(problem.parameters) < len(problem.layers):
                number = len(problem.parameters)
                shared = f"{number} coordinates" if number > 1 else "one coordinate"
                of = f"network that {shared} of {len(problem.layers)} layers give"
            return (
                f"Certified: with confidence {1.0 - found.epsilon:.4g}, no {of} "
                f"is better by more than {found.delta:.4g}{than} (level "
                f"{found.level}, {len(self.trials)} evaluations)."
            )
        if self.stop_reason == "no_search":
            return "Not certified: it was taken from the price path, without a search."
        why = {
            "max_trials": "the search used all its evaluations (max_trials)",
            "out_of_time": "the time was over (minutes)",
            "interrupted": "the search was interrupted",
        }.get(self.stop_reason, "the certificate does not hold")
        return f"Not certified: {why}. So far: {found.reason}."

    def fresh_loss(self, network: nn.Module) -> MeanSEM:
        """Measure a network's loss on fresh samples that no trial has used."""
        return self.problem.network_loss(network, seed=fresh_seed(self.seed))

    @property
    def size_ratio(self) -> float:
        """Size after / before, as the search counted it. Dimensionless."""
        return self.problem.ratio(self.ranks)

    def gain_over_path(self) -> MeanSEM | None:
        """Measure what the search added to the best network of the price path.

        Both are evaluated on the same 200 fresh samples, as trials are.

        Returns:
            By how much the objective is better than that of the best network of the
            path that was evaluated; exactly zero if it is the same. Unit: objective
            units. None if none was evaluated.
        """
        return gain_over_path(self.problem, self.trials, self.ranks, self.seed)

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


def timed(result: CompressionResult, *, seconds: float = 10.0) -> CompressionResult:
    """Measure the whole network before and after, where the size is a time.

    Args:
        result: Of a search; its network is the one to keep.
        seconds: Budget.

    Returns:
        The same with `latency`; unchanged where the size is no time.

    Warns:
        UserWarning: when prediction and measurement differ by more than a tenth, with
            the likely reason.
    """
    if result.problem.measure.table is None:
        return result
    found = measured_time(result.problem, result.network, result.ranks, seconds=seconds)
    if found.disagreement is not None:
        warnings.warn(found.disagreement, stacklevel=3)
    return replace(result, latency=found)


def measured_time(
    problem: CompressionProblem,
    network: nn.Module,
    ranks: Mapping[str, Rank],
    *,
    seconds: float = 10.0,
) -> LatencyComparison:
    """Measure a network against the original, on the batch of the table of times.

    Args:
        problem: With a table of times.
        network: The compressed network.
        ranks: Its ranks.
        seconds: Budget.

    Raises:
        ValueError: when the problem has no table.
    """
    size = problem.measure
    if size.table is None:
        raise ValueError("Times are predicted only with size='latency' or a table.")
    rng = torch.Generator().manual_seed(0)
    example = problem.sampler(problem.num_samples, rng).inputs
    whole = size if size.size_of == "network" else replace(size, size_of="network")
    return compare_latency(
        problem.network,
        network,
        batch_of(example, size.table.machine.batch),
        seconds=seconds,
        predicted=whole.ratio(ranks),
        table=size.table,
    )


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


class UnmeasuredNetworkError(RuntimeError):
    """The network of a result does not lose what its search measured.

    Args:
        message: The error message.
        client: The client, with all trials.
        network: The network that would have been returned.
    """

    def __init__(self, message: str, client: Client, network: nn.Module) -> None:
        super().__init__(message)
        self.client = client
        self.network = network


def require_measured(result: CompressionResult) -> None:
    """Refuse a result whose network is not the one that was measured.

    Its loss on fresh samples is compared with the mean of the trials with its ranks.
    They may differ by five standard errors of the two together, more for few samples:

        t = sqrt(v (exp(z^2 / v) - 1)),  z = 5, v = num_samples - 1

    is Student's quantile with the tail of z, up to its second digit. A decomposition
    whose `finalize` is better than the slice of a trial may lose less.

    Args:
        result: Before it is returned.

    Raises:
        UnmeasuredNetworkError: when they differ by more.
    """
    problem, table = result.problem, result.trials
    same = table["status"] == "COMPLETED"
    for name, rank in result.ranks.items():
        same &= table[f"rank_{name}"] == rank
    means, sems = (table.loc[same, name].to_numpy() for name in ("loss", "loss_sem"))
    if not len(means):
        return  # the trials with these ranks are of another number of samples
    measured = MeanSEM(float(means.mean()), float((sems**2).sum()) ** 0.5 / len(means))
    largest = float(table["loss"].abs().max())
    freedom = problem.num_samples - 1
    width = math.sqrt(freedom * math.expm1(min(25.0 / freedom, 700.0)))

    def gap(loss: MeanSEM) -> float:
        """Return how far a loss lies outside, negative below."""
        floored = apply_sem_floor(
            loss,
            num_samples=problem.num_samples,
            binary=bool(problem.binary_loss),
            earlier=[measured],
        )
        allowed = width * math.hypot(floored.sem, measured.sem) + _EXACT * largest
        difference = loss.mean - measured.mean
        return math.copysign(max(0.0, abs(difference) - allowed), difference)

    outside = gap(result.loss)
    if outside < 0:
        # Better than its slice, which then is what was measured and has its structure.
        slices = copy_of_trial(
            problem.network, problem.factors, problem.layers, result.ranks
        )
        if _structure(slices) == _structure(result.network):
            seed = fresh_seed(result.seed)
            outside = gap(problem.network_loss(slices, seed=seed))
    if outside:
        raise UnmeasuredNetworkError(
            f"The network at the ranks {result.ranks} loses {result.loss.mean:.4g} "
            f"(standard error {result.loss.sem:.2g}) on fresh samples; the search "
            f"measured {measured.mean:.4g} ({measured.sem:.2g}) there, in "
            f"{len(means)} trials. The certificate would be of another network. Have "
            "the inputs or the network changed during the search, or since an earlier "
            "one that it continues? Do outputs depend on the batch or on a state? "
            "`client` and `network` of this error hold the search and the network.",
            result.client,
            result.network,
        )


def _structure(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all parameters, by name."""
    return {name: p.shape for name, p in network.named_parameters()}


def warn_if_worse_than_dense(result: CompressionResult) -> None:
    """Warn if the uncompressed network would have been better.

    A dense network has a ratio of 1, and no loss unless labels or a loss of the user's
    own say so, which is measured on the same fresh samples.

    Args:
        result: The result of a search.

    Warns:
        UserWarning: when the objective of the network that was found is above that of
            the dense one by more than the search's delta plus two standard errors.
    """
    problem, loss = result.problem, result.loss
    dense = all(s.at_max == DENSE for p in problem.parameters for s in p.scales)
    if not problem.minimize or not dense:
        return
    ratio = problem.ratio(result.ranks)
    found = problem.gamma * loss.mean + ratio
    surely = found - 2.0 * problem.gamma * loss.sem - result.certificate.delta
    if surely <= 1.0 and is_nonnegative(problem.loss):
        return  # the dense network is no better than its ratio
    lost = problem.network_loss(problem.network, seed=fresh_seed(result.seed))
    uncompressed = 1.0 + problem.gamma * lost.mean
    if surely > uncompressed:
        warnings.warn(
            "The network that was found is worse than the uncompressed one: gamma * "
            f"loss + ratio is {found:.3g}, and {uncompressed:.3g} without. Search "
            "with start='line' (--start line), a smaller gamma, or more trials "
            f"(max_trials); gamma is {problem.gamma:g}, the loss {loss.mean:.3g}.",
            stacklevel=3,
        )
