"""How many points a search space has, and which of them were tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from ax.core.arm import Arm
from ax.core.experiment import Experiment
from ax.core.parameter import ChoiceParameter, ParameterType, RangeParameter
from ax.core.search_space import SearchSpace

from ax_pac.domain import MAX_ENUMERATED
from ax_pac.experiment.session import session_of

# With at most this many points a search may repeat one from its beginning.
FEW_POINTS = 100


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
    sizes = {name: _size(p) for name, p in space.tunable_parameters.items()}
    number = math.prod(sizes.values())
    if not space.parameter_constraints or number > MAX_ENUMERATED:
        return number
    values = [
        p.values
        if isinstance(p, ChoiceParameter)
        else range(int(p.lower), int(p.upper) + 1)
        for p in space.tunable_parameters.values()
    ]
    return sum(
        all(
            constraint.check(dict(zip(sizes, point, strict=True)))
            for constraint in space.parameter_constraints
        )
        for point in itertools.product(*values)
    )


def _size(parameter: object) -> float:
    """Number of values of a parameter."""
    if isinstance(parameter, ChoiceParameter):
        return len(parameter.values)
    if (
        isinstance(parameter, RangeParameter)
        and parameter.parameter_type == ParameterType.INT
    ):
        return int(parameter.upper) - int(parameter.lower) + 1
    return math.inf


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
