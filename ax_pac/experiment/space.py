"""How many points a search space has, and which of them were tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ax.core.arm import Arm
from ax.core.experiment import Experiment
from ax.core.parameter import (
    ChoiceParameter,
    Parameter,
    ParameterType,
    RangeParameter,
)
from ax.core.search_space import SearchSpace

from ax_pac.domain import MAX_ENUMERATED
from ax_pac.experiment.session import session_of

# With at most this many points a search may repeat one from its beginning.
FEW_POINTS = 100

MANY_VALUES = 10_000


def number_of_points(experiment: Experiment) -> float:
    """Return the number of points of the search space, infinite with a continuous one.

    Where constraints cut off some of more than `MAX_ENUMERATED` points, the number
    without the constraints.

    Args:
        experiment: An Ax experiment.
    """
    space, session = experiment.search_space, session_of(experiment)
    if session.number_of_points is None or session.number_of_points[0] is not space:
        session.number_of_points = space, _number_of_points(space)
    return session.number_of_points[1]


def _number_of_points(space: SearchSpace) -> float:
    """Count the points of a search space."""
    values = {name: values_of(p) for name, p in space.tunable_parameters.items()}
    number = math.prod(math.inf if v is None else len(v) for v in values.values())
    if not space.parameter_constraints or number > MAX_ENUMERATED:
        return number
    points = itertools.product(*(v for v in values.values() if v is not None))
    return sum(
        all(
            constraint.check(dict(zip(values, point, strict=True)))
            for constraint in space.parameter_constraints
        )
        for point in points
    )


def values_of(parameter: Parameter) -> Sequence[Any] | None:
    """Return the values of a parameter, None for a continuous one.

    A float parameter that Ax rounds to some digits has values too; with more of them
    than `MANY_VALUES` it is taken to be continuous, as rounding hardly moves a point.
    """
    if isinstance(parameter, ChoiceParameter):
        return list(parameter.values)
    if not isinstance(parameter, RangeParameter):
        return None
    if parameter.parameter_type == ParameterType.INT:
        return range(int(parameter.lower), int(parameter.upper) + 1)
    if parameter.digits is None:
        return None
    unit = 10.0**parameter.digits
    first = math.ceil(parameter.lower * unit - 1e-6)
    last = math.floor(parameter.upper * unit + 1e-6)
    if last - first >= MANY_VALUES:
        return None
    return [round(k / unit, parameter.digits) for k in range(first, last + 1)]


def refuse_unsupported(space: SearchSpace) -> None:
    """Refuse what a certificate cannot be about, by name.

    Raises:
        ValueError: For equality constraints, hierarchical search spaces, and task or
            fidelity parameters.
    """
    if space.is_hierarchical:
        raise ValueError(
            "hierarchical search spaces are not supported: a certificate would be "
            "about parameters that are not in use. Make one search for each branch."
        )
    equalities = [c for c in space.parameter_constraints if c.is_equality]
    if equalities:
        raise ValueError(
            f"equality constraints between parameters are not supported: {equalities}. "
            "Leave one of the parameters out of the search space and compute it from "
            "the others (a derived parameter of Ax)."
        )
    for name, p in space.parameters.items():
        kind = "fidelity" if p.is_fidelity else "task"
        if p.is_fidelity or getattr(p, "is_task", False):
            raise ValueError(
                f"{kind} parameters are not supported: {name!r}. A certificate is "
                "about one task, evaluated in full: fix the parameter."
            )


def rounded_parameters(space: SearchSpace) -> dict[str, tuple[float, ...]]:
    """Return the values of the float parameters that Ax rounds, as the model sees them.

    Args:
        space: An Ax search space.

    Returns:
        By name; the logarithm to base 10 of those on a logarithmic scale.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name, p in space.tunable_parameters.items():
        if not isinstance(p, RangeParameter) or p.parameter_type != ParameterType.FLOAT:
            continue
        values = values_of(p)
        if values is not None and not p.logit_scale:
            logs = (math.log10(v) if p.log_scale else float(v) for v in values)
            found[name] = tuple(logs)
    return found


def covers_every_point(experiment: Experiment, arms: Iterable[Arm]) -> bool:
    """Return whether arms are all points of a finite search space.

    Args:
        experiment: An Ax experiment.
        arms: Arms of it.
    """
    number = number_of_points(experiment)
    if not number <= MAX_ENUMERATED:
        return False
    names = list(experiment.search_space.tunable_parameters)
    inside = experiment.search_space.check_membership
    points = {
        tuple(arm.parameters[name] for name in names)
        for arm in arms
        if inside(arm.parameters)
    }
    return len(points) >= number
