"""What a search evaluates first."""

from __future__ import annotations

from typing import Literal, get_args

from ax.api.client import Client

from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.rank_space.parameters import parameterization_from_ranks

Start = Literal["auto", "line", "space-filling"]
"""What is evaluated first, see `attach_line`."""


# Coordinates of all layers at once; the dense network last, whose SEM of exactly zero
# takes its floor from those before it.
_LINE = (0.7, 0.8, 0.9, 1.0)


_DEEP = 4


def begins_on_line(
    start: Start, problem: CompressionProblem, workers: int | None
) -> bool:
    """Say whether a search begins with the networks of `attach_line`.

    Args:
        start: `"auto"` for: from four coordinates on, where evaluations are made one
            after the other.
        problem: The problem.
        workers: Of Ray, or None.

    Raises:
        ValueError: for another start, or a line on workers.
    """
    known = get_args(Start)
    if start not in known or (start == "line" and workers is not None):
        raise ValueError(
            f"start must be one of {', '.join(known)}, and 'line' goes without "
            f"workers; got {start!r} and workers={workers}."
        )
    deep = len(problem.parameters) >= _DEEP
    return start == "line" or (start == "auto" and deep and workers is None)


def attach_line(client: Client, problem: CompressionProblem, *, most: int) -> None:
    """Ask for networks whose layers are all cut alike, before anything else.

    In a deep network a random point has some layer cut to almost nothing, and so have
    all points of a space-filling design: none of them says what a useful network costs.
    On the diagonal of the cube there is one. Measured on ResNet18 with eight layers
    (docs/benchmarks/networks.md): at gamma = 2 searches are certified that were not
    before, at .15 after 80 evaluations in place of 130, and at .02 no sooner, but with
    a lower objective.

    Args:
        client: Without trials; those of the line are running afterwards.
        problem: The problem.
        most: How many.
    """
    for point in line_points(problem)[:most]:
        client.attach_trial(dict(point))


def line_points(problem: CompressionProblem) -> list[dict[str, float]]:
    """Return the networks whose layers are all cut alike, as `attach_line` asks.

    Args:
        problem: The problem.

    Returns:
        Values of every coordinate, in [0, 1]; at most four points, none twice.

    Source: not in Ma et al. 2019.
    """
    points: list[dict[str, float]] = []
    for u in _LINE:
        ranks = problem.ranks({parameter.name: u for parameter in problem.parameters})
        point = parameterization_from_ranks(ranks, problem.parameters)
        if point not in points:
            points.append(point)
    return points
