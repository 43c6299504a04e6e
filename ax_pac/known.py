"""The known part of an objective: tables, slopes, and a bound of what is unknown."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ax_pac.cells import FrozenEdges, Lookup

_LOG_10 = math.log(10.0)

CLIP = 1.5
"""Default of `KnownPart.clip`."""

_NUMBERS = ("constant", "floor", "ceiling", "weight", "clip")

Array = NDArray[np.float64]

Value = float | int | str | bool
"""A value of a parameter."""

TermLike = float | Sequence[Any]
"""A slope, one value per cell, or the pair of points and their values."""


@dataclasses.dataclass(frozen=True)
class Table:
    """What one parameter adds to the known part, point by point.

    Args:
        values: Value at each point. Unit: objective units.
        at: The points, in the parameter's units: strictly increasing numbers, linear in
            between and constant outside, or values of a choice in any order. None: the
            centres of the parameter's cells, one value per cell.

    Raises:
        ValueError: When the lengths differ, a value is not finite or points do not
            increase.
    """

    values: tuple[float, ...]
    at: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        if self.at is not None:
            object.__setattr__(self, "at", tuple(self.at))
            if len(self.at) != len(self.values):
                raise ValueError(
                    f"{len(self.at)} points and {len(self.values)} values: expected "
                    "one value per point"
                )
            points = self.points
            if any(low >= high for low, high in pairwise(points)):
                raise ValueError(
                    f"points must be strictly increasing; got {points[:4]}..."
                )
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError(
                "values must be finite, one at least; got "
                f"{len(self.values)}: {self.values[:4]}..."
            )

    @cached_property
    def is_numeric(self) -> bool:
        """Whether the points are numbers, between which the table is linear."""
        return self.at is not None and not any(
            isinstance(point, (str, bool)) for point in self.at
        )

    @cached_property
    def points(self) -> tuple[float, ...]:
        """The points that are numbers; none of a choice."""
        return tuple(map(float, self.at or ())) if self.is_numeric else ()

    def __call__(self, value: Value) -> float:
        """Return what a value of the parameter adds."""
        assert self.at is not None
        if not self.is_numeric:
            return self.values[self.at.index(value)]
        x, at, values = float(value), self.points, self.values
        i = bisect.bisect_right(at, x)
        if i == 0 or i == len(at):
            return values[0] if i == 0 else values[-1]
        slope = (values[i] - values[i - 1]) / (at[i] - at[i - 1])
        return values[i - 1] + slope * (x - at[i - 1])


Term = float | Table


@dataclasses.dataclass(frozen=True)
class KnownPart:
    """What is known of an objective before any evaluation.

        f(x) = constant + sum_j term_j(x_j) + unknown(x)

    The surrogate models `unknown` alone. Differences between points are then exact in
    the known part, and an observation teaches nothing that a table says already. With a
    bound of the unknown part, points that cannot beat the incumbent whatever it is are
    no challengers. Parameters and objective are those of an Ax experiment, in their own
    units; see `KnownFunction` for BoTorch models.

    Args:
        terms: What each parameter adds, in objective units; parameters that add nothing
            are left out. A number is a slope per unit of the parameter. A sequence of
            numbers is one value per cell of the parameter, see `cells` of
            `CertificateSettings`. A pair of two sequences is the points of a table and
            their values: linear in between and constant outside for numbers, one per
            value for a choice.
        constant: What is added everywhere. Unit: objective units.
        floor: Lower bound of the unknown part, None for none; of use where the
            objective is minimised. Unit: objective units.
        ceiling: Upper bound of the unknown part, None for none; of use where the
            objective is maximised. Unit: objective units.
        weight: None where the experiment's objective is the whole `f`. A positive
            number where it is a metric of which the unknown part is so many times:
            `f(x) = known(x) + weight * metric(x)`; delta, incumbent and certificate are
            about `f`, and the same observations serve any weight.
        clip: With a floor where the objective is minimised, or a ceiling where it is
            maximised: an unknown part more than so many times as far from it as it
            could be if the point were better than the best one is modelled by its
            logarithm, see `SoftClip`. None: as it is.

    Raises:
        ValueError: When a number is not finite, the weight not positive, the clip not
            above 1, or the floor above the ceiling.

    Source: none in Ma et al. 2019, which models the sum.

    Example:
        >>> known = KnownPart({"width": 0.1, "depth": ([1, 2, 4], [0.0, 0.5, 0.6])})
        >>> known({"width": 2.0, "depth": 3})
        0.75
    """

    terms: tuple[tuple[str, Term], ...] | Mapping[str, TermLike | Table]
    constant: float = 0.0
    floor: float | None = None
    ceiling: float | None = None
    weight: float | None = None
    clip: float | None = CLIP

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", _frozen_terms(dict(self.terms)))
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None:
                if not math.isfinite(value):
                    raise ValueError(
                        f"{name} of the known part must be finite, got {value!r}"
                    )
                object.__setattr__(self, name, float(value))
        if self.weight is not None and not self.weight > 0.0:
            raise ValueError(
                f"weight must be positive, got {self.weight!r}: objective and metric "
                "have to improve in the same direction"
            )
        if self.clip is not None and not self.clip > 1.0:
            raise ValueError(
                f"clip must be above 1, got {self.clip!r}: less would change points "
                "that may be better than the best one. None: nothing is clipped"
            )
        if self.floor is None and self.ceiling is None:
            object.__setattr__(self, "clip", None)
        if None not in (self.floor, self.ceiling) and self.floor > self.ceiling:  # type: ignore[operator]
            raise ValueError(f"the floor {self.floor} is above {self.ceiling}")

    @classmethod
    def of(cls, known: KnownPart | Mapping[str, Any] | None) -> KnownPart | None:
        """Return a known part from what `to_dict` returned; None for none.

        Without `clip`, as an earlier version stored it, nothing is clipped.

        Raises:
            ValueError: As the constructor, and for a field of a newer version.
        """
        if known is None or isinstance(known, KnownPart):
            return known
        unknown = sorted(set(known) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"the known part has fields that this version of ax-pac does not know: "
                f"{', '.join(unknown)}. Expected terms, {', '.join(_NUMBERS)}"
            )
        # Of a version that did not clip.
        return cls(**{"clip": None, **known})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        terms: dict[str, Any] = {}
        for name, term in self.items:
            if not isinstance(term, Table):
                terms[name] = term
            elif term.at is None:
                terms[name] = list(term.values)
            else:
                terms[name] = [list(term.at), list(term.values)]
        fields = {name: getattr(self, name) for name in _NUMBERS}
        if self.clip is None:  # as before there was one, so that records stay valid
            del fields["clip"]
        return {"terms": terms, **fields}

    @cached_property
    def digest(self) -> str:
        """A short digest of the fields."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:16]

    @property
    def items(self) -> tuple[tuple[str, Term], ...]:
        """Each parameter with its slope or its table."""
        return self.terms  # type: ignore[return-value]

    def on(self, cells: FrozenEdges) -> KnownPart:
        """Return the same with the points of every table given.

        Args:
            cells: Edges of the bins by parameter.

        Raises:
            ValueError: When a table has one value per cell and its parameter no cells,
                or another number of them.
        """
        edges = dict(cells)
        terms: dict[str, TermLike | Table] = {}
        for name, term in self.items:
            if isinstance(term, Table) and term.at is None:
                number = max(len(edges.get(name, ())) - 1, 0)
                if number != len(term.values):
                    raise ValueError(
                        f"the known part of {name!r} has {len(term.values)} values, "
                        f"the parameter {number} cells: give one value per cell, or a "
                        "pair of points and values"
                    )
                centres = tuple((a + b) / 2 for a, b in pairwise(edges[name]))
                term = Table(term.values, centres)
            terms[name] = term
        return dataclasses.replace(self, terms=terms)

    def __call__(self, parameters: Mapping[str, Any]) -> float:
        """Return the known part at a parameterization. Unit: objective units.

        Args:
            parameters: Value by name; with the centres of cells, see `on`.

        Raises:
            KeyError: When a parameter with a term is missing.
        """
        total = self.constant
        for name, term in self.items:
            value = parameters[name]
            total += term(value) if isinstance(term, Table) else term * float(value)
        return total


