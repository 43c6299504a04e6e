"""Whole searches in spaces of integers, choices, constraints and few points."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ax.api.client import Client
from ax.api.configs import (
    ChoiceParameterConfig,
    DerivedParameterConfig,
    RangeParameterConfig,
)
from ax.core.observation import ObservationFeatures
from ax.core.parameter import ChoiceParameter, ParameterType
from ax.core.parameter_constraint import ParameterConstraint
from ax.exceptions.core import OptimizationComplete, SearchSpaceExhausted

from ax_pac import (
    PACStoppingStrategy,
    certified_generation_strategy,
    certify_experiment,
    incumbent_arm,
    latest_certificate,
    pac_generation_strategy,
)
from tests.helpers.ax_loops import experiment_of

Point = dict[str, Any]
Objective = Callable[[Point], float]

# Of a choice with two values Ax says that it takes them to be ordered.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_ordered.*:Warning", "ignore:Optimization failed"
)


def real(name: str, **options: Any) -> RangeParameterConfig:
    return RangeParameterConfig(name, (0.0, 1.0), "float", **options)


def integer(name: str, low: int, high: int, **options: Any) -> RangeParameterConfig:
    return RangeParameterConfig(name, (low, high), "int", **options)


def choice(name: str, values: list[Any], is_ordered: bool | None = False) -> Any:
    kind = {str: "str", bool: "bool", float: "float"}[type(values[0])]
    return ChoiceParameterConfig(name, values, kind, is_ordered=is_ordered)


LETTER = {"a": 0.0, "b": 0.3, "c": 0.5}
MIXED = [real("x"), choice("o", ["a", "b", "c"])]
SQUARE = [real("x"), real("y")]


def mixed(p: Point) -> float:
    return (p["x"] - 0.3) ** 2 + LETTER[p["o"]]


def corner(p: Point) -> float:
    """Its minimum, at (.6, .6), is outside `x + y <= 0.8`: there it is .08."""
    return (p["x"] - 0.6) ** 2 + (p["y"] - 0.6) ** 2


def new_client(
    parameters: Sequence[Any], strategy: Any, constraints: Sequence[str] = ()
) -> Client:
    client = Client(random_seed=0)
    client.configure_experiment(list(parameters), list(constraints))
    client.configure_optimization("-loss")
    client.set_generation_strategy(strategy)
    return client


def search(
    client: Client, objective: Objective, most: int, sem: float = 0.01, at_once: int = 1
) -> list[Point]:
    """The loop a user writes, with noise of its own; returns the points, in order."""
    rng, points = random.Random(0), []
    while len(points) < most:
        try:
            trials = client.get_next_trials(max_trials=at_once)
        except OptimizationComplete:
            break
        space = experiment_of(client).search_space
        for index, point in trials.items():
            assert space.check_membership(point), point
            points.append(point)
            value = objective(point) + rng.gauss(0.0, sem)
            client.complete_trial(index, {"loss": (value, sem)})
    return points


def pac(**changes: Any) -> Any:
    return pac_generation_strategy(
        **{"delta": 0.1, "epsilon": 0.05, "seed": 0, **changes}
    )


def certified(client: Client) -> Point:
    """The incumbent's parameters, of a certificate that holds."""
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds, certificate.reason
    arm = incumbent_arm(client)
    assert arm is not None
    return arm.parameters


def repetitions(points: list[Point]) -> list[int]:
    """How often each point was evaluated, most often first."""
    return [n for _, n in Counter(tuple(p.values()) for p in points).most_common()]


@pytest.mark.parametrize(
    "sampling", ["leader_challenger", "challenger", "expected_improvement"]
)
def test_a_float_beside_a_choice_is_certified(sampling):
    client = new_client(MIXED, pac(sampling=sampling))
    points = search(client, mixed, 40)
    assert mixed(certified(client)) <= 0.1
    assert len(points) < 40
    # Noise of a tenth of delta needs hardly any.
    assert repetitions(points)[0] <= 3


