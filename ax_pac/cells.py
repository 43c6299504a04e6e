"""Cells of the search space: points that are the same thing under other coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

CellEdges = Mapping[str, Sequence[float]]
"""Parameter name to the edges of its bins, in the parameter's own units."""

FrozenEdges = tuple[tuple[str, tuple[float, ...]], ...]


def frozen_edges(cells: CellEdges | FrozenEdges | None) -> FrozenEdges:
    """Return edges by parameter as a hashable value, checked.

    Args:
        cells: Edges by parameter; None or empty for no cells.

    Raises:
        ValueError: When a parameter has fewer than two edges, or edges that are not
            finite and strictly increasing.

    Example:
        >>> frozen_edges({"x": [0, 0.5, 1]})
        (('x', (0.0, 0.5, 1.0)),)
    """
    items = cells.items() if isinstance(cells, Mapping) else cells or ()
    frozen = tuple((str(name), tuple(map(float, edges))) for name, edges in items)
    for name, edges in frozen:
        if (
            len(edges) < 2
            or not all(map(math.isfinite, edges))
            or any(low >= high for low, high in pairwise(edges))
        ):
            raise ValueError(
                f"the edges of the cells of {name!r} must be two or more finite, "
                f"strictly increasing numbers; got {len(edges)}: {edges[:4]}..."
            )
    return frozen


@dataclass(frozen=True)
class Cells:
    """A grid of cells over the box; all points of a cell have the same objective.

    Coordinates that are rounded before they are used make plateaus: two points of one
    cell are the same thing, so a challenger in the incumbent's cell is none. Bin i of a
    coordinate is `[edges[i], edges[i + 1])`, the last one closed; the canonical point
    of a cell is its centre.

    Args:
        edges: Edges of the bins of each coordinate; empty for one without bins.

    Example:
        >>> cells = Cells(((0.0, 0.5, 1.0), ()))
        >>> cells.canonical(torch.tensor([[0.1, 0.3], [0.5, 0.7]]).double())
        tensor([[0.2500, 0.3000],
                [0.7500, 0.7000]], dtype=torch.float64)
    """

    edges: tuple[tuple[float, ...], ...]

    @property
    def number(self) -> float:
        """How many cells there are; infinite with a coordinate without bins."""
        return math.prod(len(edges) - 1 if edges else math.inf for edges in self.edges)

    def canonical(self, points: Tensor) -> Tensor:
        """Return the centres of the cells that points lie in.

        Args:
            points: Shape `N x d`.

        Returns:
            Shape `N x d`; coordinates without bins as they were.
        """
        columns = []
        for column, bins in zip(points.detach().unbind(-1), self._bins, strict=True):
            columns.append(column if bins is None else bins.centres[bins.of(column)])
        return torch.stack(columns, dim=-1)

    def are_same(self, points: Tensor, point: Tensor) -> Tensor:
        """Whether each point is in the cell of another one.

        Args:
            points: Shape `N x d`.
            point: Shape `1 x d`.

        Returns:
            Booleans. Shape `N`.
        """
        return (self.canonical(points) == self.canonical(point)).all(-1)

    def neighbours(self, points: Tensor) -> Tensor:
        """Return the canonical points one bin away along one coordinate.

        Args:
            points: Canonical points. Shape `N x d`.

        Returns:
            Shape `M x d` with M at most `2 N d`.
        """
        found = [points[:0]]
        for j, bins in enumerate(self._bins):
            if bins is None:
                continue
            here = bins.of(points[:, j])
            for there in (here - 1, here + 1):
                inside = (there >= 0) & (there < len(bins.centres))
                moved = points[inside]
                moved[:, j] = bins.centres[there[inside]]
                found.append(moved)
        return torch.cat(found)

    def all_points(self) -> Tensor:
        """Return the canonical point of every cell, `number x d`.

        Raises:
            ValueError: When a coordinate has no bins.
        """
        if not math.isfinite(self.number):
            raise ValueError("a coordinate without bins has no finite set of points")
        grid = itertools.product(*(b.centres.tolist() for b in self._bins if b))
        return torch.tensor(list(grid), dtype=torch.float64)

    @cached_property
    def _bins(self) -> tuple[_Bins | None, ...]:
        """The bins of each coordinate."""
        return tuple(_Bins(edges) if edges else None for edges in self.edges)


class _Bins:
    """The bins of one coordinate, as tensors.

    Args:
        edges: Strictly increasing.
    """

    def __init__(self, edges: tuple[float, ...]) -> None:
        points = torch.tensor(edges, dtype=torch.float64)
        self._inner = points[1:-1].contiguous()
        # To the last bit what `(low + high) / 2` gives in Python.
        self.centres = (points[:-1] + points[1:]) / 2

    def of(self, column: Tensor) -> Tensor:
        """Return the indices of the bins that coordinates lie in."""
        return torch.searchsorted(self._inner, column.contiguous(), right=True)
