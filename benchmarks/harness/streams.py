"""Random streams of a run that have nothing in common."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np


class Streams(NamedTuple):
    """Seeds of what is random in a run, none derived from another.

    Args:
        problem: Of the function that is drawn.
        evaluation: Of the samples of evaluations; see `trial_seed`.
        method: Of the optimiser.
    """

    problem: int
    evaluation: int
    method: int


def streams(problem: str, seed: int) -> Streams:
    """Spawn the streams of a run: the same for every method, for runs to be paired.

    An optimiser and an objective that share a stream would spoil a comparison: the
    first point that one draws may be the optimum that the other drew.

    Args:
        problem: Name of the problem.
        seed: Seed of the run.
    """
    root = np.random.SeedSequence((seed, zlib.crc32(problem.encode())))
    return Streams(*(_number(child) for child in root.spawn(3)))


def trial_seed(evaluation: int, index: int) -> int:
    """Seed of the samples of one trial: its own, and common to all methods."""
    return _number(np.random.SeedSequence(evaluation, spawn_key=(index,)))


def _number(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1)[0])
