"""A speed in place of gamma: the best network that is so many times faster."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
from ax.api.client import Client
from torch import nn

from ax_pac.ax_internals import experiment_of
from compression_adapters.evaluation.price_path import PricePath, price_path
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.network.latency import LatencyComparison
from compression_adapters.options import (
    AUTO,
    CompressionOptions,
    SearchOptions,
    read_speedup,
)
from compression_adapters.search.auto import search_auto
from compression_adapters.search.client import reweighted_client
from compression_adapters.search.dry_run import carrying, checked_problem
from compression_adapters.search.no_search import take_position
from compression_adapters.search.result import (
    CompressionResult,
    measured_time,
    summed,
    timed,
)
from compression_adapters.search.run import finished, search_problem
from compression_adapters.search.sample_size import most_samples
from compression_adapters.search.settle import (
    CLOSE,
    Measured,
    least_losses_within,
    nearest,
    replaced_network,
)
from compression_adapters.search.trials import fresh_seed

_MARGIN = 0.985
"""Predicted time that is aimed at, as a share of the time that is allowed."""

_BESIDE = 1.25
"""Networks of the path that give gamma are smaller and larger by this factor."""

_ABOVE = 1.3
"""Factor of the first gamma over the slope of the path, measured on ResNet18."""

_MEASURE_SECONDS = 6.0

_ENDS = 2
"""Networks that just meet the target by their predicted times, of which one is kept."""

_AIMS = 3
"""Times that the size which is aimed at is corrected by the measured one, at most."""

_JUST = 0.025
"""A network whose time is this close below what is allowed just meets it."""

_SMALLER = (0.97, 0.94, 0.9)
"""Sizes, as shares of that, of networks that are tried where those are too slow."""


def search_speedup(
    network: nn.Module,
    inputs: Any,
    options: CompressionOptions,
    *,
    max_gammas: int = 5,
) -> CompressionResult:
    """Find the best network whose measured time is a given share of the original's.

    The size is the time of the whole network, predicted from a table of the layers. A
    prediction is a few per cent off, which a target cannot be: so the network of the
    price path that should just meet it is measured first, and the target of the
    prediction is corrected by what that shows. The path also gives the gamma at which
    such a network is the best: the slope of its ratio over its loss there. One search
    at that gamma ends with a network, which is measured; if its time is far from what
    is allowed, the next gamma is another. All evaluations serve every gamma.

    The incumbent of a search balances loss and speed, and so is somewhat faster than
    asked for, or slower. What is kept is the network that just meets the target with
    the least loss, of all that were evaluated, those of the price path, and these made
    smaller or larger to fit (`least_losses_within`).

    Args:
        network: See `compress`.
        inputs: See `compress`.
        options: With `speedup` as their target.
        max_gammas: Searches, at most.

    Returns:
        The network that is fast enough and loses the least, refitted. Its `latency` is
        measured, its `gammas` has one row per search. The certificate is that of the
        search at its gamma: no network beats the search's incumbent in
        `gamma * loss + ratio` by more than delta. With d the difference of the
        network's objective to the incumbent's (`beside_incumbent`), no network that is
        as fast loses less by more than `(delta + d) / gamma`. Where no network is fast
        enough, it is the fastest one, without a certificate and with a warning.

    Warns:
        UserWarning: when the speed cannot be reached; with the fastest that was
            measured.

    Source: none in Ma et al. 2019.
    """
    began = time.perf_counter()
    asked = options.target.speedup
    if asked is None:
        raise ValueError("Expected a speedup as the target; got none.")
    allowed = read_speedup(asked)
    size = "latency" if options.problem.size == "weights" else options.problem.size
    search = replace(options.search, refit=False)
    problem = checked_problem(
        network, inputs, 1.0, replace(options.problem, size=size, size_of="network")
    )
    prepared = time.perf_counter() - began
    path = price_path(problem)
    fastest = _measured(problem, path, 0)
    if fastest.low > allowed:
        return _unreachable(path, options, fastest, began, prepared)
    position = _place(path, _aim(problem, path, allowed))
    if not search.search:
        return _taken(path, options, position, allowed, began, prepared)
    gamma = _slope(path, position, search.seed)
    low = high = None  # gammas whose networks were faster than needed, or too slow
    results: list[CompressionResult] = []
    client: Client | None = None
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, float]] = []
    for number in range(1, max_gammas + 1):
        weighted = replace(problem, gamma=gamma)
        result, known = _search(weighted, search, options, inputs, client, number)
        client, problem = result.client, replace(result.problem, gamma=1.0)
        timings.append(result.timings)
        found = measured_time(
            problem, result.network, result.ranks, seconds=_MEASURE_SECONDS
        )
        results.append(replace(result, latency=found))
        meets = found.high <= allowed  # surely, for it is measured again at the end
        rows.append(
            {
                "gamma": gamma,
                "compression_ratio": result.size_ratio,
                "measured": found.ratio,
                "loss": result.loss.mean,
                "loss_sem": result.loss.sem,
                "meets_target": meets,
                "certified": result.certificate.holds,
                "evaluations": len(result.trials) - known,
            }
        )
        if abs(found.ratio / allowed - 1.0) <= CLOSE:
            break
        if meets:
            low = gamma
        else:
            high = gamma
        gamma = _next_gamma(gamma, low, high, found.ratio / allowed)
    settling = time.perf_counter()
    with carrying(results[-1].client):
        kept = _settled(results, options, allowed)
    spent = {
        **summed(timings),
        "factorize": prepared,
        "settle": time.perf_counter() - settling,
        "total": time.perf_counter() - began,
    }
    return replace(kept, timings=spent, gammas=pd.DataFrame(rows))


def _settled(
    results: list[CompressionResult], options: CompressionOptions, allowed: float
) -> CompressionResult:
    """End at the network that just meets the target with the least loss.

    That is hardly ever the incumbent of a search, which balances the loss against more
    speed than was asked for, or a little less. See `least_losses_within`. The
    prediction is corrected by what the network measures until that is close to what is
    allowed.
    """
    near = nearest(results, _time, allowed)
    path = price_path(near.problem)
    smallest = float(path.table["compression_ratio"].iloc[0])
    off = statistics.median(_time(result) / result.size_ratio for result in results)

    measured: Measured = {}

    def networks(share: float, number: int) -> list[CompressionResult]:
        """Return the networks that should take a share of what is allowed."""
        aim = max(share * _MARGIN * allowed / off, smallest)
        points = least_losses_within(path, results, aim, measured)[:number]
        return [replaced_network(near, point, options.search) for point in points]

    for _ in range(_AIMS):
        (best,) = networks(1.0, 1)
        found = measured_time(
            best.problem, best.network, best.ranks, seconds=_MEASURE_SECONDS
        )
        off = found.ratio / best.size_ratio
        if allowed * (1.0 - _JUST) <= found.ratio <= allowed:
            break

    def ends() -> Iterator[CompressionResult]:
        """Give the networks to keep; smaller ones only where they are asked for."""
        yield from networks(1.0, _ENDS)
        for share in _SMALLER:
            yield from networks(share, 1)

    return _kept(ends(), options, allowed)


def _kept(
    fast: Iterable[CompressionResult], options: CompressionOptions, allowed: float
) -> CompressionResult:
    """Refit the network that loses the least, and measure it once more.

    It may be too slow after all; then the next one is taken, and at last the fastest.
    """
    ended: list[CompressionResult] = []
    for result in fast:
        ended.append(timed(finished(result, options.search)))
        if _time(ended[-1]) <= allowed:
            return ended[-1]
    kept = min(ended, key=_time)
    warnings.warn(
        f"Measured a last time, the network takes {_time(kept):.1%} of the time, more "
        f"than the {allowed:.1%} that were asked for: measurements of this machine "
        "differ by that much. Ask for a little more, or when less else is running.",
        stacklevel=3,
    )
    return kept


def _time(result: CompressionResult) -> float:
    """Return the measured share of the original's time."""
    return math.inf if result.latency is None else result.latency.ratio


