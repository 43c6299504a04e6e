"""How many points a search space has."""

from __future__ import annotations

import math

import pytest
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.core.arm import Arm
from ax.core.parameter import ParameterType, RangeParameter

from ax_pac.experiment.space import (
    covers_every_point,
    number_of_points,
    rounded_parameters,
    values_of,
)
from tests.helpers.ax_loops import experiment_of

N = RangeParameterConfig("n", (1, 4), "int")
M = RangeParameterConfig("m", (0, 9), "int")
X = RangeParameterConfig("x", (0.0, 1.0), "float")
O = ChoiceParameterConfig("o", ["a", "b", "c"], "str", is_ordered=False)  # noqa: E741
FIXED = ChoiceParameterConfig("f", ["only"], "str", is_ordered=False)


def experiment(*parameters, constraints=()):
    client = Client()
    client.configure_experiment(list(parameters), list(constraints))
    return experiment_of(client)


@pytest.mark.parametrize(
    ("parameters", "constraints", "number"),
    [
        ([N], [], 4),
        ([N, O, FIXED], [], 12),
        ([N, X], [], math.inf),
        ([N, M], ["n + m <= 3"], 3 + 2 + 1),
        ([N, M], ["n <= m"], 9 + 8 + 7 + 6),
        # Too many to look at each: without the constraint.
        ([RangeParameterConfig("n", (1, 9999), "int"), M], ["n <= m"], 99990),
    ],
)
def test_points_of_a_space_are_counted(parameters, constraints, number):
    assert number_of_points(experiment(*parameters, constraints=constraints)) == number


def test_every_point_is_covered_by_different_arms_inside():
    space = experiment(N, FIXED)
    arms = [Arm({"n": n, "f": "only"}) for n in (1, 2, 2, 3, 9)]
    assert not covers_every_point(space, arms)
    assert covers_every_point(space, [*arms, Arm({"n": 4, "f": "only"})])
    assert not covers_every_point(experiment(X), [Arm({"x": 0.5})])


def test_rounded_floats_have_values_unless_there_are_too_many():
    space = experiment(X).search_space
    assert values_of(space.parameters["x"]) is None
    coarse = RangeParameter("x", ParameterType.FLOAT, 0.1, 0.5, digits=1)
    assert values_of(coarse) == [0.1, 0.2, 0.3, 0.4, 0.5]
    fine = RangeParameter("y", ParameterType.FLOAT, 0.0, 1.0, digits=6)
    assert values_of(fine) is None
    log = RangeParameter("z", ParameterType.FLOAT, 0.1, 1.0, log_scale=True, digits=1)
    space.add_parameters([fine, log])
    found = rounded_parameters(space)
    assert list(found) == ["z"]
    assert found["z"][0] == -1.0
    assert len(found["z"]) == 10
