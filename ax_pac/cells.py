"""Cells of the search space: sets of points with the same objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

CellEdges = Mapping[str, Sequence[float]]
"""Parameter name to the edges of its bins, in the parameter's own units."""

FrozenEdges = tuple[tuple[str, tuple[float, ...]], ...]
"""The same as a hashable value, without the parameters that have no bins."""


# Buckets of a `Lookup`, and comparisons within one beyond which it is not worth it.
_BUCKETS_PER_LIMIT = 8

_MOST_BUCKETS = 1 << 14

_MOST_STEPS = 12

# In buckets.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Cells:
    """A grid of cells over the box; all points of a cell have the same objective.

    Coordinates that are rounded before use make plateaus: two points of one cell are
    the same, and no point of the incumbent's cell is a challenger. Bin i of a
    coordinate is `[edges[i], edges[i + 1])`, the last one closed; the canonical point
    of a cell is its centre.

    Args:
        edges: Edges of the bins of each coordinate, in the order of the model's inputs
            and in their units; empty for a coordinate without bins.
        names: Name of each coordinate, where the cells are those of an experiment's
            parameters; see `Cells.of`.

    Raises:
        ValueError: When a coordinate has one edge, or edges that are not finite and
            strictly increasing, or when the names do not match the edges.

    Example:
        >>> cells = Cells(((0.0, 0.5, 1.0), ()))
        >>> cells.canonical(torch.tensor([[0.1, 0.3], [0.5, 0.7]]).double())
        tensor([[0.2500, 0.3000],
                [0.7500, 0.7000]], dtype=torch.float64)
    """

    edges: tuple[tuple[float, ...], ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.edges):
            raise ValueError(
                f"expected a name for each of {len(self.edges)} coordinates, got "
                f"{self.names}"
            )
        for i, edges in enumerate(self.edges):
            if edges and (
                len(edges) < 2
                or not all(map(math.isfinite, edges))
                or any(low >= high for low, high in pairwise(edges))
            ):
                name = repr(self.names[i]) if self.names else f"coordinate {i}"
                raise ValueError(
                    f"the edges of the cells of {name} must be two or more finite, "
                    f"strictly increasing numbers; got {len(edges)}: {edges[:4]}..."
                )

    @classmethod
    def of(cls, cells: Cells | CellEdges | None) -> Cells | None:
        """Return cells from edges by coordinate name, in their order; None for none.

        Args:
            cells: Edges by name, or cells, which are returned as they are.

        Raises:
            ValueError: As the constructor.

        Example:
            >>> Cells.of({"x": [0, 0.5, 1], "y": []})
            Cells(edges=((0.0, 0.5, 1.0), ()), names=('x', 'y'))
        """
        if cells is None or isinstance(cells, Cells):
            return cells
        edges = tuple(tuple(map(float, bins)) for bins in cells.values())
        return cls(edges, tuple(map(str, cells))) if edges else None

    @property
    def number(self) -> float:
        """Number of cells; infinite with a coordinate without bins."""
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
            columns.append(column if bins is None else bins.values[bins.of(column)])
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

    @cached_property
    def _bins(self) -> tuple[Grid | None, ...]:
        """The bins of each coordinate."""
        return tuple(Grid.of_bins(edges) if edges else None for edges in self.edges)


class Grid:
    """The values of one coordinate, and which of them stands for a number.

    Args:
        values: Strictly increasing. Shape `k`.
        limits: Where the value that stands for a number changes. Shape `k - 1`.
    """

    def __init__(self, values: Tensor, limits: Tensor) -> None:
        self.values, self._limits = values, limits.contiguous()

    @classmethod
    def of_values(cls, values: Sequence[float]) -> Grid:
        """Return the grid of values; the nearest one stands for a number."""
        points = torch.tensor(values, dtype=torch.float64)
        return cls(points, (points[:-1] + points[1:]) / 2)

    @classmethod
    def of_bins(cls, edges: Sequence[float]) -> Grid:
        """Return the grid of the centres of bins; the centre stands for its bin."""
        points = torch.tensor(edges, dtype=torch.float64)
        # To the last bit what `(low + high) / 2` gives in Python.
        return cls((points[:-1] + points[1:]) / 2, points[1:-1])

    @property
    def limits(self) -> Tensor:
        """Where the value that stands for a number changes. Shape `k - 1`."""
        return self._limits

    def __len__(self) -> int:
        return len(self.values)

    def of(self, column: Tensor) -> Tensor:
        """Return the indices of the values that stand for numbers."""
        return torch.searchsorted(self._limits, column.contiguous(), right=True)