def _place(path: PricePath, ratio: float) -> int:
    """Return the place of the largest network within a ratio, or of the smallest."""
    smallest = float(path.table["compression_ratio"].iloc[0])
    return path.at_ratio(max(ratio, smallest))


def _aim(problem: CompressionProblem, path: PricePath, allowed: float) -> float:
    """Return the predicted ratio whose network should measure what is allowed.

    The target, corrected by measurements of the network that should just meet it: a
    network that is faster than asked for loses more than it has to.
    """
    aim = _MARGIN * allowed
    for _ in range(_AIMS):
        position = _place(path, aim)
        found = _measured(problem, path, position)
        predicted = float(path.table["compression_ratio"].iloc[position])
        aim = _MARGIN * allowed * predicted / found.ratio
        if allowed * (1.0 - _JUST) <= found.ratio <= allowed:
            return predicted
    return aim


def _measured(
    problem: CompressionProblem, path: PricePath, position: int
) -> LatencyComparison:
    """Measure a network of the path."""
    return measured_time(
        problem,
        path.network(position),
        path.networks[position],
        seconds=_MEASURE_SECONDS,
    )


def _slope(path: PricePath, position: int, seed: int) -> float:
    """Return the gamma at which a network of the path is the best beside others on it.

    Where gamma * loss + ratio is least, the ratio falls gamma times as fast as the loss
    rises. Both are taken between a smaller and a larger network, on the same samples.
    """
    sizes = path.table["compression_ratio"]
    ratio = float(sizes.iloc[position])
    smallest, last = float(sizes.iloc[0]), len(path) - 1
    lower = path.at_ratio(max(ratio / _BESIDE, smallest))
    upper = path.at_ratio(min(ratio * _BESIDE, 1.0))
    lower, upper = max(0, min(lower, position - 1)), min(last, max(upper, position + 1))
    losses = [
        sum(
            float(
                path.problem.sample_losses(
                    path.networks[place], seed=fresh_seed(seed, 100 + batch)
                )
                .double()
                .mean()
            )
            for batch in range(4)
        )
        / 4.0
        for place in (lower, upper)
    ]
    lost = losses[0] - losses[1]
    gained = float(sizes.iloc[upper] - sizes.iloc[lower])
    if lost <= 0.0 or gained <= 0.0:
        raise ValueError(
            "Networks that are faster lose no more, so that no speed has to be traded "
            f"for the loss: {losses[0]:.4g} at a ratio of {sizes.iloc[lower]:.4g}, "
            f"{losses[1]:.4g} at {sizes.iloc[upper]:.4g}. Ask for a larger speedup, or "
            "take a network from the path (search=False)."
        )
    # A search finds networks that the path does not have, which lose less at the same
    # ratio: the slope is theirs at a smaller one.
    return _ABOVE * gained / lost


