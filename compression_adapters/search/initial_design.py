"""The first points of a search."""

from __future__ import annotations

from typing import Literal

from ax.api.client import Client

from ax_pac.ax_internals import experiment_of, node_of
from compression_adapters.evaluation.price_path import price_path
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.rank_space.parameters import parameterization_from_ranks

Beginning = Literal["path", "line", "space-filling"]

# Coordinates of all layers at once; the dense network comes last, because its SEM of
# exactly zero is floored by the SEMs of those before it.
_DIAGONAL = (0.7, 0.8, 0.9, 1.0)
# From so many coordinates on the diagonal pays.
_MANY_COORDINATES = 4
# Networks of the price path, beside the dense one, and the size of the smallest.
_ON_PATH = 4
_SMALLEST_ON_PATH = 0.04
# With those between the best one and its neighbours.
_MOST_ON_PATH = 9


def beginning(options: SearchOptions, problem: CompressionProblem) -> Beginning:
    """Return what a search evaluates first.

    Args:
        options: `start="auto"` stands for the price path with data-aware factors; with
            factors of the weights alone, for the diagonal from four coordinates on. On
            workers it is space-filling.
        problem: The problem.
    """
    if options.start != "auto":
        return options.start
    if options.workers is not None:
        return "space-filling"
    if problem.calibration is not None:
        return "path"
    many = len(problem.parameters) >= _MANY_COORDINATES
    return "line" if many else "space-filling"


def attach_first_points(
    client: Client, problem: CompressionProblem, options: SearchOptions
) -> bool:
    """Begin with networks that are known to be of interest.

    In a deep network, a random point cuts some layer to almost nothing, and so do all
    points of a space-filling design: none of them is informative about useful networks.

    Args:
        client: Without trials; the first ones are running afterwards.
        problem: The problem.
        options: `start` says which, `max_trials` how many at most.

    Returns:
        Whether there are any.
    """
    begin = beginning(options, problem)
    if begin == "space-filling":
        return False
    points = path_points(problem) if begin == "path" else diagonal_points(problem)
    for point in points[: options.max_trials]:
        client.attach_trial(dict(point))
    return True


def path_points(problem: CompressionProblem) -> list[dict[str, float]]:
    """Return networks on the price path, with sizes that grow geometrically, and dense.

    Args:
        problem: The problem.

    Returns:
        Values of every coordinate, in [0, 1]; at most five distinct points.

    Source: not in Ma et al. 2019.
    """
    path = price_path(problem)
    positions = path.spread(_ON_PATH, smallest=_SMALLEST_ON_PATH)
    return [path.point(position) for position in (*positions, len(path) - 1)]


def attach_beside_best(
    client: Client, problem: CompressionProblem, options: SearchOptions
) -> bool:
    """Narrow down where the price path is best, before the model proposes.

    Whether it goes on depends on the client's trials alone, so that a search that was
    interrupted goes on in the same way.

    Args:
        client: All its trials are evaluated.
        problem: The problem.
        options: As for `attach_first_points`.

    Returns:
        Whether there are new trials, which are running afterwards.
    """
    if beginning(options, problem) != "path":
        return False
    trials = experiment_of(client).trials.values()
    if len(trials) >= min(_MOST_ON_PATH, options.max_trials) or any(
        node_of(trial.generator_runs[0]) is not None for trial in trials
    ):
        return False
    path = price_path(problem)
    sign = 1.0 if problem.minimize else -1.0
    data = experiment_of(client).lookup_data().df
    objectives = data[data["metric_name"] == "objective"].set_index("trial_index")
    values = {}
    for trial in trials:
        position = path.position_of(problem.ranks(trial.arm.parameters))
        if position is not None and trial.index in objectives.index:
            values[position] = sign * float(objectives["mean"][trial.index])
    new = path.beside_best(values) if values else []
    for position in new[: options.max_trials - len(trials)]:
        client.attach_trial(path.point(position))
    return bool(new)


def diagonal_points(problem: CompressionProblem) -> list[dict[str, float]]:
    """Return the networks whose layers are all cut alike.

    The diagonal of the cube contains useful networks also where nothing is known of the
    layers' errors. Measured on ResNet18 with eight layers and factors of the weights
    alone (docs/benchmarks/networks.md): at gamma = 2, searches are certified that were
    not before; at .15, after 80 evaluations instead of 130; at .02, no sooner, but with
    a lower objective.

    Args:
        problem: The problem.

    Returns:
        Values of every coordinate, in [0, 1]; at most four distinct points.

    Source: not in Ma et al. 2019.
    """
    points: list[dict[str, float]] = []
    for u in _DIAGONAL:
        ranks = problem.ranks({parameter.name: u for parameter in problem.parameters})
        point = parameterization_from_ranks(ranks, problem.parameters)
        if point not in points:
            points.append(point)
    return points
