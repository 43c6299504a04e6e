"""What methods are compared on, by name: one evaluation, its cost, and the truth.

Every objective is minimised over the unit box and positive. An evaluation on m samples
is unbiased, except on `learning_curve`, whose whole point is that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.functions import TEST_FUNCTIONS, Function, draw_from_prior
from benchmarks.calibration.functions import known_function as test_function
from benchmarks.comparison.learning_curve import learning_curve
from benchmarks.harness.optimiser import Point
from benchmarks.networks.evaluation import NETWORKS, NetworkEvaluation
from compression_adapters import CompressionProblem, MeanSEM
from compression_adapters.options import SearchOptions
from compression_adapters.search.initial_design import path_points


@dataclass(frozen=True, eq=False)
class Problem:
    """A function to minimise that is only seen through samples.

    Args:
        dim: Coordinates.
        max_samples: Samples of an evaluation at full size.
        evaluate: `(point, num_samples, seed, earlier losses)` to the objective, and to
            the loss behind it where there is one.
        cost: What an evaluation on so many samples costs. Unit: samples; includes the
            part that does not depend on their number.
        true: The objective itself, or as good as that.
        final: What else to measure of the point that is returned.
        optimum: The smallest value of `true`, or None where it is not known.
        delta: Tolerance of certificates.
        min_samples: The fewest samples of an evaluation.
        cells: As in `Task`.
        compression: As in `Task`.
        first: As in `Task`.
        is_biased: Whether small evaluations are off on average.
    """

    dim: int
    max_samples: int
    evaluate: Callable[..., tuple[MeanSEM, MeanSEM | None]] = field(repr=False)
    cost: Callable[[int], float] = field(repr=False)
    true: Callable[[Point], float] = field(repr=False)
    final: Callable[[Point], dict[str, Any]] = field(repr=False)
    optimum: float | None
    delta: float
    min_samples: int = 2
    cells: tuple[tuple[float, ...], ...] = ()
    compression: CompressionProblem | None = field(default=None, repr=False)
    first: tuple[Point, ...] = ()
    is_biased: bool = False


# Standard deviation of a sample of the functions, so that 50 give 0.1.
_SAMPLE_DEVIATION = 0.1 * math.sqrt(50.0)
_LENGTHSCALES = {
    2: (0.25, 0.45),
    4: (0.35, 0.45, 0.55, 0.70),
    6: (0.45, 0.5, 0.6, 0.7, 0.8, 0.9),
}
_FUNCTION_DELTA = 0.1
# The fixed part of an evaluation of a function, in samples. A choice.
_FUNCTION_SETUP = 10
_FUNCTION_SAMPLES = 10_000


def build_problem(
    name: str, *, seed: int, gamma: float = 1.0, encoding: str = "log"
) -> Problem:
    """Set up one of `PROBLEMS`.

    Args:
        name: Its name.
        seed: Which function is drawn, for those that are drawn.
        gamma: Weight of the loss, for the networks.
        encoding: `log`, or `published` for that of the paper, for the networks.

    Raises:
        ValueError: When there is none of that name.
        FileNotFoundError: When its data are missing; the message says what to set.
    """
    if name not in PROBLEMS:
        raise ValueError(f"unknown problem {name!r}, known: {', '.join(PROBLEMS)}")
    return PROBLEMS[name](seed=seed, gamma=gamma, encoding=encoding)


def _function_problem(function: Function) -> Problem:
    """The distance from the function's maximum, plus one to make it positive."""

    def true(point: Point) -> float:
        X = torch.tensor([point], dtype=torch.float64)
        return 1.0 + function.maximum - float(function.evaluate(X))

    def evaluate(
        point: Point, num_samples: int, seed: int, earlier: Sequence[MeanSEM]
    ) -> tuple[MeanSEM, None]:
        sem = _SAMPLE_DEVIATION / math.sqrt(num_samples)
        noise = float(np.random.default_rng(seed).normal())
        return MeanSEM(true(point) + sem * noise, sem), None

    return Problem(
        dim=function.dim,
        max_samples=_FUNCTION_SAMPLES,
        evaluate=evaluate,
        cost=lambda num_samples: float(num_samples + _FUNCTION_SETUP),
        true=true,
        final=lambda point: {"objective": true(point)},
        optimum=1.0,
        delta=_FUNCTION_DELTA,
    )


def _drawn(*, dim: int, seed: int, gamma: float, encoding: str) -> Problem:
    lengthscale = torch.tensor(_LENGTHSCALES[dim], dtype=torch.float64)
    return _function_problem(draw_from_prior(lengthscale, 1.0, 0.0, seed))


def _known(*, name: str, seed: int, gamma: float, encoding: str) -> Problem:
    return _function_problem(test_function(name))


def _curve(*, seed: int, gamma: float, encoding: str) -> Problem:
    curve = learning_curve()
    return Problem(
        dim=2,
        max_samples=curve.max_samples,
        min_samples=curve.min_samples,
        evaluate=lambda point, m, seed, earlier: (curve.evaluate(point, m, seed), None),
        cost=curve.cost,
        true=curve.true,
        final=lambda point: {"objective": curve.true(point)},
        optimum=None,
        delta=0.01,
        is_biased=True,
    )


def network_problem(evaluation: NetworkEvaluation) -> Problem:
    """A network's objective as a problem."""
    return Problem(
        dim=len(evaluation.problem.parameters),
        max_samples=evaluation.pool_size,
        evaluate=evaluation.evaluate,
        cost=evaluation.cost,
        true=evaluation.true,
        final=evaluation.final,
        optimum=None,
        delta=0.05,
        cells=evaluation.cells,
        compression=evaluation.problem,
    )


def _as_compressed(*, name: str, seed: int, gamma: float, encoding: str) -> Problem:
    """What `compress` searches by default; all methods may begin where it does."""
    evaluation = NetworkEvaluation(name, gamma, "default")
    points = path_points(evaluation.problem)
    return replace(
        network_problem(evaluation),
        delta=SearchOptions.delta,
        first=tuple(tuple(point.values()) for point in points),
    )


def _network(*, name: str, seed: int, gamma: float, encoding: str) -> Problem:
    return network_problem(NetworkEvaluation(name, gamma, encoding))


PROBLEMS: Mapping[str, Callable[..., Problem]] = {
    "draw2": partial(_drawn, dim=2),
    "draw4": partial(_drawn, dim=4),
    "draw6": partial(_drawn, dim=6),
    **{name: partial(_known, name=name) for name in TEST_FUNCTIONS},
    "learning_curve": _curve,
    **{name: partial(_network, name=name) for name in NETWORKS},
    **{
        f"{name}_default": partial(_as_compressed, name=name)
        for name in ("resnet18", "resnet50")
    },
}