def _next_gamma(
    gamma: float, low: float | None, high: float | None, excess: float
) -> float:
    """Return the gamma to try next: a small one gives a faster network.

    Args:
        gamma: The last one.
        low: The largest that gave a network that is fast enough.
        high: The smallest that gave one that is not.
        excess: Measured time over what is allowed, of the last one.
    """
    if low is not None and high is not None:
        return math.sqrt(low * high)
    # The loss grows about as the fourth power of what is left out.
    step = min(max(excess**-4.0, 1.0 / 8.0), 8.0)
    return gamma * (min(step, 0.8) if excess > 1.0 else max(step, 1.25))


def _search(
    problem: CompressionProblem,
    search: SearchOptions,
    options: CompressionOptions,
    inputs: Any,
    client: Client | None,
    number: int,
) -> tuple[CompressionResult, int]:
    """Search at one gamma; return the result and how many evaluations were known."""
    if client is None and options.problem.num_samples == AUTO:
        most = most_samples(problem)
        return search_auto(problem, search, most=most), 0
    known = 0
    if client is not None:
        client = reweighted_client(client, problem)
        known = len(experiment_of(client).trials)
    named = replace(search, name=f"{search.name}/{number}")
    return search_problem(problem, named, client=client), known


def _taken(
    path: PricePath,
    options: CompressionOptions,
    position: int,
    allowed: float,
    began: float,
    prepared: float,
) -> CompressionResult:
    """Take the network from the path, without a search; a smaller one if it is slow."""
    while True:
        result = timed(take_position(path, options.search, position))
        if result.latency is None or result.latency.ratio <= allowed or position == 0:
            break
        ratio = float(path.table["compression_ratio"].iloc[position])
        wanted = _MARGIN * ratio * allowed / result.latency.ratio
        position = min(position - 1, _place(path, wanted))
    spent = {"factorize": prepared, "total": time.perf_counter() - began}
    return replace(result, timings=result.timings | spent)


def _unreachable(
    path: PricePath,
    options: CompressionOptions,
    fastest: LatencyComparison,
    began: float,
    prepared: float,
) -> CompressionResult:
    """Give the fastest network, and say that it is not fast enough."""
    asked = options.target.speedup
    reason = (
        f"a speedup of {asked:g} cannot be reached with these layers: the fastest "
        f"network, with every layer at its smallest, is {fastest.speedup:.3g} times "
        "faster"
    )
    result = timed(take_position(path, options.search, 0))
    certificate = replace(result.certificate, reason=reason)
    warnings.warn(
        f"{reason[0].upper()}{reason[1:]}, and is what is returned. Ask for less, add "
        "layers or choose another decomposition (choose), or time a larger batch "
        "(latency_batch).",
        stacklevel=2,
    )
    spent = {"factorize": prepared, "total": time.perf_counter() - began}
    return replace(result, certificate=certificate, timings=result.timings | spent)
