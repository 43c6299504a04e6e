"""Quality in words: agreement, a drop in accuracy, a loss, with what is surely true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

import torch
from scipy.stats import norm
from torch import Tensor, nn

from compression_adapters.evaluation.bounds import (
    drop_at_most,
    fewest_for_share,
    mean_at_least,
    mean_at_most,
    share_at_least,
)
from compression_adapters.evaluation.losses import agreement_of, correctness_of
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.evaluation.sampling import Batch
from compression_adapters.network.modes import evaluation_mode, forward
from compression_adapters.rank_space.scales import Rank

QuantityName = Literal["agreement", "accuracy_drop", "loss", "cosine"]

CHOOSE: Final = 1000
"""Fresh samples of trials that a network is chosen by before it is tested."""

_MOST_KEPT: Final = 2**28
"""Bytes of reference outputs on held-out inputs that are kept."""


@dataclass(frozen=True)
class QualityStatement:
    """What is true of a network, on inputs that had no part in its making.

    Args:
        quantity: `"agreement"`: probability that the largest output is the one that the
            original network has; of outputs with many positions, the expected share of
            these. `"accuracy_drop"`: probability of being right, before less after.
            `"loss"`: expected loss, in its own unit. `"cosine"`: expected cosine of the
            angle between outputs.
        estimate: On the held-out inputs.
        bound: The true value is at least this (agreement, cosine) or at most this (the
            others), with the confidence.
        confidence: Probability that such a statement is true, over the draw of the
            held-out inputs. For a loss, whose values have no known range, it is
            approximate.
        count: Held-out inputs.
        target: What was asked for; None: nothing.
        tested: Networks that were tested on these inputs, this one included; the
            confidence is of all these tests together, see `largest_first`.
    """

    quantity: QuantityName
    estimate: float
    bound: float
    confidence: float
    count: int
    target: float | None = None
    tested: int = 1

    @property
    def holds(self) -> bool:
        """Whether the target is met, with the confidence; False without a target."""
        if self.target is None:
            return False
        if self.quantity in ("agreement", "cosine"):
            return self.bound >= self.target
        return self.bound <= self.target

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values, with its sentence."""
        return asdict(self) | {"holds": self.holds, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Say what is true.

        Example:
            >>> QualityStatement("agreement", 0.99, 0.985, 0.95, 2000, 0.98).sentence()
            'agrees with the original on 99.00 % of 2000 held-out inputs; on at least \
98.50 % of all, with confidence 95 %: the target of 98.00 % is met'
        """
        percent = self.quantity in ("agreement", "accuracy_drop")

        def show(value: float) -> str:
            return f"{100 * value:.2f} %" if percent else f"{value:.4g}"

        surely = f"with confidence {100 * self.confidence:.4g} %"
        found = {
            "agreement": f"agrees with the original on {show(self.estimate)} of "
            f"{self.count} held-out inputs; on at least {show(self.bound)} of all",
            "accuracy_drop": f"loses {show(self.estimate)} accuracy on {self.count} "
            f"held-out inputs; at most {show(self.bound)} on all",
            "loss": f"loses {show(self.estimate)} on {self.count} held-out inputs; at "
            f"most about {show(self.bound)} on all",
            "cosine": f"has a cosine of {show(self.estimate)} to the original's "
            f"outputs on {self.count} held-out inputs; at least {show(self.bound)} on "
            "all",
        }[self.quantity]
        if self.target is None:
            return f"{found}, {surely}"
        verdict = "is met" if self.holds else "is NOT met"
        return f"{found}, {surely}: the target of {show(self.target)} {verdict}"


class Quality(Protocol):
    """A quantity that is measured on each input, and bounded."""

    @property
    def target(self) -> float | None:
        """The least, or of a drop or a loss the most, that is asked for."""

    def values(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return one value per sample. Shape `m`."""

    def statement(self, values: Tensor, error: float) -> QualityStatement:
        """Bound the expected value."""


@dataclass(frozen=True)
class Agreement:
    """Whether the largest output is the original's.

    Args:
        target: The smallest agreement that is asked for; None: nothing is.
    """

    target: float | None = None

    def values(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return 1 where it is; of many positions, the share of these. Shape `m`."""
        return agreement_of(network, batch)

    def statement(self, values: Tensor, error: float) -> QualityStatement:
        """Bound the agreement; exact if it is yes or no for each input."""
        mean, bound = float(values.double().mean()), _share(values, error)
        return _stated("agreement", mean, bound, values, error, self.target)


@dataclass(frozen=True)
class Cosine:
    """The cosine of the angle between outputs and the original's.

    Args:
        target: The smallest that is asked for; None: nothing is.
    """

    target: float | None = None

    def values(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the cosine for each sample. Shape `m`."""
        outputs, reference = forward(network, batch.inputs), batch.reference_outputs
        if reference is None:
            raise ValueError("The batch has no reference outputs.")
        one, other = (each.double().flatten(1) for each in (outputs, reference))
        return torch.cosine_similarity(one, other, dim=1).clamp(-1.0, 1.0)

    def statement(self, values: Tensor, error: float) -> QualityStatement:
        """Bound the expected cosine, whatever its distribution."""
        bound = 2.0 * mean_at_least((1.0 + values.double()) / 2.0, error) - 1.0
        mean = float(values.double().mean())
        return _stated("cosine", mean, bound, values, error, self.target)


@dataclass(frozen=True)
class AccuracyDrop:
    """How much less often the largest output is the label.

    Args:
        target: The largest drop that is asked for; None: nothing is.
    """

    target: float | None = None

    def values(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return 1 where the network became wrong, -1 where right. Shape `m`."""
        after, before = correctness_of(network, batch)
        return before.double() - after.double()

    def statement(self, values: Tensor, error: float) -> QualityStatement:
        """Bound the drop by an exact test of the pairs."""
        lost, won = int((values > 0).sum()), int((values < 0).sum())
        drop = (lost - won) / len(values)
        bound = drop_at_most(lost, won, len(values), error)
        return _stated("accuracy_drop", drop, bound, values, error, self.target)


@dataclass(frozen=True)
class LossOf:
    """The loss of a problem.

    Args:
        problem: With the loss.
        target: The largest loss that is asked for; None: nothing is.
    """

    problem: CompressionProblem
    target: float | None = None

    def values(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample. Shape `m`."""
        return self.problem.loss(network, batch)

    def statement(self, values: Tensor, error: float) -> QualityStatement:
        """Bound the expected loss, approximately."""
        mean, bound = float(values.double().mean()), mean_at_most(values, error)
        return _stated("loss", mean, bound, values, error, self.target)


class QualityTest:
    """Measures networks of a problem on the same inputs, again and again.

    The outputs of the original network are computed once, and kept where they fit into
    256 MiB.

    Args:
        problem: With held-out inputs.
        quality: What is measured.

    Raises:
        ValueError: when the problem has no held-out inputs, there are too few to show
            the target even if every one of them met it, or labels are missing.
    """

    def __init__(self, problem: CompressionProblem, quality: Quality) -> None:
        self.problem, self.quality = problem, quality
        held_out = problem.held_out
        if held_out is None:
            raise ValueError(
                "A statement about quality needs inputs that are held out: leave "
                "held_out=0 out, and pass a larger pool if it is small."
            )
        self.held_out = held_out
        self._outputs: list[Tensor] = []
        self._bytes = 0

    def require_enough(self, error: float) -> None:
        """Refuse a target that so few inputs cannot show, whatever the network is.

        Args:
            error: Allowed probability of a wrong statement.
        """
        best = torch.zeros(self.held_out.count, dtype=torch.float64)
        best = best if isinstance(self.quality, AccuracyDrop | LossOf) else best + 1.0
        found = self.quality.statement(best, error)
        if found.holds or isinstance(self.quality, LossOf):
            return
        needed = ""
        if isinstance(self.quality, Agreement) and found.target is not None:
            needed = f"; {fewest_for_share(found.target, error)} are needed"
        elif isinstance(self.quality, AccuracyDrop) and found.target is not None:
            needed = f"; some {fewest_for_share(1.0 - found.target, error)} are needed"
        raise ValueError(
            f"{self.held_out.count} held-out inputs cannot show the target of "
            f"{found.target} with confidence {1.0 - error:g}, even for the original "
            f"network{needed}. Pass more inputs (two fifths of a pool are held out), "
            "or raise epsilon."
        )

    def on_trials(self, network: nn.Module, seeds: Sequence[int]) -> Tensor:
        """Measure a network on samples of trials, to choose by.

        Args:
            network: A compressed network.
            seeds: Each gives the samples of a trial.

        Returns:
            Shape `len(seeds) * num_samples`.
        """
        found = []
        for seed in seeds:
            batch = self.problem.batch_of(seed)
            with evaluation_mode(network):
                found.append(self.quality.values(network, batch))
        return torch.cat(found).double().cpu()

    def of_ranks(self, ranks: Mapping[str, Rank], seeds: Sequence[int]) -> Tensor:
        """Measure ranks as a trial has them, on samples of trials.

        Args:
            ranks: Layer name to rank or `"dense"`.
            seeds: Each gives the samples of a trial.

        Returns:
            Shape `len(seeds) * num_samples`.
        """
        found = []
        for seed in seeds:
            # Before the network is cut, which the reference outputs are of.
            batch = self.problem.batch_of(seed)
            with self.problem.cut(ranks) as network, evaluation_mode(network):
                found.append(self.quality.values(network, batch))
        return torch.cat(found).double().cpu()

    def on_held_out(self, network: nn.Module) -> Tensor:
        """Measure a network on the held-out inputs.

        Args:
            network: A compressed network.

        Returns:
            Shape `count`, in an order that does not depend on the inputs.
        """
        reference = self.problem.network
        device = next(reference.parameters()).device
        found = []
        for number, (inputs, labels) in enumerate(self.held_out.batches()):
            batch = Batch(inputs, labels).to(device)
            if self.problem.channels_last:
                batch = batch.channels_last()
            with evaluation_mode(reference):
                batch = batch.with_reference(self._reference(number, batch))
            with evaluation_mode(network):
                found.append(self.quality.values(network, batch).double().cpu())
        return torch.cat(found)

    def statement(self, network: nn.Module, error: float) -> QualityStatement:
        """State what is true of one network."""
        return self.quality.statement(self.on_held_out(network), error)

    def _reference(self, number: int, batch: Batch) -> Tensor:
        """Return the original's outputs of a batch."""
        if number < len(self._outputs):
            return self._outputs[number]
        found = self.problem.reference_outputs(batch)
        size = found.numel() * found.element_size()
        if number == len(self._outputs) and self._bytes + size <= _MOST_KEPT:
            self._outputs.append(found)
            self._bytes += size
        return found


def quality_without_target(problem: CompressionProblem) -> Quality:
    """Return what is said of a network where nothing was asked of its quality.

    Args:
        problem: Outputs with one row of classes per input are compared by agreement,
            others of several entries by their cosine, single numbers by the loss.
    """
    outputs = problem.batch_of(0).reference_outputs
    if outputs is None or outputs.ndim < 2 or outputs[0].numel() < 2:
        return LossOf(problem)
    if outputs.is_complex():
        return LossOf(problem)
    return Agreement() if outputs.ndim == 2 else Cosine()


def expected_to_pass(
    values: Tensor, quality: Quality, count: int, error: float, *, surely: float = 0.0
) -> bool:
    """Return whether a network is expected to pass a test on other inputs.

    Args:
        values: Measured on inputs that it is chosen by. Shape `n`.
        quality: With a target.
        count: Inputs of the test.
        error: Of the test.
        surely: Standard errors of the difference of the two estimates by which it has
            to be better than it must; 0: it passes in about half of all cases.

    Returns:
        Whether the estimate is better than the target by the width of a normal
        interval with `count` inputs, and by what `surely` adds. Where no input shows
        any spread, that of one input in `n`.
    """
    if quality.target is None:
        return True
    mean, spread = float(values.mean()), float(values.std())
    if not isinstance(quality, LossOf):
        spread = max(spread, 1.0 / math.sqrt(len(values)))
    width = float(norm.ppf(1.0 - error)) * spread / math.sqrt(count)
    width += surely * spread * math.sqrt(1.0 / count + 1.0 / len(values))
    if isinstance(quality, Agreement | Cosine):
        return mean - width >= quality.target
    return mean + width <= quality.target


def _share(values: Tensor, error: float) -> float:
    """Bound an agreement: exactly, if every value is yes or no."""
    if bool(((values == 0) | (values == 1)).all()):
        return share_at_least(int(values.sum()), len(values), error)
    return mean_at_least(values, error)


def _stated(
    quantity: QuantityName,
    estimate: float,
    bound: float,
    values: Tensor,
    error: float,
    target: float | None,
) -> QualityStatement:
    """State a bound that was computed from values of inputs, at an error."""
    return QualityStatement(quantity, estimate, bound, 1.0 - error, len(values), target)
