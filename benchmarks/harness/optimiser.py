"""The interface of an optimiser, its task, and two optimisers that only sample."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from scipy.stats import qmc

from compression_adapters import CompressionProblem

Point = tuple[float, ...]


class Ask(NamedTuple):
    """A proposal: the point, and on how many samples to evaluate it."""

    point: Point
    num_samples: int


class Observation(NamedTuple):
    """Result of an evaluation: the objective, smaller is better, and its cost."""

    point: Point
    num_samples: int
    mean: float
    sem: float
    cost: float


class Seconds(NamedTuple):
    """Processor time and wall time of one process."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Task:
    """What a method knows of a problem before it begins.

    Args:
        dim: Coordinates.
        num_samples: m, the samples of an evaluation where the method does not choose.
        max_samples: Samples there are; an evaluation on all of them is full size.
        min_samples: The fewest that one may ask for.
        delta: Tolerance of certificates. Unit: objective units.
        seed: Seed of the method's own stream.
        num_initial: Evaluations before a model takes over; None: `max(6, d + 2)`.
        cells: Edges of the bins of each coordinate whose points are the same thing,
            empty for a coordinate without.
        compression: The network behind the problem, for the rules.
        first: Points that are known to be of interest, to be evaluated first by whoever
            can.
    """

    dim: int
    num_samples: int = 50
    max_samples: int = 10_000
    min_samples: int = 2
    delta: float = 0.05
    seed: int = 0
    num_initial: int | None = None
    cells: tuple[tuple[float, ...], ...] = ()
    compression: CompressionProblem | None = field(default=None, repr=False)
    first: tuple[Point, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        return tuple(f"x{i}" for i in range(self.dim))

    @property
    def initial(self) -> int:
        """Evaluations of the initial design."""
        return self.num_initial or max(6, self.dim + 2)

    @property
    def edges(self) -> Mapping[str, Sequence[float]]:
        """Cells by the name of the coordinate."""
        return dict(zip(self.names, self.cells, strict=True)) if self.cells else {}


class Method(Protocol):
    """One search: ask, evaluate, tell."""

    fit_seconds: Seconds
    """Spent on fitting models since the beginning; zero where it is unknown."""

    def ask(self) -> Ask | None:
        """Propose an evaluation; None when the method has stopped by itself."""
        ...

    def tell(self, observation: Observation) -> None:
        """Take the evaluation that was proposed last."""
        ...

    def incumbent(self) -> Point:
        """Return the point that the method would return if it ended now."""
        ...


class Stopwatch:
    """Adds up what blocks of code take."""

    def __init__(self) -> None:
        self.seconds = Seconds(0.0, 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.seconds = Seconds(
                self.seconds.cpu + time.process_time() - cpu,
                self.seconds.wall + time.perf_counter() - wall,
            )


class _Sampling:
    """A search without a model; its incumbent is the best observation."""

    fit_seconds = Seconds(0.0, 0.0)

    def __init__(self, task: Task) -> None:
        self.task = task
        self.observations: list[Observation] = []

    def tell(self, observation: Observation) -> None:
        self.observations.append(observation)

    def incumbent(self) -> Point:
        return best_observation(self.observations)


class RandomSearch(_Sampling):
    """Points drawn uniformly."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.rng = np.random.default_rng(task.seed)

    def ask(self) -> Ask:
        point = tuple(float(u) for u in self.rng.random(self.task.dim))
        return Ask(point, self.task.num_samples)


class SobolSearch(_Sampling):
    """Points of one scrambled Sobol sequence."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.engine = qmc.Sobol(task.dim, rng=np.random.default_rng(task.seed))

    def ask(self) -> Ask:
        (point,) = self.engine.random(1)
        return Ask(tuple(float(u) for u in point), self.task.num_samples)


def best_observation(observations: Sequence[Observation]) -> Point:
    """The point of the smallest observed mean.

    Raises:
        ValueError: When nothing has been observed.
    """
    if not observations:
        raise ValueError("no observation yet: call `tell` before `incumbent`")
    return min(observations, key=lambda observation: observation.mean).point


def require_package(name: str) -> None:
    """Refuse a peer whose package is missing, and say where it comes from.

    Raises:
        ImportError: When it cannot be imported.
    """
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise ImportError(
            f"{name} is not installed; it comes with the extra: "
            "pip install 'ax-pac[benchmarks]'"
        )
