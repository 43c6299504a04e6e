"""Search with a number of samples chosen from wall times."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ax.api.client import Client

from ax_pac.strategy.criteria import PAC_NODE, default_initial_trials
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.search.client import new_client
from compression_adapters.search.result import CompressionResult, summed
from compression_adapters.search.run import finished, search_problem
from compression_adapters.search.sample_size import (
    SampleSize,
    balanced_sample_size,
    record_sample_size,
    recorded_sample_size,
)
from compression_adapters.search.time_limit import NO_LIMIT, TimeLimit

_MODEL_TRIALS: Final = 3


def search_auto(
    problem: CompressionProblem,
    options: SearchOptions,
    *,
    most: int,
    client: Client | None = None,
    limit: TimeLimit = NO_LIMIT,
) -> CompressionResult:
    """Search with as many samples per evaluation as take the optimiser's time.

    The search starts with 50 samples. After the initial design and three proposals of
    the model, the number is chosen, once, from the wall times so far. If it is more
    than 50, the search restarts, so that all its evaluations have the same size; the
    first evaluations only serve to measure times. If it is 50, the search continues.

    The choice depends on wall times, so two runs may differ although their seeds are
    equal. It is kept with the client: a continued search uses it again.

    Args:
        problem: A problem with `num_samples` of 50.
        options: How; `max_trials` counts the evaluations of the search itself.
        most: See `most_samples`.
        client: Of an earlier search that chose its number of samples.
        limit: When to end.

    Returns:
        The result; its `sample_size` is None if the search ended before a choice.
        `timings` includes the first evaluations.

    Raises:
        ValueError: when the client's search had a fixed number of samples.
    """
    if client is not None:
        chosen = recorded_sample_size(client)
        if chosen is None:
            raise ValueError(
                "The client's search did not choose its number of samples; continue it "
                "with the num_samples that it was made with."
            )
        problem = replace(problem, num_samples=chosen.num_samples)
        return search_problem(problem, options, client=client, limit=limit)
    dim = len(problem.parameters)
    initial = options.num_initial_trials or default_initial_trials(dim)
    first_trials = min(initial + _MODEL_TRIALS, options.max_trials)
    begin = replace(options, max_trials=first_trials, refit=False)
    first = search_problem(problem, begin, limit=limit)
    proposed = int((first.trials["node"] == PAC_NODE).sum())
    if first.stop_reason != "max_trials" or proposed == 0:
        return finished(first, options, limit)
    chosen = _choose(first, proposed, most)
    same = chosen.num_samples == problem.num_samples
    left = options.max_trials - len(first.trials)
    if same and left < 2:
        record_sample_size(first.client, chosen)
        return finished(replace(first, sample_size=chosen), options, limit)
    client = first.client if same else new_client(problem)
    record_sample_size(client, chosen)
    result = search_problem(
        replace(problem, num_samples=chosen.num_samples),
        replace(options, max_trials=left) if same else options,
        client=client,
        limit=limit,
    )
    return replace(result, timings=summed([first.timings, result.timings]))


def _choose(first: CompressionResult, proposed: int, most: int) -> SampleSize:
    """Choose from the times of the first trials."""
    times, trials = first.timings, len(first.trials)
    # The space-filling points take almost no time to propose.
    overhead = (times["fit"] + times["propose"]) / proposed
    per_sample = times["evaluate"] / (trials * first.problem.num_samples)
    num_samples = balanced_sample_size(overhead, per_sample, most)
    return SampleSize(num_samples, overhead, per_sample, trials, most)
