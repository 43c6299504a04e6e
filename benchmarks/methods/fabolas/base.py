"""Fabolas: Bayesian optimisation that chooses the size of the subset as well.

What both rows share: the size of the subset as one more coordinate on a logarithmic
scale, logarithms of loss and cost, an initial design on small subsets, and an
incumbent that is judged at full size. Models and acquisition are those of a `search`:
`fabolas_lean` and `fabolas_faithful`.

Source: Klein, Falkner, Bartels, Hennig and Hutter 2017 (Fast Bayesian optimization of
machine learning hyperparameters on large datasets). `docs/benchmarks/fabolas.md` lists
what is done otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from benchmarks.harness.optimiser import (
    Ask,
    Observation,
    Point,
    Seconds,
    Stopwatch,
    Task,
    best_observation,
)

# Subsets of the initial design, as parts of the whole.
SUBSETS = (256, 128, 64)
# Points of the initial design for every subset.
NUM_INITIAL_POINTS = 10
# What a logarithm needs. An objective that noise takes below is raised to it.
_SMALLEST = 1e-9


class FabolasData(NamedTuple):
    """Observations as the models see them.

    Args:
        X: Points with the size as last coordinate, in [0, 1]. Shape `n x (d + 1)`.
        log_loss: Shape `n x 1`. Unit: nats.
        log_sem: Standard error of `log_loss`. Shape `n x 1`.
        log_cost: Shape `n x 1`. Unit: nats.
    """

    X: Tensor
    log_loss: Tensor
    log_sem: Tensor
    log_cost: Tensor


class SubsetSearch(Protocol):
    """Models of loss and cost, and a choice of the next point and size."""

    def fit(self, data: FabolasData) -> None:
        """Take the observations."""
        ...

    def predicted(self, X: Tensor) -> Tensor:
        """Predict the log loss at points with sizes, `N x (d + 1)` to `N`."""
        ...

    def propose(self, incumbent: Tensor) -> Tensor:
        """Choose the next point and size, `d + 1`; the incumbent is `d + 1` too."""
        ...


class Fabolas:
    """Fabolas in ask/tell form.

    Args:
        task: What is searched; its objective has to be positive.
        search: Makes models and acquisition from the number of coordinates and a seed.
    """

    def __init__(
        self, task: Task, *, search: Callable[[int, int], SubsetSearch]
    ) -> None:
        design_seed, search_seed = (
            int(seed) for seed in np.random.SeedSequence(task.seed).generate_state(2)
        )
        self.task = task
        self.largest = task.max_samples
        sizes = sorted({self._at_least(self.largest // part) for part in SUBSETS})
        self.smallest = sizes[0]
        self.search = search(task.dim, search_seed)
        design = qmc.LatinHypercube(task.dim, rng=design_seed)
        points = design.random(NUM_INITIAL_POINTS)
        # One size after another, the cheapest first.
        self.initial = [
            Ask(tuple(float(u) for u in point), size)
            for size in sizes
            for point in points
        ]
        self.observations: list[Observation] = []
        self.stopwatch = Stopwatch()
        self.fitted = 0

    @property
    def fit_seconds(self) -> Seconds:
        return self.stopwatch.seconds

    def ask(self) -> Ask:
        if len(self.observations) < len(self.initial):
            return self.initial[len(self.observations)]
        self._fit()
        incumbent = torch.tensor([*self.incumbent(), 1.0], dtype=torch.float64)
        *point, u = self.search.propose(incumbent).tolist()
        return Ask(tuple(point), self.size(u))

    def tell(self, observation: Observation) -> None:
        self.observations.append(observation)

    def incumbent(self) -> Point:
        """The visited point of lowest predicted loss at full size."""
        if len(self.observations) < len(self.initial):
            return best_observation(self.observations)
        self._fit()
        X = torch.tensor([o.point for o in self.observations], dtype=torch.float64)
        X = torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], dim=1)
        best = int(self.search.predicted(X).argmin())
        return self.observations[best].point

    def size(self, u: float) -> int:
        """The subset's size at a coordinate in [0, 1], which is logarithmic."""
        low, high = math.log2(self.smallest), math.log2(self.largest)
        return round(2.0 ** (low + u * (high - low)))

    def unit(self, size: int) -> float:
        """The coordinate of a size."""
        low, high = math.log2(self.smallest), math.log2(self.largest)
        return (math.log2(size) - low) / (high - low)

    def _at_least(self, size: int) -> int:
        return max(size, self.task.min_samples)

    def _fit(self) -> None:
        """Fit the models to what is known, once for every observation."""
        if self.fitted == len(self.observations):
            return
        with self.stopwatch.running():
            self.search.fit(self._data())
        self.fitted = len(self.observations)

    def _data(self) -> FabolasData:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)

        losses = [max(o.mean, _SMALLEST) for o in self.observations]
        sems = [o.sem / loss for o, loss in zip(self.observations, losses, strict=True)]
        return FabolasData(
            torch.tensor(
                [[*o.point, self.unit(o.num_samples)] for o in self.observations],
                dtype=torch.float64,
            ),
            column([math.log(loss) for loss in losses]),
            column(sems),
            column([math.log(o.cost) for o in self.observations]),
        )
