"""Divide the inputs into those that factors are fitted to, and those to evaluate on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compression_adapters.evaluation.held_out import (
    LARGEST_SHARE_HELD_OUT,
    HeldOutInputs,
)
from compression_adapters.evaluation.sampling import (
    Collate,
    Sampler,
    dataset_sampler,
    generator_sampler,
    open_pool,
)
from compression_adapters.network.structured_inputs import (
    Inputs,
    NetworkInputs,
    OutputChoice,
    joined_inputs,
    tensors_of,
)

LARGEST_SHARE: Final = 0.2
"""Share of a pool that is used for calibration, at most."""

_FEWEST = 2


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """The inputs that the factors of a problem were fitted to.

    Args:
        inputs: One tensor or several. Shape `count x ...`.
        seed: Determined which.
        share: Share of the pool; None of generated inputs.
    """

    inputs: Inputs = field(repr=False)
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
        digest = hashlib.sha256()
        for tensor in tensors_of(self.inputs):
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy().tobytes())
        return digest.hexdigest()[:16]


class InputSplit(NamedTuple):
    """Inputs, divided by what they are for.

    Args:
        sampler: Draws the samples of trials.
        calibration: What factors are fitted to; None: nothing.
        held_out: What a statement at the end is made on; None: nothing.
        size: Inputs in the pool; None of generated inputs.
    """

    sampler: Sampler
    calibration: CalibrationInputs | None
    held_out: HeldOutInputs | None
    size: int | None


def split_inputs(
    inputs: Any,
    labels: Tensor | None,
    *,
    num_samples: int,
    calibrate: int,
    seed: int,
    held_out: int = 0,
    collate: Collate | None = None,
    output: OutputChoice = None,
) -> InputSplit:
    """Divide inputs into those of trials, of calibration, and those that are held out.

    Factors fit the inputs that they were made from. A loss on the same inputs would be
    too small, and a certificate counts on fresh ones. A statement about the network
    that is kept needs inputs that had no part in its choice either.

    Args:
        inputs: A pool (see `open_pool`), or a function `(num_samples, rng)`.
        labels: One class index for each input of a tensor pool, or None.
        num_samples: Samples of a trial. A pool keeps at least so many for them.
        calibrate: Number of calibration inputs; of a pool at most `LARGEST_SHARE`. 0:
            none.
        seed: Determines which.
        held_out: Number of inputs that are held out; of a pool at most
            `LARGEST_SHARE_HELD_OUT`. 0: none.
        collate: See `open_pool`.
        output: Which output of the network is compared, see `read_output`.

    Returns:
        The parts; calibration is None also where the pool is too small for it.

    Raises:
        ValueError: when the pool has fewer than `num_samples` inputs, or labels do not
            fit.
        TypeError: when `inputs` is of an unsupported type.

    Example:
        >>> pool = torch.arange(20.0)[:, None]
        >>> split = split_inputs(
        ...     pool, None, num_samples=10, calibrate=50, seed=0, held_out=50
        ... )
        >>> split.calibration.count, split.calibration.share, split.held_out.count
        (4, 0.2, 6)
        >>> drawn = split.sampler(10, torch.Generator().manual_seed(0)).inputs
        >>> bool(torch.isin(drawn, split.calibration.inputs).any())
        False
    """
    rng = torch.Generator().manual_seed(seed)
    if _generates(inputs):
        if labels is not None or collate is not None:
            raise ValueError(
                "labels and collate must be None when inputs are generated: there is "
                "no pool for them to belong to."
            )
        sampler = generator_sampler(inputs, output)
        known = _generated(sampler, calibrate, num_samples, rng, seed)
        return InputSplit(
            sampler, known, _generated_later(sampler, held_out, seed), None
        )
    pool = open_pool(inputs, labels, collate=collate, output=output)
    size = len(pool)
    if size < num_samples:
        raise ValueError(
            f"The pool has {size} inputs, fewer than the {num_samples} samples of a "
            "trial (num_samples). Pass more inputs, or a smaller num_samples."
        )
    count = min(calibrate, int(LARGEST_SHARE * size), size - num_samples)
    count = count if count >= _FEWEST else 0
    aside = min(
        held_out, int(LARGEST_SHARE_HELD_OUT * size), size - num_samples - count
    )
    if not count and not aside:
        return InputSplit(dataset_sampler(pool), None, None, size)
    order = torch.randperm(size, generator=rng)
    known = None
    if count:
        chosen, _ = pool.read(order[:count])
        known = CalibrationInputs(chosen, seed, count / size)
    later = order[count : count + aside]
    others = order[count + aside :].sort().values
    kept = HeldOutInputs(
        aside, aside / size, lambda start, end: pool.read(later[start:end])
    )
    sampler = dataset_sampler(pool, positions=others)
    return InputSplit(sampler, known, kept if aside else None, size)


def _generates(inputs: Any) -> bool:
    """Whether inputs are a function that generates them."""
    if isinstance(inputs, Tensor | Dataset | DataLoader | NetworkInputs):
        return False
    return not isinstance(inputs, Mapping | tuple | list) and callable(inputs)


def _generated(
    sampler: Sampler, calibrate: int, num_samples: int, rng: torch.Generator, seed: int
) -> CalibrationInputs | None:
    """Draw calibration inputs from a generating function, by trials' worth."""
    if calibrate < _FEWEST:
        return None
    times = -(-calibrate // num_samples)
    drawn = joined_inputs([sampler(num_samples, rng).inputs for _ in range(times)])
    return CalibrationInputs(drawn[:calibrate].clone(), seed, None)


def _generated_later(
    sampler: Sampler, held_out: int, seed: int
) -> HeldOutInputs | None:
    """Generate inputs batch by batch, the same ones each time."""
    if held_out < _FEWEST:
        return None

    def read(start: int, end: int) -> tuple[Inputs, Tensor | None]:
        state = np.random.SeedSequence((seed, start, 3)).generate_state(1)
        rng = torch.Generator().manual_seed(int(state[0]))
        # A generating function is asked for two at least.
        return sampler(max(2, end - start), rng).inputs[: end - start], None

    return HeldOutInputs(held_out, None, read)
