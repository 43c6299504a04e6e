"""A network of the price path, taken without a search and without a certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from ax.api.client import Client

from ax_pac import PACCertificate
from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.price_path import PricePath, price_path
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions, Target, read_ratio
from compression_adapters.rank_space.scales import DENSE
from compression_adapters.search.client import new_client, quiet_ax
from compression_adapters.search.loop import EvaluationError, SearchLoop
from compression_adapters.search.quality_target import (
    TestedNetwork,
    quality_test,
    smallest_on_path,
    stated,
    with_tested,
)
from compression_adapters.search.result import CompressionResult
from compression_adapters.search.run import finished, make_result, search_strategy
from compression_adapters.search.time_limit import NO_LIMIT, TimeLimit

_SPREAD = 8
"""Networks that are evaluated for a gamma before those between the best ones."""

_FAILED = MeanSEM(math.inf, 0.0)
"""Loss of a network whose evaluation failed: worse than any other."""


def take_from_path(
    problem: CompressionProblem,
    options: SearchOptions,
    target: Target,
    *,
    limit: TimeLimit = NO_LIMIT,
) -> CompressionResult:
    """Take the network of the price path that a target asks for.

    The path orders networks without an evaluation, so that this is quick. For a ratio
    one network is evaluated, the largest that is no larger. For a gamma or a loss some
    twenty are, and the path is narrowed to the best, or to the smallest that loses no
    more. For a quality, see `smallest_on_path`. Nothing is certified: nothing is known
    of networks beside the path.

    Args:
        problem: The problem; its gamma counts in the objective of the trials.
        options: `seed` and `progress`, and what a search that continues would use.
        target: What is asked for.
        limit: When to end.

    Returns:
        The result, whose certificate does not hold. Its client can be continued by a
        search.

    Raises:
        ValueError: when no network on the path meets the target.
    """
    return _take(price_path(problem), options, target, limit)


def take_position(
    path: PricePath, options: SearchOptions, position: int
) -> CompressionResult:
    """Take one network of a path: `take_from_path` for a place that is known.

    Args:
        path: The path.
        options: See `take_from_path`.
        position: Of the network.
    """
    return _take(path, options, position)


def _take(
    path: PricePath,
    options: SearchOptions,
    target: Target | int,
    limit: TimeLimit = NO_LIMIT,
) -> CompressionResult:
    """Take the network at a place, or the one that a target asks for."""
    began, problem = time.perf_counter(), path.problem
    client = new_client(problem)
    tested: TestedNetwork | None = None
    with quiet_ax():
        client.set_generation_strategy(search_strategy(problem, options))
        taken = _Evaluations(path, client, options)
        if isinstance(target, int):
            best = target
            taken.evaluate([best])
            taken.require(best)
        elif target.ratio is not None:
            best = path.at_ratio(read_ratio(target.ratio))
            taken.evaluate([best])
            taken.require(best)
        elif target.is_quality:
            test = quality_test(problem, options, target)
            best, tested = smallest_on_path(path, options, test, limit)
            taken.evaluate([best])
            taken.require(best)
        elif target.loss_at_most is not None:
            best = _smallest(taken, target.loss_at_most)
        else:
            best = _best(taken, limit)
        taken.loop.bar.close()
        result = make_result(
            problem,
            client,
            options,
            _no_certificate(options, len(taken.losses), path.point(best)),
            "no_search",
            path.point(best),
        )
        if tested is None:
            result = finished(result, options, limit)
            if isinstance(target, Target):
                result = stated(result, options, target)
        else:
            result = with_tested(result, tested, options)
    timings = {"factorize": 0.0, **taken.loop.timings()}
    timings["total"] = time.perf_counter() - began
    return replace(result, timings=timings)


class _Evaluations:
    """Evaluations of networks on a path, as trials of a client.

    Args:
        path: The path.
        client: Gets a trial for each network.
        options: Of the evaluations.
    """

    def __init__(self, path: PricePath, client: Client, options: SearchOptions) -> None:
        self.path = path
        self.client = client
        self.loop = SearchLoop(path.problem, client, options, known=0)
        self.losses: dict[int, MeanSEM] = {}

    def evaluate(self, positions: Iterable[int]) -> None:
        """Evaluate networks that were not yet, each once."""
        for position in sorted(set(positions) - self.losses.keys()):
            point = self.path.point(position)
            index = self.client.attach_trial(dict(point))
            self.loop.failures = 0  # the smallest come first, and may all overflow
            self.loop.evaluate_all({index: point})
            completed = self.loop.experiment.trials[index].status.is_completed
            self.losses[position] = self.loop.last_loss() if completed else _FAILED

    def require(self, position: int) -> None:
        """Raise an EvaluationError if the evaluation of a network failed."""
        if self.losses[position] is _FAILED:
            reasons = [t.status_reason for t in self.loop.experiment.trials.values()]
            raise EvaluationError(
                "The network of the path that was asked for cannot be evaluated: "
                f"{next(filter(None, reversed(reasons)), 'the evaluation failed')}",
                self.client,
            )

    def objective(self, position: int) -> float:
        """Return what is minimised, of a network that was evaluated."""
        problem = self.path.problem
        ratio = float(self.path.table["compression_ratio"].iloc[position])
        loss = self.losses[position].mean
        if problem.minimize:
            return problem.gamma * loss + ratio
        return problem.gamma * loss - 1.0 / ratio


def _best(taken: _Evaluations, limit: TimeLimit) -> int:
    """Return the position of the least objective, by narrowing down the path."""
    last = len(taken.path) - 1
    taken.evaluate([*taken.path.spread(_SPREAD), last])
    while True:
        values = {position: taken.objective(position) for position in taken.losses}
        new = taken.path.beside_best(values)
        if not new or len(values) >= 2 * _SPREAD or not limit.leaves(0.0):
            best = min(values, key=lambda position: values[position])
            taken.require(best)
            return best
        taken.evaluate(new)


def _smallest(taken: _Evaluations, loss_at_most: float) -> int:
    """Return the position of the smallest network whose loss is surely low enough.

    Two standard errors below: the smallest that looks good enough by chance is not.
    """

    def enough(position: int) -> bool:
        mean, sem = taken.losses[position]
        if mean == 0.0 and is_dense(position) and not taken.path.problem.binary_loss:
            return True  # the standard error is a floor, and the loss exact
        return mean + 2.0 * sem <= loss_at_most

    def is_dense(position: int) -> bool:
        return set(taken.path.networks[position].values()) == {DENSE}

    low, high = -1, len(taken.path) - 1
    taken.evaluate([high])
    taken.require(high)
    if not enough(high):
        raise ValueError(
            f"The largest network on the path loses {taken.losses[high].mean:.4g}, "
            f"which is not surely below loss_at_most={loss_at_most:g}. Allow more"
            f"{'.' if is_dense(high) else ', or use at_max=' + repr(DENSE) + '.'}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        taken.evaluate([middle])
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _no_certificate(
    options: SearchOptions, evaluations: int, point: dict[str, float]
) -> PACCertificate:
    """Return the verdict on what was not searched."""
    return PACCertificate(
        delta=options.delta,
        epsilon=options.epsilon,
        level=options.level,
        score=math.inf,
        failure_probability=1.0,
        certifiable=False,
        reason=(
            "nothing is certified: the network was taken from the price path, without "
            "a search"
        ),
        challenger=(),
        incumbent=tuple(point.values()),
        num_observations=evaluations,
        reached="none",
    )
