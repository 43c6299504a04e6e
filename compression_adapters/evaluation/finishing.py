"""Finish the network that is kept: each step is kept only if it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression_adapters.calibration.gather import BATCH
from compression_adapters.calibration.refit import refit_in_sequence
from compression_adapters.evaluation.estimates import MeanSEM, mean_and_sem
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.fine_tuning import move_batch_norm
from compression_adapters.network.recipe import added_to_recipe, record_recipe
from compression_adapters.rank_space.scales import DENSE, Rank

StepName = Literal["refit", "batch_norm"]

SAMPLES: Final = 300
"""Fresh samples that steps are compared on, at least; a multiple of a trial's."""

_IN_WORDS: Final[Mapping[StepName, str]] = {
    "refit": "refit in sequence",
    "batch_norm": "batch norm moved",
}


@dataclass(frozen=True)
class FinishStep:
    """One step, and what it did to the loss.

    Args:
        name: `"refit"` or `"batch_norm"`.
        loss: Loss after it; None: not finite.
        change: Of the loss, by the differences on the same samples; None: not finite.
        accepted: Whether the network is kept as it is after the step.
    """

    name: StepName
    loss: MeanSEM | None
    change: MeanSEM | None
    accepted: bool

    def sentence(self) -> str:
        """Say what the step did.

        Example:
            >>> step = FinishStep("refit", MeanSEM(3.9, 0.4), MeanSEM(-0.8, 0.1), True)
            >>> step.sentence()
            'refit in sequence: loss 3.9, by -0.8 (standard error 0.1); kept'
        """
        verdict = "kept" if self.accepted else "not kept"
        if self.loss is None or self.change is None:
            return f"{_IN_WORDS[self.name]}: no finite loss; {verdict}"
        return (
            f"{_IN_WORDS[self.name]}: loss {self.loss.mean:.4g}, by "
            f"{self.change.mean:+.3g} (standard error {self.change.sem:.2g}); {verdict}"
        )


@dataclass(frozen=True)
class FinishRecord:
    """What was tried on the network that is kept.

    Args:
        num_samples: Fresh samples that all losses here are means over, the same ones.
        before: Loss of the network that the search measured.
        steps: In their order; each begins with the network that was kept before it.
    """

    num_samples: int
    before: MeanSEM
    steps: tuple[FinishStep, ...]

    @property
    def after(self) -> MeanSEM:
        """Loss of the network that is kept."""
        losses = [step.loss for step in self.steps if step.accepted and step.loss]
        return losses[-1] if losses else self.before

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values, as recipe and report hold it."""
        plain = asdict(self)
        plain["before"] = self.before._asdict()
        plain["steps"] = [
            asdict(step)
            | {
                key: None if value is None else value._asdict()
                for key, value in (("loss", step.loss), ("change", step.change))
            }
            for step in self.steps
        ]
        return plain

    def sentence(self) -> str:
        """Say what was tried, and what was kept."""
        return (
            f"On {self.num_samples} fresh samples the loss was {self.before.mean:.4g} "
            f"before; {'; '.join(step.sentence() for step in self.steps)}."
        )


def finish_network(
    problem: CompressionProblem,
    compressed: nn.Module,
    ranks: Mapping[str, Rank],
    *,
    seed: int,
    progress: bool | None = None,
    is_over: Callable[[], bool] | None = None,
) -> tuple[nn.Module, FinishRecord | None]:
    """Refit a network in sequence and move its batch norm, each if that is better.

    Both use the calibration inputs, without labels: `refit_in_sequence`, then
    `move_batch_norm`. Both can harm: a fit to few inputs, or statistics that the
    refit had already made up for. So a step is kept only if the loss of the problem is
    smaller after it on fresh inputs, by more than the standard error of the difference:

        mean_i d_i + SEM(d) < 0,  d_i = loss after - loss before, on sample i

    The samples are the same ones, which cancels most of their variance. One standard
    error keeps a step without any effect, which does no harm, once in six times, and
    loses one of two standard errors as often; a stricter rule would lose more than it
    saves. `FinishRecord.before` and its steps favour what was kept, by a small part of
    their error; `CompressionResult.loss` is measured on other samples.

    Args:
        problem: With calibration inputs; without any, nothing is done.
        compressed: A network made from its reference network; not modified.
        ranks: Layer name to rank or `"dense"`. If all are dense, nothing is done.
        seed: Of the samples and of the choice of patches.
        progress: See `refit_in_sequence`.
        is_over: See `refit_in_sequence`.

    Returns:
        The network to keep, in eval mode, with the record kept with it too; and the
        record, None if nothing was tried.

    Raises:
        ValueError: when the loss of `compressed` does not return one finite value per
            sample.

    Example:
        >>> from compression_adapters import compression_problem
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
        >>> problem = compression_problem(network, torch.randn(500, 20), gamma=0.1)
        >>> point = {"layer_0": 0.6, "layer_2": 0.6}
        >>> small, record = finish_network(
        ...     problem, problem.compress(point), problem.ranks(point), seed=0
        ... )
        >>> [step.name for step in record.steps], record.after < record.before
        (['refit'], True)
    """
    cut = [name for name, rank in ranks.items() if rank != DENSE]
    known = problem.calibration
    if known is None or not cut:
        return compressed, None
    kept = compressed
    batches = -(-SAMPLES // problem.num_samples)
    seeds = np.random.SeedSequence((seed, 0, 2)).generate_state(batches)
    before = _losses(problem, kept, seeds)
    steps: list[FinishStep] = []
    values = before

    def attempt(name: StepName, make: Callable[[], nn.Module]) -> None:
        nonlocal kept, values
        changed = make().eval()
        step, after = _compared(name, problem, changed, seeds, values)
        steps.append(step)
        if step.accepted:
            kept, values = changed, after

    def refitted() -> nn.Module:
        return refit_in_sequence(
            problem.network,
            kept,
            cut,
            known.inputs,
            seed=known.seed,
            progress=progress,
            is_over=is_over,
        )

    attempt("refit", refitted)
    if any(
        isinstance(m, _BatchNorm) and m.running_mean is not None for m in kept.modules()
    ):
        # Of nearly the same size: the statistics are means over batches.
        parts = known.inputs.tensor_split(max(1, known.count // BATCH))
        attempt("batch_norm", lambda: move_batch_norm(kept, problem.network, parts))
    record = FinishRecord(len(before), mean_and_sem(before), tuple(steps))
    if any(step.accepted for step in steps):
        record_recipe(kept, added_to_recipe(compressed, finishes=[record.to_dict()]))
    return kept, record


def _losses(problem: CompressionProblem, network: nn.Module, seeds: Any) -> Tensor:
    """Return the losses of the samples, in double precision."""
    found = [problem.losses_of(network, seed=int(seed)) for seed in seeds]
    return torch.cat(found).double().cpu()


def _compared(
    name: StepName,
    problem: CompressionProblem,
    changed: nn.Module,
    seeds: Any,
    before: Tensor,
) -> tuple[FinishStep, Tensor]:
    """Compare a network with the one before, on the same samples."""
    try:
        after = _losses(problem, changed, seeds)
    except ValueError:  # not finite, as in half precision: what was, was
        return FinishStep(name, None, None, accepted=False), before
    change = mean_and_sem(after - before)
    better = math.isfinite(change.mean) and change.mean + change.sem < 0.0
    return FinishStep(name, mean_and_sem(after), change, better), after
