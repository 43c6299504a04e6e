"""The automatic choice of the number of samples per evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import torch
from ax.api.client import Client

from ax_pac.ax_internals import experiment_of, properties
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.structured_inputs import tensors_of
from compression_adapters.options import FEWEST_SAMPLES

SAMPLE_SIZE_PROPERTY = "compression_sample_size"
"""Key of the experiment property with the chosen sample size, see `SampleSize`."""


_LARGEST_BATCH: Final = 2**28
"""Bytes of the inputs of one evaluation, which is one batch: 256 MiB."""


@dataclass(frozen=True)
class SampleSize:
    """The chosen number of samples, and the measurements behind it.

    Args:
        num_samples: m, the samples of every evaluation of the search.
        overhead_seconds: Fit, certificate and proposal, per trial. Wall seconds.
        seconds_per_sample: Measured in the first evaluations, including the reference
            network's outputs, which each new sample of a pool needs once. Wall seconds.
        trials: Number of evaluations that were timed.
        most: Upper limit of m: the pool, or 256 MiB of inputs.
    """

    num_samples: int
    overhead_seconds: float
    seconds_per_sample: float
    trials: int
    most: int

    def sentence(self) -> str:
        """Describe the choice in one sentence, for a report."""
        return (
            f"{self.num_samples} samples per evaluation, chosen after "
            f"{self.trials} evaluations of {FEWEST_SAMPLES}: a proposal took "
            f"{self.overhead_seconds:.3g} s, a sample {self.seconds_per_sample:.3g} s "
            f"(at least {FEWEST_SAMPLES}, at most {self.most})."
        )


def balanced_sample_size(
    overhead_seconds: float, seconds_per_sample: float, most: int
) -> int:
    """Return the number of samples whose evaluation takes as long as the overhead.

    With fewer samples, the optimiser's time per trial is poorly used, because a trial
    with more samples takes little longer and is more informative. With more samples,
    the evaluations dominate.

    Args:
        overhead_seconds: Fit, certificate and proposal, per trial.
        seconds_per_sample: Time of an evaluation per sample, positive.
        most: Size of the pool.

    Returns:
        Their quotient, at least 50, at most `most`.

    Raises:
        ValueError: when a time is negative, or the pool is smaller than 50.

    Example:
        >>> balanced_sample_size(0.5, 0.001, most=10_000)
        500
        >>> balanced_sample_size(0.5, 0.1, 10_000), balanced_sample_size(0.5, 1e-6, 900)
        (50, 900)
    """
    if overhead_seconds < 0.0 or seconds_per_sample <= 0.0 or most < FEWEST_SAMPLES:
        raise ValueError(
            f"Expected times that were measured and a pool of at least "
            f"{FEWEST_SAMPLES}; got {overhead_seconds} s, {seconds_per_sample} s per "
            f"sample, a pool of {most}."
        )
    balanced = min(overhead_seconds / seconds_per_sample, float(most))
    return max(FEWEST_SAMPLES, int(balanced))


def most_samples(problem: CompressionProblem) -> int:
    """Return the largest number of samples to choose: the pool, within memory.

    Args:
        problem: The problem.

    Returns:
        At least 50 if the pool has as many.
    """
    few = problem.sampler(2, torch.Generator().manual_seed(0)).inputs
    size = sum(t.numel() * t.element_size() for t in tensors_of(few)) // len(few)
    fit = max(FEWEST_SAMPLES, _LARGEST_BATCH // max(1, size))
    return fit if problem.pool_size is None else min(problem.pool_size, fit)


def record_sample_size(client: Client, chosen: SampleSize) -> None:
    """Store a choice with a search, in memory and in its file."""
    properties(experiment_of(client))[SAMPLE_SIZE_PROPERTY] = asdict(chosen)


def recorded_sample_size(client: Client) -> SampleSize | None:
    """Return the choice of a search, or None if it made none."""
    known = properties(experiment_of(client)).get(SAMPLE_SIZE_PROPERTY)
    return None if known is None else SampleSize(**known)
