"""How many samples an evaluation draws, where that is to be found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from ax.api.client import Client
from torch import Tensor
from torch.utils.data import Dataset

from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import FEWEST_SAMPLES

SAMPLE_SIZE_PROPERTY = "compression_sample_size"
"""Where an experiment keeps how its number of samples was chosen, see `SampleSize`."""


_LARGEST_BATCH: Final = 2**28
"""Bytes of the inputs of one evaluation, which runs as one batch: 256 MiB."""


@dataclass(frozen=True)
class SampleSize:
    """How many samples were chosen, and what was measured for it.

    Args:
        num_samples: m, the samples of every evaluation of the search.
        overhead_seconds: Fit, certificate and proposal, a trial. Wall seconds.
        seconds_per_sample: Of the first evaluations, the reference network's outputs
            included, which each new sample of a pool needs once. Wall seconds.
        trials: Evaluations that were timed.
        most: What m was limited to: the pool, or 256 MiB of inputs.
    """

    num_samples: int
    overhead_seconds: float
    seconds_per_sample: float
    trials: int
    most: int

    def sentence(self) -> str:
        """Say it in one sentence, for a report."""
        return (
            f"{self.num_samples} samples an evaluation, chosen after "
            f"{self.trials} evaluations of {FEWEST_SAMPLES}: proposing a trial took "
            f"{self.overhead_seconds:.3g} s, a sample {self.seconds_per_sample:.3g} s "
            f"(at least {FEWEST_SAMPLES}, at most {self.most})."
        )


def balanced_sample_size(
    overhead_seconds: float, seconds_per_sample: float, most: int
) -> int:
    """Return how many samples cost what a trial costs beside its evaluation.

    Fewer would waste the optimiser's time, whose trials cost nearly the same with more
    samples and say more; with more the evaluations dominate.

    Args:
        overhead_seconds: Fit, certificate and proposal, a trial.
        seconds_per_sample: Of an evaluation, positive.
        most: The pool.

    Returns:
        Their quotient, at least 50, at most `most`.

    Raises:
        ValueError: when a time is negative, or the pool below 50.

    Example:
        >>> balanced_sample_size(0.5, 0.001, most=10_000)
        500
        >>> balanced_sample_size(0.5, 0.1, 10_000), balanced_sample_size(0.5, 1e-6, 900)
        (50, 900)
    """
    if overhead_seconds < 0.0 or seconds_per_sample <= 0.0 or most < FEWEST_SAMPLES:
        raise ValueError(
            f"Expected times that were measured and a pool of at least "
            f"{FEWEST_SAMPLES}; got {overhead_seconds} s, {seconds_per_sample} s a "
            f"sample, a pool of {most}."
        )
    balanced = min(overhead_seconds / seconds_per_sample, float(most))
    return max(FEWEST_SAMPLES, int(balanced))


def most_samples(
    inputs: Tensor | Dataset[Any] | Callable[..., Tensor], problem: CompressionProblem
) -> int:
    """Return the largest number of samples to choose: the pool, within memory.

    Args:
        inputs: Of `compress`.
        problem: Made of them.

    Returns:
        At least 50 where the pool has as many.
    """
    few = problem.sampler(2, torch.Generator().manual_seed(0)).inputs
    bytes_per_sample = max(1, few[0].numel() * few.element_size())
    fit = max(FEWEST_SAMPLES, _LARGEST_BATCH // bytes_per_sample)
    pool = len(inputs) if hasattr(inputs, "__len__") else fit
    return min(pool, fit)


def record_sample_size(client: Client, chosen: SampleSize) -> None:
    """Keep a choice with a search, in memory and in its file."""
    client._experiment._properties[SAMPLE_SIZE_PROPERTY] = asdict(chosen)


def recorded_sample_size(client: Client) -> SampleSize | None:
    """Return the choice that a search was made with, or None if it made none."""
    known = client._experiment._properties.get(SAMPLE_SIZE_PROPERTY)
    return None if known is None else SampleSize(**known)