def test_under_noise_the_search_repeats_what_it_compares_and_little_else():
    client = new_client(MIXED, pac(level="joint"))
    points = search(client, mixed, 60, sem=0.1)
    assert mixed(certified(client)) <= 0.1
    assert repetitions(points)[0] <= len(points) / 2


@pytest.mark.parametrize("sampling", ["leader_challenger", "expected_improvement"])
def test_a_constrained_search_is_certified_at_the_boundary(sampling):
    strategy = pac(delta=0.05, sampling=sampling)
    client = new_client(SQUARE, strategy, ["x + y <= 0.8"])
    points = search(client, corner, 60)
    best = certified(client)
    assert len(points) < 60
    assert corner(best) - 0.08 <= 0.05
    assert best["x"] + best["y"] == pytest.approx(0.8, abs=0.05)


SPACES: dict[str, tuple[list[Any], list[str], Objective, float]] = {
    "ordered choice": (
        [real("x"), choice("o", [1.0, 2.0, 5.0, 10.0], True)],
        [],
        lambda p: (p["x"] - 0.6) ** 2 + (p["o"] - 5.0) ** 2 / 20,
        0.0,
    ),
    "truth value": (
        [real("x"), choice("o", [True, False], None)],
        [],
        lambda p: (p["x"] - 0.6) ** 2 + 0.3 * p["o"],
        0.0,
    ),
    "integer on a logarithmic scale": (
        [integer("n", 1, 1000, scaling="log"), real("x")],
        [],
        lambda p: (math.log10(p["n"]) - 1.5) ** 2 / 2 + (p["x"] - 0.3) ** 2,
        0.0,
    ),
    "integers whose sum is bounded": (
        [integer("n", 0, 50), integer("m", 0, 50)],
        ["n + m <= 50"],
        lambda p: ((p["n"] - 40) ** 2 + (p["m"] - 40) ** 2) / 1000,
        0.45,
    ),
    "an order of integers": (
        [integer("n", 0, 20), integer("m", 0, 20)],
        ["n <= m"],
        lambda p: ((p["n"] - 12) ** 2 + (p["m"] - 5) ** 2) / 200,
        0.125,
    ),
    "an order of floats": (
        SQUARE,
        ["x <= y"],
        lambda p: (p["x"] - 0.7) ** 2 + (p["y"] - 0.3) ** 2,
        0.08,
    ),
    "a step size": (
        [real("x", step_size=0.1), real("y")],
        [],
        lambda p: (p["x"] - 0.7) ** 2 + (p["y"] - 0.3) ** 2,
        0.0,
    ),
    "a constraint beside a choice": (
        [*SQUARE, choice("o", ["a", "b", "c"])],
        ["x + y <= 0.8"],
        lambda p: corner(p) + LETTER[p["o"]],
        0.08,
    ),
    "a fixed parameter": (
        [real("x"), choice("o", ["a"])],
        [],
        lambda p: (p["x"] - 0.6) ** 2,
        0.0,
    ),
    "a derived parameter": (
        [*SQUARE, DerivedParameterConfig("z", "x + y", "float")],
        [],
        lambda p: corner(p) + 0.1 * p["z"],
        0.1175,
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_other_spaces_are_certified_too(name):
    parameters, constraints, objective, minimum = SPACES[name]
    client = new_client(parameters, pac(level="joint"), constraints)
    points = search(client, objective, 40)
    assert len(points) < 40
    assert objective(certified(client)) <= minimum + 0.1
    assert repetitions(points)[0] <= 3


def test_floats_that_ax_rounds_are_searched_value_by_value():
    client = new_client(SQUARE, pac(level="joint"))
    for parameter in experiment_of(client).search_space.parameters.values():
        parameter.set_digits(1)
    points = search(client, corner, 40)
    assert len(points) < 40
    assert corner(certified(client)) <= 0.1
    for value in (*points[-1].values(), *latest_certificate(client).challenger):
        assert value == round(value, 1)


@pytest.mark.parametrize(
    ("parameters", "constraints", "objective"),
    [(MIXED, [], mixed), (SQUARE, ["x + y <= 0.8"], corner)],
)
def test_a_batch_lies_in_the_space_and_has_different_points(
    parameters, constraints, objective
):
    client = new_client(parameters, pac(delta=0.02, level="joint"), constraints)
    search(client, objective, 8)
    batch = client.get_next_trials(max_trials=4)
    space = experiment_of(client).search_space
    assert all(space.check_membership(point) for point in batch.values())
    assert len({tuple(point.values()) for point in batch.values()}) == 4


def test_a_part_of_the_space_may_be_asked_for():
    strategy = pac(delta=0.01, level="joint")
    client = new_client(MIXED, strategy)
    search(client, mixed, 8)
    for held in ({"o": "b"}, {"x": 0.123}, {"x": 0.7, "o": "c"}):
        run = strategy.gen_single_trial(
            experiment_of(client), fixed_features=ObservationFeatures(dict(held))
        )
        parameters = run.arms[0].parameters
        assert {name: parameters[name] for name in held} == held
    before = latest_certificate(client)
    client.get_next_trials(max_trials=1)
    assert latest_certificate(client) == before


@pytest.mark.parametrize("axs_own", [False, True])
def test_a_certificate_of_any_search_is_about_the_space(axs_own):
    """Ax's proposals, ended by our criterion or by our stopping strategy."""
    question = {"delta": 0.15, "epsilon": 0.05, "level": "joint", "seed": 0}
    if axs_own:
        client = new_client(MIXED, certified_generation_strategy(**question))
        with warnings.catch_warnings(action="ignore"):
            search(client, mixed, 30)
    else:
        client = new_client(MIXED, pac(level="joint"))
        search(client, mixed, 14)
    experiment = experiment_of(client)
    certificate = certify_experiment(experiment, **question)
    stops, reason = PACStoppingStrategy(**question).should_stop_optimization(experiment)
    assert (stops, reason) == (certificate.holds, certificate.reason)
    *_, a, b, c = certificate.challenger
    assert sorted((a, b, c)) == [0.0, 0.0, 1.0]
    assert mixed(certified(client)) <= 0.15


FEW: dict[str, tuple[list[Any], Objective]] = {
    "an integer from 1 to 6": ([integer("n", 1, 6)], lambda p: (p["n"] - 3) ** 2 / 10),
    "a choice of three": ([choice("o", ["a", "b", "c"])], lambda p: LETTER[p["o"]]),
    "an integer of two values": ([integer("n", 1, 2)], lambda p: p["n"] / 5),
    "a choice of two beside one of three": (
        [choice("t", ["u", "v"], False), choice("o", ["a", "b", "c"])],
        lambda p: LETTER[p["o"]] + 0.2 * (p["t"] == "v"),
    ),
    "integers in a triangle": (
        [integer("n", 0, 2), integer("m", 0, 2)],
        lambda p: (2 - p["n"] + 2 - p["m"]) / 5,
    ),
}


@pytest.mark.parametrize("sem", [0.01, 0.1])
@pytest.mark.parametrize("name", FEW)
def test_a_space_of_few_points_is_certified_over_its_points(name, sem):
    parameters, objective = FEW[name]
    constraints = ["n + m <= 2"] if "triangle" in name else []
    client = new_client(parameters, pac(), constraints)
    points = search(client, objective, 40, sem=sem)
    assert len(points) < (20 if sem == 0.01 else 40)
    every = {tuple(point.values()) for point in points}
    assert objective(certified(client)) <= min(map(objective, points)) + 0.1
    certificate = latest_certificate(client)
    assert certificate.reached == "exhaustive" or len(points) >= 10
    if certificate.reached == "exhaustive":
        sizes = [6, 3, 2, 6, 6]
        assert len(every) == sizes[list(FEW).index(name)]


def test_several_trials_at_once_repeat_points_of_a_small_space():
    client = new_client([choice("o", ["a", "b", "c"])], pac())
    points = search(client, lambda p: LETTER[p["o"]], 40, sem=0.1, at_once=4)
    assert 4 <= len(points) < 40
    assert certified(client) == {"o": "a"}


def test_a_small_space_is_certified_from_whatever_was_observed_before():
    client = new_client([choice("o", ["a", "b", "c"])], pac())
    for _ in range(3):  # as many as the initial design, all at one point
        index = client.attach_trial({"o": "c"})
        client.complete_trial(index, {"loss": (0.5, 0.05)})
    search(client, lambda p: LETTER[p["o"]], 20, sem=0.05)
    assert certified(client) == {"o": "a"}


def test_a_point_that_cannot_be_evaluated_withholds_the_certificate():
    client = new_client([choice("o", ["a", "b", "c"])], pac())
    for _ in range(12):
        ((index, point),) = client.get_next_trials(max_trials=1).items()
        if point["o"] == "c":
            client.mark_trial_failed(index)
        else:
            client.complete_trial(index, {"loss": (LETTER[point["o"]], 0.05)})
    certificate = latest_certificate(client)
    assert not certificate.holds
    assert "gave no observation" in certificate.reason


def test_an_integer_with_many_trials_asked_for_first_repeats_its_values():
    strategy = pac(num_initial_trials=9)
    client = new_client([integer("n", 1, 3)], strategy)
    points = search(client, lambda p: (p["n"] - 2) ** 2 / 3, 20, sem=0.3)
    assert len(points) == 20 or latest_certificate(client).holds


@pytest.mark.parametrize("name", ["an integer from 1 to 6", "a choice of three"])
def test_axs_own_search_of_a_small_space_ends_by_a_certificate_or_says_that_it_has_none(
    name,
):
    parameters, objective = FEW[name]
    question = {"delta": 0.1, "epsilon": 0.05, "seed": 0}
    for sem, ends_certified in ((0.01, True), (0.5, False)):
        client = new_client(parameters, certified_generation_strategy(**question))
        with warnings.catch_warnings(action="ignore"):
            search(client, objective, 20, sem=sem)
        certificate = latest_certificate(client)
        assert certificate.holds == ends_certified
        if ends_certified:
            continue
        with pytest.raises(SearchSpaceExhausted) as end:
            client.get_next_trials(max_trials=1)
        message = str(end.value)
        assert message.startswith(
            f"no certificate: all {len(LETTER) if 'three' in name else 6}"
        )
        assert "pac_generation_strategy repeats points" in message


def test_before_any_trial_an_end_without_a_certificate_has_no_incumbent():
    client = new_client(MIXED, pac())
    assert latest_certificate(client) is None
    assert incumbent_arm(client) is None


TREE = [
    ChoiceParameterConfig(
        "o", ["a", "b"], "str", dependent_parameters={"a": ["x"], "b": ["y"]}
    ),
    *SQUARE,
]


def test_what_is_not_supported_is_refused_by_name_before_any_trial():
    hierarchical = new_client(TREE, pac())
    with pytest.raises(ValueError, match="hierarchical search spaces are not supp"):
        hierarchical.get_next_trials(max_trials=1)
    equal = new_client(SQUARE, pac())
    constraint = ParameterConstraint(equality="x + y == 1")
    experiment_of(equal).search_space.add_parameter_constraints([constraint])
    with pytest.raises(ValueError, match="equality constraints between parameters"):
        equal.get_next_trials(max_trials=1)
    for kind in ("task", "fidelity"):
        values = {"values": ["a", "b"], f"is_{kind}": True, "target_value": "a"}
        options = {"is_ordered": False, "sort_values": True}
        parameter = ChoiceParameter("t", ParameterType.STRING, **values, **options)
        client = new_client(SQUARE, pac())
        experiment_of(client).search_space.add_parameter(parameter)
        with pytest.raises(ValueError, match=f"{kind} parameters are not supp.*'t'"):
            client.get_next_trials(max_trials=1)