class Lookup:
    """How many limits are at most a number, for many numbers of several rows at once.

    As `torch.searchsorted(limits, numbers, right=True)` row by row, five times as fast:
    the range of a row is divided into buckets, and a number is compared with the few
    limits around its own.

    Args:
        limits: Strictly increasing, row by row; a row may have none.

    Example:
        >>> lookup = Lookup([torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0])])
        >>> lookup(torch.tensor([[0.5, 0.5], [3.0, 1.0]]).double())
        tensor([[1, 0],
                [2, 1]])
    """

    def __init__(self, limits: Sequence[Tensor]) -> None:
        self._rows = [row.double().contiguous() for row in limits]
        longest = max((len(row) for row in self._rows), default=0)
        number = min(max(_BUCKETS_PER_LIMIT * longest, 1), _MOST_BUCKETS)
        ends = [
            (float(row[0]), float(row[-1])) if len(row) else (0.0, 1.0)
            for row in self._rows
        ]
        low, high = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2).mT
        self._low, self._scale = low, number / (high - low).clamp_min(1e-300)
        self._number = number
        # From a little before each bucket to a little behind it, for rounding.
        edges = torch.arange(number, dtype=torch.float64)
        counts, most = [], 0
        for row, start, scale in zip(self._rows, low, self._scale, strict=True):
            first, behind = (
                torch.searchsorted(row, start + edge / scale)
                for edge in (edges - _ROUNDING, edges + 1.0 + _ROUNDING)
            )
            behind[-1] = len(row)
            counts.append(first)
            most = max(most, int((behind - first).max()))
        self._most = most
        width = longest + most + 1
        self._limits = torch.full((len(self._rows), width), math.inf).double()
        for padded, row in zip(self._limits, self._rows, strict=True):
            padded[: len(row)] = row
        self._begin = width * torch.arange(len(self._rows))
        self._first = torch.cat(
            [count + begin for count, begin in zip(counts, self._begin, strict=True)]
            or [self._begin]
        )
        self._limits = self._limits.view(-1)
        self._bucket = number * torch.arange(len(self._rows))

    @staticmethod
    @lru_cache(maxsize=8)
    def of(limits: tuple[tuple[float, ...], ...]) -> Lookup:
        """Return a lookup of limits; those of a search are asked for at each trial."""
        return Lookup([torch.tensor(row, dtype=torch.float64) for row in limits])

    def __call__(self, numbers: Tensor) -> Tensor:
        """Return the counts of numbers, `N x rows` to the same."""
        if self._most > _MOST_STEPS:  # very uneven limits
            columns = [
                torch.searchsorted(row, column.contiguous(), right=True)
                for row, column in zip(self._rows, numbers.unbind(-1), strict=True)
            ]
            return torch.stack(columns, -1)
        last = self._number - 1
        bucket = ((numbers - self._low) * self._scale).clamp_(0, last).long()
        # Of NaN too.
        bucket = bucket.clamp_(0, last).add_(self._bucket).view(-1)
        found = self._first.index_select(0, bucket).view(numbers.shape)
        for _ in range(self._most):
            limits = self._limits.index_select(0, found.view(-1))
            found += numbers >= limits.view(numbers.shape)
        return found.sub_(self._begin)


def frozen_edges(cells: Cells | CellEdges | FrozenEdges | None) -> FrozenEdges:
    """Return edges by parameter as a hashable value, checked.

    Args:
        cells: Cells with names, or edges by parameter; None or empty for no cells.

    Raises:
        ValueError: As `Cells`, and for cells without names.

    Example:
        >>> frozen_edges({"x": [0, 0.5, 1]})
        (('x', (0.0, 0.5, 1.0)),)
    """
    found = Cells.of(cells if isinstance(cells, Cells) else dict(cells or {}))
    if found is None:
        return ()
    if not found.names:
        raise ValueError(
            "the cells of an experiment need the names of its parameters: build them "
            "with Cells.of({parameter: edges, ...})"
        )
    return tuple(
        (name, edges)
        for name, edges in zip(found.names, found.edges, strict=True)
        if edges
    )
