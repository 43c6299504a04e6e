"""Divide the inputs into those that factors are fitted to, and those to evaluate on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from compression_adapters.evaluation.sampling import (
    Sampler,
    dataset_sampler,
    generator_sampler,
    pool_inputs,
)

LARGEST_SHARE: Final = 0.2
"""Share of a pool that is used for calibration, at most."""

_FEWEST = 2


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """The inputs that the factors of a problem were fitted to.

    Args:
        inputs: Shape `count x ...`.
        seed: Determined which.
        share: Share of the pool; None of generated inputs.
    """

    inputs: Tensor = field(repr=False)
    seed: int
    share: float | None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.inputs)

    def to_dict(self) -> dict[str, Any]:
        """Return count, share, seed and digest as plain JSON values."""
        return {
            "count": self.count,
            "share": self.share,
            "seed": self.seed,
            "digest": self.digest(),
        }

    def digest(self) -> str:
        """Return a short digest of the inputs themselves."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        plain = self.inputs.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.sha256(plain.numpy().tobytes()).hexdigest()[:16]


def split_inputs(
    inputs: Any,
    labels: Tensor | None,
    *,
    num_samples: int,
    calibrate: int,
    seed: int,
) -> tuple[Sampler, CalibrationInputs | None]:
    """Return a sampler for trials, and inputs for calibration that it never draws.

    Factors fit the inputs that they were made from. A loss on the same inputs would be
    too small, and a certificate counts on fresh ones.

    Args:
        inputs: A pool (tensor or dataset), or a function `(num_samples, rng)`.
        labels: One class index for each input of a tensor pool, or None.
        num_samples: Samples of a trial. A pool keeps at least so many for them.
        calibrate: Number of calibration inputs; of a pool at most `LARGEST_SHARE`. 0:
            none, and trials draw from the whole pool.
        seed: Determines which.

    Returns:
        The sampler, and the calibration inputs; None if there are none, also because
        the pool is too small for them.

    Raises:
        ValueError: when the pool has fewer than `num_samples` inputs, or labels do not
            fit.
        TypeError: when `inputs` is of an unsupported type.

    Example:
        >>> pool = torch.arange(20.0)[:, None]
        >>> draw, known = split_inputs(
        ...     pool, None, num_samples=10, calibrate=50, seed=0
        ... )
        >>> known.count, known.share
        (4, 0.2)
        >>> drawn = draw(10, torch.Generator().manual_seed(0)).inputs
        >>> bool(torch.isin(drawn, known.inputs).any())
        False
    """
    rng = torch.Generator().manual_seed(seed)
    if not isinstance(inputs, Tensor | Dataset) and callable(inputs):
        if labels is not None:
            raise ValueError(
                "labels must be None when inputs are generated: there is no pool for "
                "them to belong to."
            )
        sampler = generator_sampler(inputs)
        return sampler, _generated(sampler, calibrate, num_samples, rng, seed)
    sampler = dataset_sampler(inputs, labels)
    size = len(inputs)
    if size < num_samples:
        raise ValueError(
            f"The pool has {size} inputs, fewer than the {num_samples} samples of a "
            "trial (num_samples). Pass more inputs, or a smaller num_samples."
        )
    count = min(calibrate, int(LARGEST_SHARE * size), size - num_samples)
    if count < _FEWEST:
        return sampler, None
    order = torch.randperm(size, generator=rng)
    chosen, others = order[:count], order[count:].sort().values
    known = CalibrationInputs(pool_inputs(inputs, chosen), seed, count / size)
    return dataset_sampler(inputs, labels, positions=others), known


def _generated(
    sampler: Sampler, calibrate: int, num_samples: int, rng: torch.Generator, seed: int
) -> CalibrationInputs | None:
    """Draw calibration inputs from a generating function, by trials' worth."""
    if calibrate < _FEWEST:
        return None
    times = -(-calibrate // num_samples)
    drawn = torch.cat([sampler(num_samples, rng).inputs for _ in range(times)])
    return CalibrationInputs(drawn[:calibrate].clone(), seed, None)
