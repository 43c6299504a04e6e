"""The first points of a search."""

from __future__ import annotations

from ax.api.client import Client

from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.rank_space.parameters import parameterization_from_ranks

# Coordinates of all layers at once; the dense network comes last, because its SEM of
# exactly zero is floored by the SEMs of those before it.
_DIAGONAL = (0.7, 0.8, 0.9, 1.0)
# From so many coordinates on the diagonal pays.
_MANY_COORDINATES = 4


def begins_on_diagonal(options: SearchOptions, problem: CompressionProblem) -> bool:
    """Return whether a search begins with the networks of `attach_diagonal`.

    Args:
        options: `start="auto"` stands for: from four coordinates on, where evaluations
            are made one after the other.
        problem: The problem.
    """
    if options.start == "auto":
        many = len(problem.parameters) >= _MANY_COORDINATES
        return many and options.workers is None
    return options.start == "line"


def attach_diagonal(client: Client, problem: CompressionProblem, *, most: int) -> None:
    """Begin with networks on the diagonal, whose layers are all cut alike.

    In a deep network, a random point cuts some layer to almost nothing, and so do all
    points of a space-filling design: none of them is informative about useful networks.
    The diagonal of the cube contains such a network. Measured on ResNet18 with eight
    layers (docs/benchmarks/networks.md): at gamma = 2, searches are certified that were
    not before; at .15, after 80 evaluations instead of 130; at .02, no sooner, but with
    a lower objective.

    Args:
        client: Without trials; those of the diagonal are running afterwards.
        problem: The problem.
        most: Largest number of points.
    """
    for point in diagonal_points(problem)[:most]:
        client.attach_trial(dict(point))


def diagonal_points(problem: CompressionProblem) -> list[dict[str, float]]:
    """Return the networks whose layers are all cut alike, as `attach_diagonal` asks.

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
