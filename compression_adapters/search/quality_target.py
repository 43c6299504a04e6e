"""The smallest network of a stated quality, tested on inputs that chose nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from torch import Tensor, nn

from compression_adapters.evaluation.finishing import FinishRecord
from compression_adapters.evaluation.price_path import PricePath
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.evaluation.quality import (
    CHOOSE,
    AccuracyDrop,
    Agreement,
    LossOf,
    Quality,
    QualityStatement,
    QualityTest,
    expected_to_pass,
    quality_without_target,
)
from compression_adapters.options import SearchOptions, Target
from compression_adapters.search.result import CompressionResult
from compression_adapters.search.run import finished_network
from compression_adapters.search.time_limit import NO_LIMIT, TimeLimit

_SURELY: Final = 4.0
"""Standard errors by which the first network that is tested is better than it must.

More than a test needs, because the sequence ends at its first failure, and the sizes at
which a bisection on noisy estimates arrives look better than they are."""

_STEPS: Final = 5
"""Tests from there to the network that is expected to pass in half of all cases."""

_STEP: Final = 0.92
"""Factor from one size to the next smaller one, below that."""

_MOST_TESTS: Final = 16


@dataclass(frozen=True, eq=False)
class TestedNetwork:
    """A network that was tested on the held-out inputs.

    Args:
        place: Which of the candidates it is.
        network: As it would be returned.
        finish: What was done to it after the search.
        statement: What is true of it.
    """

    place: int
    network: nn.Module
    finish: FinishRecord | None
    statement: QualityStatement


def largest_first(
    test: QualityTest,
    candidates: Iterable[
        tuple[int, Callable[[], tuple[nn.Module, FinishRecord | None]]]
    ],
    error: float,
    limit: TimeLimit = NO_LIMIT,
) -> TestedNetwork:
    """Test networks from the largest to the smallest, until one fails.

    To take the smallest of many networks that look good enough on the same inputs is
    to select on these inputs: the more networks there are, the likelier one of them
    passes by chance. Tested in an order that is fixed beforehand, up to the first
    failure, they need no correction. Let a candidate be bad if it does not meet the
    target, and let b be the first bad one in the order. A bad network can be returned
    only if the test of b passes, because the sequence ends at the first failure and all
    candidates before b are good. That test alone is wrong with probability at most
    `error`, and so is the whole procedure:

        P(a bad network is returned) <= P(the test of b passes) <= error

    The order, and where it starts, may depend on anything but the held-out inputs.
    From the largest network on, qualities fall, so that the sequence ends near the
    smallest good one.

    Args:
        test: The quality with its target, and the held-out inputs.
        candidates: From the largest: which one it is, and how it is made.
        error: Allowed probability of returning a network that misses the target.
        limit: When to end; to end early is no selection.

    Returns:
        The last network that passed; if not even the first one did, the first, whose
        statement does not hold.

    Raises:
        ValueError: when there is no candidate.

    Source: fixed-sequence testing, Maurer et al. 1995; for the choice of models,
        Angelopoulos et al. 2021 (learn then test).
    """
    last: TestedNetwork | None = None
    tested = 0
    for place, make in candidates:
        network, finish = make()
        statement = test.statement(network, error)
        tested += 1
        if statement.holds or last is None:
            last = TestedNetwork(place, network, finish, statement)
        if not statement.holds or not limit.leaves(0.0):
            break
    if last is None:
        raise ValueError("There is no network to test: no layer can be cut.")
    found = replace(last, statement=replace(last.statement, tested=tested))
    if not found.statement.holds:
        warnings.warn(
            "No network that is smaller than the original one was shown to meet the "
            f"target; the closest one {found.statement.sentence()}. Pass more inputs, "
            "or ask for less.",
            stacklevel=4,
        )
    return found


def quality_of(problem: CompressionProblem, target: Target) -> Quality:
    """Return what a target is about, or what is said without one.

    Args:
        problem: The problem.
        target: What is asked for.

    Raises:
        ValueError: when labels are needed and there are none.
    """
    if target.agreement_at_least is not None:
        return Agreement(target.agreement_at_least)
    if target.accuracy_drop_at_most is not None:
        if problem.batch_of(0).labels is None:
            raise ValueError(
                f"accuracy_drop_at_most={target.accuracy_drop_at_most} needs labels, "
                "and there are none. Pass labels=, or a dataset of inputs with labels; "
                "agreement_at_least needs none."
            )
        return AccuracyDrop(target.accuracy_drop_at_most)
    if target.loss_at_most is not None:
        return LossOf(problem, target.loss_at_most)
    return quality_without_target(problem)


def quality_test(
    problem: CompressionProblem, options: SearchOptions, target: Target
) -> QualityTest:
    """Prepare the test of a quality, or refuse a target that it cannot show.

    Args:
        problem: With held-out inputs.
        options: `epsilon` is the allowed error.
        target: A quality.
    """
    test = QualityTest(problem, quality_of(problem, target))
    test.require_enough(options.epsilon)
    return test


def choosing_seeds(problem: CompressionProblem, seed: int) -> list[int]:
    """Return the seeds of the samples that a network is chosen by.

    Args:
        problem: Says how many samples a seed gives.
        seed: Of the search.
    """
    number = -(-CHOOSE // problem.num_samples)
    state = np.random.SeedSequence((seed, 0, 4)).generate_state(number)
    return [int(one) for one in state]


def smallest_on_path(
    path: PricePath,
    options: SearchOptions,
    test: QualityTest,
    limit: TimeLimit = NO_LIMIT,
) -> tuple[int, TestedNetwork]:
    """Return the smallest network of the price path that is shown to meet a target.

    The path is bisected on samples of trials, for the smallest network that would
    surely pass, and for the one that would in half of all cases. From the one to the
    other in five steps, and further on in smaller ones, networks are finished (see
    `finish_network`) and tested on the held-out inputs, see `largest_first`.

    Args:
        path: The price path.
        options: `seed`, `refit`, and `epsilon`, the allowed error.
        test: From `quality_test`.
        limit: When to end.

    Returns:
        The position on the path, and what was found.
    """
    problem, seeds = path.problem, choosing_seeds(path.problem, options.seed)
    measured: dict[int, Tensor] = {}

    def is_expected(position: int, surely: float) -> bool:
        if position not in measured:
            measured[position] = test.of_ranks(path.networks[position], seeds)
        return expected_to_pass(
            measured[position],
            test.quality,
            test.held_out.count,
            options.epsilon,
            surely=surely,
        )

    # The dense network, which is the last one, meets every target.
    largest = max(len(path) - 2, 0)
    sure = first_that(largest, lambda position: is_expected(position, _SURELY))
    likely = first_that(sure, lambda position: is_expected(position, 0.0))
    positions = _between(path, sure, likely)

    def made(position: int) -> tuple[nn.Module, FinishRecord | None]:
        network = path.network(position)
        ranks = path.networks[position]
        return finished_network(problem, network, ranks, options, limit)

    found = largest_first(
        test,
        # mypy cannot infer a lambda with a default, which keeps each position apart.
        ((p, lambda p=p: made(p)) for p in positions),  # type: ignore[misc]
        options.epsilon,
        limit,
    )
    return found.place, found


def best_of_results(
    results: Sequence[CompressionResult],
    options: SearchOptions,
    test: QualityTest,
    limit: TimeLimit = NO_LIMIT,
) -> CompressionResult:
    """Return the smallest network of several searches that is shown to meet a target.

    Args:
        results: Of searches on the same problem.
        options: `refit`, and `epsilon`, the allowed error.
        test: From `quality_test`.
        limit: When to end.

    Returns:
        One of the results, finished, with its statement.
    """
    ordered: list[CompressionResult] = []
    for result in sorted(results, key=lambda r: -r.size_ratio):
        if result.ranks not in [one.ranks for one in ordered]:
            ordered.append(result)

    def made(result: CompressionResult) -> tuple[nn.Module, FinishRecord | None]:
        return finished_network(
            result.problem, result.network, result.ranks, options, limit
        )

    found = largest_first(
        test,
        # As above.
        ((i, lambda r=r: made(r)) for i, r in enumerate(ordered)),  # type: ignore[misc]
        options.epsilon,
        limit,
    )
    return with_tested(ordered[found.place], found, options)


def with_tested(
    result: CompressionResult, found: TestedNetwork, options: SearchOptions
) -> CompressionResult:
    """Put a network that was tested into its result.

    Args:
        result: Of the same ranks.
        found: The network.
        options: Of the search.
    """
    changed = replace(result, statement=found.statement, finish=found.finish)
    if found.network is result.network:
        return changed
    return replace(
        changed, network=found.network, loss=result.fresh_loss(found.network)
    )


def stated(
    result: CompressionResult, options: SearchOptions, target: Target
) -> CompressionResult:
    """Add a statement about quality, where inputs were held out for one.

    Nothing was chosen by these inputs: the one network is tested once.

    Args:
        result: The result, with the network that is returned.
        options: `epsilon` is the allowed error.
        target: What was asked for.
    """
    if result.problem.held_out is None or result.statement is not None:
        return result
    quality = quality_of(result.problem, target)
    test = QualityTest(result.problem, quality)
    statement = test.statement(result.network, options.epsilon)
    return replace(result, statement=statement)


def first_that(last: int, passes: Callable[[int], bool]) -> int:
    """Return the first position up to `last` that passes, by bisection; else `last`.

    Args:
        last: The last position.
        passes: Whether a position does; true of all later ones, too.
    """
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _between(path: PricePath, sure: int, likely: int) -> list[int]:
    """Return positions from a larger network to a smaller one, and further down."""
    sizes = path.table["compression_ratio"]
    begin, end, smallest = (float(sizes.iloc[p]) for p in (sure, likely, 0))
    wanted = [begin * (end / begin) ** (i / _STEPS) for i in range(_STEPS + 1)]
    while len(wanted) < _MOST_TESTS and wanted[-1] * _STEP >= smallest:
        wanted.append(wanted[-1] * _STEP)
    found = [min(path.at_ratio(max(one, smallest)), sure) for one in wanted]
    return sorted({sure, *found}, reverse=True)
