"""Ax's search space, as the generator sees it, turned into a `Domain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ax_pac.ax_internals import one_hot_groups
from ax_pac.cells import Cells
from ax_pac.domain import Domain


def domain_of(
    digest: Any,
    constraints: tuple[Tensor, Tensor] | None,
    cells: Mapping[str, Sequence[float]],
    rounded: Mapping[str, tuple[float, ...]],
) -> Domain:
    """Return the domain of a transformed search space.

    Ax's transforms have turned an unordered choice into indicators, in [0, 1] each as
    far as Ax says, other choices and integers into numbers, those on a logarithmic
    scale into their logarithms; fixed and derived parameters are gone. Points that are
    evaluated, modelled and certified are the points of this domain.

    Args:
        digest: Ax's `SearchSpaceDigest` of the transformed search space.
        constraints: Ax's `A` and `b` of the linear constraints `A x <= b`, or None.
        cells: Edges of the bins of coordinates, by name.
        rounded: Values of the float parameters that Ax rounds, by name.
    """
    names = list(digest.feature_names)
    # Cells of a coordinate take the place of its values.
    rounded = {name: v for name, v in rounded.items() if name not in cells}
    values = [
        tuple(sorted(map(float, digest.discrete_choices.get(j, rounded.get(name, ())))))
        for j, name in enumerate(names)
    ]
    rows: list[tuple[tuple[float, ...], float]] = []
    if constraints is not None:
        A, b = (t.double() for t in constraints)
        rows = list(zip(map(tuple, A.tolist()), b.reshape(-1).tolist(), strict=True))
    grid = Cells(tuple(tuple(cells.get(name, ())) for name in names))
    return Domain(
        tuple((float(low), float(high)) for low, high in digest.bounds),
        tuple(values),
        one_hot_groups(names),
        tuple(rows),
        # With a single cell there is no challenger and nothing to certify.
        grid if any(grid.edges) and grid.number > 1 else None,
    )