def _frozen_terms(
    terms: Mapping[str, TermLike | Table],
) -> tuple[tuple[str, Term], ...]:
    """Return terms as hashable values, checked."""
    frozen: list[tuple[str, Term]] = []
    for name, term in terms.items():
        try:
            frozen.append((str(name), _frozen_term(term)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the known part of {name!r} must be a finite slope, one value per "
                f"cell, or a pair of points and their values: {error}"
            ) from error
    return tuple(frozen)


def _frozen_term(term: TermLike | Table) -> Term:
    if isinstance(term, Table):
        return term
    if isinstance(term, (int, float)):
        if not math.isfinite(term):
            raise ValueError(f"got {term}")
        return float(term)
    # A pair of sequences is points and values; anything else one value per cell.
    is_pair = len(term) == 2 and not isinstance(term[0], (int, float, str))
    return Table(tuple(term[1]), tuple(term[0])) if is_pair else Table(tuple(term))


@dataclasses.dataclass(frozen=True, eq=False)
class KnownFunction:
    """The known part of an objective as a function of a model's inputs.

    The model is one of the unknown part; see `KnownPart` for Ax experiments.

    Args:
        value: Maps points `... x d`, in the model's input units, to `...`, in objective
            units; differentiable, as challengers are searched by gradient.
        floor: Lower bound of the unknown part, of use where the objective is minimised.
            Unit: objective units.
        ceiling: Upper bound of the unknown part, of use where the objective is
            maximised. Unit: objective units.
        bends: Where `value` is a sum of functions of one coordinate each: by
            coordinate, the places beside its bounds at which its function may be
            smallest or largest. None where it is no such sum; then a search space of
            which no point can beat the incumbent may not be recognised as one.

    Example:
        >>> known = KnownFunction(lambda X: 0.5 * X[..., 0], floor=0.0)
        >>> known(torch.tensor([[1.0, 3.0]]))
        tensor([0.5000])
    """

    value: Callable[[Tensor], Tensor]
    floor: float | None = None
    ceiling: float | None = None
    bends: tuple[tuple[float, ...], ...] | None = None
    reach: float | None = None

    @classmethod
    def of(
        cls, known: KnownFunction | Callable[[Tensor], Tensor] | None
    ) -> KnownFunction | None:
        """Return a known function of a callable; None for none."""
        if known is None or isinstance(known, KnownFunction):
            return known
        return cls(known)

    def __call__(self, points: Tensor) -> Tensor:
        """Evaluate points, `... x d` to `...`."""
        return self.value(points)

    def limit(self, weight: float) -> float | None:
        """Return the best value of the unknown part, times a weight; None without one.

        Args:
            weight: Of the objective; negative where it is minimised.
        """
        bound = self.floor if weight < 0.0 else self.ceiling
        return None if bound is None else weight * bound


class AdditiveFunction:
    """A sum of functions of one coordinate each: slopes and tables, in one pass.

    Args:
        slopes: One per coordinate, per unit. Shape `d`.
        tables: Points, strictly increasing, and values, by coordinate; linear in
            between and constant outside.
        constant: What is added everywhere.
        logarithmic: Coordinates that are logarithms to base 10 of what slopes and
            tables are about.

    Example:
        >>> f = AdditiveFunction(torch.tensor([2.0]).double(), {0: ([0, 1], [0, 5])})
        >>> f(torch.tensor([[0.5], [3.0]]).double())
        tensor([ 3.5000, 11.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        slopes: Tensor,
        tables: Mapping[int, tuple[Sequence[float], Sequence[float]]],
        constant: float = 0.0,
        logarithmic: Sequence[int] = (),
    ) -> None:
        self._slopes, self._constant = slopes, constant
        self._is_log = torch.zeros(len(slopes), dtype=torch.bool)
        self._is_log[list(logarithmic)] = True
        self._has_logs = len(logarithmic) > 0
        self._columns = list(tables)
        longest = max((len(at) for at, _ in tables.values()), default=0) + 1
        shape = (len(tables), longest)
        # Rows are padded; a last piece without slope is never reached.
        self._at = torch.full(shape, math.inf, dtype=torch.float64)
        self._values, self._rises = (torch.zeros(shape).double() for _ in range(2))
        for row, (at, values) in enumerate(tables.values()):
            x, y = (torch.tensor(list(v), dtype=torch.float64) for v in (at, values))
            self._at[row, : len(x)], self._values[row, : len(x)] = x, y
            self._rises[row, : len(x) - 1] = y.diff() / x.diff()
        self._last = torch.tensor([at[-1] for at, _ in tables.values()]).double()
        self._begin = longest * torch.arange(len(tables))
        # A point between two others is on the piece behind the first.
        self._lookup = Lookup.of(tuple(tuple(row.tolist()) for row in self._inner))

    @property
    def bends(self) -> tuple[tuple[float, ...], ...]:
        """The points of the tables by coordinate, in the coordinate's units."""
        bends: list[tuple[float, ...]] = [()] * len(self._slopes)
        for row, column in zip(self._at, self._columns, strict=True):
            points = row[row.isfinite()]
            if self._is_log[column]:
                points = points[points > 0.0].log10()
            bends[column] = tuple(points.tolist())
        return tuple(bends)

    def at(self, points: Array) -> tuple[Array, Array]:
        """Return values, `N`, and gradients, `N x d`, of a few points, `N x d`.

        In NumPy, whose calls take a fifth of PyTorch's.
        """
        gradient = np.repeat(self._slopes.numpy()[None], len(points), axis=0)
        rates: Array | float = 1.0
        if self._has_logs:
            is_log = self._is_log.numpy()
            powers = 10.0 ** np.where(is_log, points, 0.0)
            rates = np.where(is_log, powers * _LOG_10, 1.0)
            points = np.where(is_log, powers, points)
        value = points @ self._slopes.numpy() + self._constant
        if self._columns:
            at, values, rises, last = self._arrays
            x = points[:, self._columns]
            inside = np.clip(x, at[:, 0], last)
            piece = np.empty(x.shape, dtype=np.int64)
            for j, row in enumerate(self._inner):
                piece[:, j] = row.searchsorted(inside[:, j], side="right")
            row_of = np.arange(len(at))
            rise = rises[row_of, piece]
            added = values[row_of, piece] + rise * (inside - at[row_of, piece])
            value = value + added.sum(-1)
            gradient[:, self._columns] += np.where(inside != x, 0.0, rise)
        return value, gradient * rates

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Array, Array]:
        """Points, values and slopes of the pieces, and the last points, by table."""
        at, values, rises = self._at.numpy(), self._values.numpy(), self._rises.numpy()
        return at, values, rises, self._last.numpy()

    @cached_property
    def _inner(self) -> list[Array]:
        """The points of each table but the first."""
        rows = zip(self._at[:, 1:], self._last, strict=True)
        return [row[row <= last].numpy() for row, last in rows]

    def __call__(self, points: Tensor) -> Tensor:
        """Evaluate points, `... x d` to `...`."""
        if points.requires_grad:
            return _WithGradient.apply(points, self)
        return self.evaluate(points, with_gradient=False)[0]

    def evaluate(
        self, points: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return values, `...`, and gradients, `... x d`, of points, `... x d`.

        Args:
            points: Shape `... x d`; without a gradient of their own.
            with_gradient: Whether to return the gradients; None if not.
        """
        rates = None
        if self._has_logs:
            logs = torch.where(self._is_log, points, torch.zeros_like(points))
            powers = 10.0**logs
            points = torch.where(self._is_log, powers, points)
            rates = torch.where(self._is_log, powers * _LOG_10, torch.ones_like(powers))
        total = points @ self._slopes + self._constant
        gradient = self._slopes.expand_as(points).clone() if with_gradient else None
        if self._columns:
            x = points.reshape(-1, points.shape[-1])[:, self._columns]
            inside = torch.maximum(torch.minimum(x, self._last), self._at[:, 0])
            piece = self._lookup(inside).add_(self._begin)
            low, value, rise = (
                t.view(-1).index_select(0, piece.view(-1)).view(piece.shape)
                for t in (self._at, self._values, self._rises)
            )
            added = torch.addcmul(value, rise, inside - low)
            total = total + added.sum(-1).reshape(total.shape)
            if gradient is not None:
                rise = rise.masked_fill(inside != x, 0.0)
                gradient[..., self._columns] += rise.reshape(
                    *points.shape[:-1], len(self._columns)
                )
        if gradient is not None and rates is not None:
            gradient = gradient * rates
        return total, gradient


class _WithGradient(torch.autograd.Function):
    """A sum of functions of one coordinate as one that autograd goes on from."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, function: AdditiveFunction) -> Tensor:
        value, gradient = function.evaluate(points.detach(), with_gradient=True)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradients[0].unsqueeze(-1) * gradient, None
