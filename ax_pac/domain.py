"""The search space as a set of points: which there are, and the nearest one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from ax_pac.cells import Cells, Grid, Lookup

# Spaces of at most this many points are searched by enumeration.
MAX_ENUMERATED = 4096

# Share of the width of a constraint, its largest value over the box less its smallest,
# by which points keep inside: Ax checks visited points without any tolerance.
_MARGIN = 1e-9

# The same share, for what counts as a point of the space.
_TOLERANCE = 1e-7

# Rounds over the constraints before a point is moved towards the middle instead.
_NUM_PROJECTIONS = 30


@dataclasses.dataclass(frozen=True)
class Domain:
    """The points over which "the best" is meant.

    A box, of which some coordinates take certain values only, some are the indicators
    of an unordered choice, and linear constraints cut parts off:

        { x : lower <= x <= upper, x_j in values_j, one of x_group is 1, A x <= b }

    A point outside is no point of the search: it cannot be evaluated, so the
    probability that it beats the incumbent is nobody's concern, and a search that goes
    for it never ends. `Cells` are one case, the values of a coordinate being the
    centres of its bins; there all points of a bin are moved to its centre.

    Args:
        bounds: Lower and upper bound of each coordinate, in the model's input units.
        values: Values of each coordinate, strictly increasing; empty for a continuous
            one. Missing at the end, or altogether, for continuous coordinates.
        groups: Coordinates that are the indicators of one unordered choice: exactly one
            of them is one, the others are zero.
        constraints: Coefficients and bound of each linear constraint, `a x <= b`.
        cells: Cells of points that are the same; a coordinate has cells or values.

    Raises:
        ValueError: When lengths do not agree, when values lie outside the bounds or do
            not increase, or when the constraints leave no point of the box.

    Example:
        >>> domain = Domain(((0.0, 1.0), (1.0, 3.0)), values=((), (1.0, 2.0, 3.0)))
        >>> domain.nearest(torch.tensor([[0.3, 1.8], [1.7, 5.0]]).double())
        tensor([[0.3000, 2.0000],
                [1.0000, 3.0000]], dtype=torch.float64)
    """

    bounds: tuple[tuple[float, float], ...]
    values: tuple[tuple[float, ...], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    constraints: tuple[tuple[tuple[float, ...], float], ...] = ()
    cells: Cells | None = None

    def __post_init__(self) -> None:
        dim = len(self.bounds)
        missing = dim - len(self.values)
        object.__setattr__(self, "values", (*self.values, *[()] * missing))
        lengths = [len(self.values), *(len(a) for a, _ in self.constraints)]
        if self.cells is not None:
            lengths.append(len(self.cells.edges))
        if set(lengths) != {dim}:
            raise ValueError(
                f"the domain has {dim} coordinates, its values, constraints and cells "
                f"have {lengths}: give one entry per coordinate"
            )
        for (low, high), values in zip(self.bounds, self.values, strict=True):
            if values and not (
                low <= values[0]
                and values[-1] <= high
                and all(a < b for a, b in itertools.pairwise(values))
            ):
                raise ValueError(
                    f"the values of a coordinate must increase from {low} to {high}; "
                    f"got {len(values)}: {values[:4]}..."
                )
        if self.constraints and self._centre is None:
            raise ValueError(
                "the parameter constraints leave no point of the search space: "
                f"{list(self.constraints)} within {list(self.bounds)}. Widen one."
            )

    @classmethod
    def of(cls, bounds: Tensor | Domain, cells: Cells | None = None) -> Domain:
        """Return the domain of a box; a domain as it is.

        Args:
            bounds: A box, lower row first, `2 x d`, or a domain.
            cells: Cells of points that are the same, in a box.

        Raises:
            ValueError: When there are cells beside a domain.
        """
        if not isinstance(bounds, Domain):
            return cls(tuple(map(tuple, bounds.mT.tolist())), cells=cells)
        if cells is not None:
            raise ValueError(
                "cells beside a domain: give them to the domain, Domain(..., cells=...)"
            )
        return bounds

    def fixed_at(self, values: Mapping[int, float]) -> Domain:
        """Return the part of the domain in which some coordinates have one value.

        Args:
            values: Value by coordinate.
        """
        held = [(float(values[j]),) if j in values else v for j, v in self._numbered]
        # An indicator that is held takes its choice with it.
        groups = tuple(g for g in self.groups if not values.keys() & set(g))
        freed = set().union(*map(set, self.groups), set()) - set().union(
            *map(set, groups), set()
        )
        held = [v if v or j not in freed else (0.0, 1.0) for j, v in enumerate(held)]
        bounds = tuple(
            (min(low, *v), max(high, *v)) if len(v) == 1 else (low, high)
            for (low, high), v in zip(self.bounds, held, strict=True)
        )
        cells = self.cells
        if cells is not None:
            edges = tuple(
                () if j in values else edges for j, edges in enumerate(cells.edges)
            )
            cells = Cells(edges) if any(edges) else None
        return Domain(bounds, tuple(held), groups, self.constraints, cells)

    @property
    def _numbered(self) -> list[tuple[int, tuple[float, ...]]]:
        """The values of each coordinate with its index."""
        return list(enumerate(self.values))

    @cached_property
    def is_box(self) -> bool:
        """Whether every point of the box is a point of the domain, different ones."""
        return self.cells is None and not (
            self.groups or self.constraints or any(self.values)
        )

    @cached_property
    def discrete(self) -> tuple[int, ...]:
        """The coordinates that do not vary continuously."""
        binned = self.cells.edges if self.cells is not None else [()] * self.dim
        every = zip(range(self.dim), self.values, binned, strict=True)
        return tuple(j for j, v, e in every if v or e or j in self.choices)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """The coordinates whose values have no order."""
        return tuple(j for group in self.groups for j in group)

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.bounds)

    @cached_property
    def box(self) -> Tensor:
        """The bounds, lower row first. Shape `2 x d`."""
        return torch.tensor(self.bounds, dtype=torch.float64).mT.contiguous()

    @cached_property
    def number(self) -> float:
        """Number of points; infinite with a continuous coordinate.

        Where constraints cut off some of more than `MAX_ENUMERATED` points, the number
        without the constraints.
        """
        number = self._number_without_constraints
        if self.constraints and number <= MAX_ENUMERATED:
            return len(self.all_points())
        return number

    @cached_property
    def _number_without_constraints(self) -> float:
        """Number of points of which the constraints cut some off."""
        if len(self.discrete) < self.dim:
            return math.inf
        sizes = [len(group) for group in self.groups]
        return math.prod([*sizes, *(len(g) for g in self._grids if g is not None)])

    @cached_property
    def _grids(self) -> tuple[Grid | None, ...]:
        """The values of each coordinate that takes certain ones only."""
        cells = self.cells.edges if self.cells is not None else ((),) * self.dim
        return tuple(
            Grid.of_bins(edges) if edges else Grid.of_values(v) if v else None
            for edges, v in zip(cells, self.values, strict=True)
        )

    @cached_property
    def _numbered_grids(self) -> tuple[list[int], Tensor, Tensor, Lookup] | None:
        """Columns with a grid, all values, where each grid's begin, and a lookup."""
        grids = {j: grid for j, grid in enumerate(self._grids) if grid is not None}
        if not grids:
            return None
        values = torch.cat([grid.values for grid in grids.values()])
        lengths = torch.tensor([len(grid) for grid in grids.values()])
        lookup = Lookup.of(tuple(tuple(g.limits.tolist()) for g in grids.values()))
        return list(grids), values, lengths.cumsum(0) - lengths, lookup

    @cached_property
    def parts(self) -> tuple[tuple[tuple[int, ...], Tensor | None], ...]:
        """Coordinates that vary independently, constraints aside, with their values.

        Each is the indices of its columns and their values, `k x columns`; None for the
        values of a continuous coordinate.
        """
        single = [
            ((j,), None if grid is None else grid.values.unsqueeze(-1))
            for j, grid in enumerate(self._grids)
            if j not in self.choices
        ]
        groups = [
            (tuple(group), torch.eye(len(group), dtype=torch.float64))
            for group in self.groups
        ]
        return (*single, *groups)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Constraints `A x <= b`, and the width of each. Shapes `m x d`, `m`, `m`."""
        A = torch.tensor([a for a, _ in self.constraints], dtype=torch.float64)
        b = torch.tensor([b for _, b in self.constraints], dtype=torch.float64)
        A = A.reshape(-1, self.dim)
        width = (A.abs() @ (self.box[1] - self.box[0])).clamp_min(1e-300)
        return A, b, width

    @property
    def linear_constraints(self) -> tuple[Tensor, Tensor]:
        """`A` and `b` of the constraints `A x <= b`, a margin inside."""
        A, b, width = self._rows
        return A, b - _MARGIN * width

    def excess(self, points: Tensor) -> Tensor:
        """By how much each constraint is broken, in shares of its width.

        Args:
            points: Shape `N x d`.

        Returns:
            Shape `N x m`; negative inside.
        """
        A, b, width = self._rows
        return (points @ A.mT - b) / width

    def contains(self, points: Tensor) -> Tensor:
        """Whether points are points of the domain, to rounding error.

        Args:
            points: Shape `N x d`.

        Returns:
            Booleans. Shape `N`.
        """
        width = (self.box[1] - self.box[0]).clamp_min(1e-300)
        rounded = self._rounded(points.clamp(self.box[0], self.box[1]))
        if self.cells is not None:
            # Every point of a cell stands for it.
            binned = torch.tensor([bool(e) for e in self.cells.edges])
            rounded = torch.where(binned, points.clamp(*self.box), rounded)
        inside = ((points - rounded).abs() <= _TOLERANCE * width).all(-1)
        return inside & (self.excess(points) <= _TOLERANCE).all(-1)

    def nearest(self, points: Tensor) -> Tensor:
        """Move points into the domain: onto its faces, to the nearest values.

        Args:
            points: Shape `N x d`.

        Returns:
            Shape `N x d`. With constraints on discrete coordinates some may still
            break one: see `contains`.
        """
        points = points.detach()
        if self.cells is None or self.constraints:
            points = points.clamp(self.box[0], self.box[1])
        if not self.constraints:
            return self._rounded(points)
        every = torch.ones(self.dim, dtype=torch.bool)
        points = self._projected(points, every)
        assert self._centre is not None
        points = self.drawn_to(self._centre.expand_as(points), points)
        if self.discrete:
            points = self._rounded(points)
            every[list(self.discrete)] = False
            points = self._projected(points, every)
        return points

    def spread(self, points: Tensor) -> Tensor:
        """Move space-filling points into the domain, inside and onto its faces.

        Where constraints cut off most of the box, the nearest points would all be on
        faces: every second one goes on towards the middle.

        Args:
            points: Shape `N x d`.

        Returns:
            Shape `N x d`, as `nearest`.
        """
        if not self.constraints:
            return self.nearest(points)
        outside = (self.excess(points) > 0.0).any(-1)
        moved = self.nearest(points)
        inner = outside.nonzero().squeeze(-1)[::2]
        assert self._centre is not None
        share = torch.linspace(0.0, 1.0, len(inner), dtype=torch.float64)
        share = share.pow(1.0 / self.dim).unsqueeze(-1)
        moved[inner] = self._centre + share * (moved[inner] - self._centre)
        return self.nearest(moved) if self.discrete else moved

    def canonical(self, points: Tensor) -> Tensor:
        """Return the point of the domain that stands for each: the same, rounded."""
        return self._rounded(points.detach())

    def are_same(self, points: Tensor, point: Tensor) -> Tensor:
        """Whether each point stands for the same point of the domain as another one.

        Args:
            points: Shape `N x d`.
            point: Shape `1 x d`.

        Returns:
            Booleans. Shape `N`.
        """
        return (self.canonical(points) == self.canonical(point)).all(-1)

    def neighbours(self, points: Tensor) -> Tensor:
        """Return the points one value away along one coordinate, or by one choice.

        Args:
            points: Points of the domain. Shape `N x d`.

        Returns:
            Shape `M x d`; some may break a constraint.
        """
        found = [points[:0]]
        if self._numbered_grids is not None:
            columns, values, begins, lookup = self._numbered_grids
            lengths = torch.cat([begins[1:], begins.new_tensor([len(values)])]) - begins
            here = lookup(points[:, columns])
            number = torch.arange(len(columns))
            for there in (here - 1, here + 1):
                moved = points.unsqueeze(1).repeat(1, len(columns), 1)
                inside = (there >= 0) & (there < lengths)
                place = torch.minimum(there.clamp_min(0), lengths - 1) + begins
                moved[:, number, torch.tensor(columns)] = values[place]
                found.append(moved[inside])
        for group in self.groups:
            for chosen in group:
                moved = points[points[:, chosen] != 1.0]
                moved[:, list(group)] = 0.0
                moved[:, chosen] = 1.0
                found.append(moved)
        return torch.cat(found)

    def all_points(self) -> Tensor:
        """Return every point, `number x d`.

        Raises:
            ValueError: When a coordinate is continuous.
        """
        if not math.isfinite(self._number_without_constraints):
            raise ValueError("a continuous coordinate has no finite set of points")
        columns = [j for names, _ in self.parts for j in names]
        rows = itertools.product(
            *(map(tuple, v.tolist()) for _, v in self.parts if v is not None)
        )
        found = torch.tensor([sum(row, ()) for row in rows], dtype=torch.float64)
        points = torch.empty_like(found)
        points[:, columns] = found
        return points[self.contains(points)] if self.constraints else points

    def drawn_to(self, anchors: Tensor, points: Tensor) -> Tensor:
        """Move points towards anchors until they keep every constraint.

        Args:
            anchors: Points that keep them. Shape `N x d`.
            points: Shape `N x d`.

        Returns:
            The points that kept them as they were. Shape `N x d`.
        """
        if not self.constraints:
            return points
        A, b = self.linear_constraints
        slack = (b - anchors @ A.mT).clamp_min(0.0)
        step = (points - anchors) @ A.mT
        share = torch.where(step > slack, slack / step.clamp_min(1e-300), 1.0)
        share = share.amin(-1, keepdim=True)
        return torch.where(share < 1.0, anchors + share * (points - anchors), points)

    def _projected(self, points: Tensor, free: Tensor) -> Tensor:
        """Move points onto the constraints that they break, along free coordinates."""
        A, b = self.linear_constraints
        width = (self.box[1] - self.box[0]) * free
        A = A * width
        norms = A.square().sum(-1)
        for _ in range(_NUM_PROJECTIONS):
            moved = points
            for row, norm, bound, original in zip(
                A, norms, b, self._rows[0], strict=True
            ):
                if norm > 0.0:
                    excess = (points @ original - bound).clamp_min(0.0)
                    step = (excess / norm).unsqueeze(-1) * row * width
                    points = (points - step).clamp(self.box[0], self.box[1])
            if torch.equal(points, moved):
                break
        return points

    def _rounded(self, points: Tensor) -> Tensor:
        """Move discrete coordinates to the nearest value, or the likeliest choice."""
        if not self.discrete:
            return points
        points = points.clone()
        if self._numbered_grids is not None:
            columns, values, begins, lookup = self._numbered_grids
            every = len(columns) == self.dim
            places = lookup(points if every else points[:, columns]).add_(begins)
            found = values.index_select(0, places.view(-1)).view(places.shape)
            if every:
                return found
            points[:, columns] = found
        for group in self.groups:
            members = list(group)
            chosen = points[:, members].argmax(-1)
            choices = torch.eye(len(group), dtype=points.dtype)
            points[:, members] = choices[chosen]
        return points

    @cached_property
    def _centre(self) -> Tensor | None:
        """A point well inside the constraints, `1 x d`; None without any point."""
        if not self.constraints:
            return self.box.mean(0, keepdim=True)
        # The middle of the largest ball, in units of the box, that keeps them.
        A, b = (t.numpy() for t in self.linear_constraints)
        lower, width = self.box[0].numpy(), (self.box[1] - self.box[0]).numpy()
        A, b = A * width, b - A @ lower
        rows = np.column_stack([A, np.linalg.norm(A, axis=1)])
        half = np.eye(self.dim) * (width > 0.0)
        sides = (width > 0.0).astype(float)
        box = np.block([[half, sides[:, None]], [-half, sides[:, None]]])
        limits = np.concatenate([sides, 0.0 * sides])
        found = linprog(
            np.append(np.zeros(self.dim), -1.0),
            A_ub=np.vstack([rows, box]),
            b_ub=np.concatenate([b, limits]),
            bounds=[(0.0, 1.0)] * self.dim + [(-2.0 * _MARGIN, 1.0)],
        )
        if found.status != 0:
            return None
        return torch.from_numpy(lower + width * found.x[:-1]).unsqueeze(0)
