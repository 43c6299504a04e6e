"""The transform that takes the known part off, in every kind of search space."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from ax.adapter.registry import Generators
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.core.observation import ObservationFeatures

from ax_pac import (
    CertificateSettings,
    KnownPart,
    certify_experiment,
    pac_generation_strategy,
)
from ax_pac.adapter.fitted import state_of
from ax_pac.adapter.generator import generator_kwargs
from ax_pac.ax_internals import last_acquisition, strategy_of
from tests.helpers.ax_loops import experiment_of

# Of a choice with two values Ax says that it takes them to be ordered.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_ordered.*:Warning", "ignore:Optimization failed"
)

EDGES = [0.0, 0.1, 0.3, 0.6, 1.0]
PARAMETERS = [
    RangeParameterConfig("x", (0.0, 2.0), "float"),
    RangeParameterConfig("lr", (1e-3, 1.0), "float", scaling="log"),
    RangeParameterConfig("bin", (0.0, 1.0), "float"),
    RangeParameterConfig("n", (1, 6), "int"),
    RangeParameterConfig("m", (1, 100), "int", scaling="log"),
    ChoiceParameterConfig("letter", ["a", "b", "c"], "str", is_ordered=False),
    ChoiceParameterConfig("flag", [False, True], "bool"),
    ChoiceParameterConfig("size", [0.5, 2.0, 8.0], "float", is_ordered=True),
    ChoiceParameterConfig("only", ["z"], "str", is_ordered=False),
]
KNOWN = KnownPart(
    {
        "x": -0.7,
        "lr": ([1e-3, 0.1, 1.0], [0.2, 0.5, 0.1]),
        "bin": [0.1, 0.4, 0.2, 0.9],
        "n": ([1, 2, 3, 4, 5, 6], [0.0, 0.3, 0.5, 0.6, 0.65, 0.7]),
        "m": 0.01,
        "letter": (["b", "a", "c"], [0.3, 0.1, 0.7]),
        "flag": ([True, False], [0.5, 0.0]),
        "size": 0.05,
        "only": (["z"], [0.25]),
    },
    constant=2.0,
)


def by_hand(p: dict[str, Any]) -> float:
    """The same, written out; `bin` at the centre of its cell."""

    def between(x: float, at: list[float], values: list[float]) -> float:
        return float(np.interp(x, at, values))

    cell = max(i for i in range(4) if EDGES[i] <= p["bin"])
    return (
        2.0
        - 0.7 * p["x"]
        + between(p["lr"], [1e-3, 0.1, 1.0], [0.2, 0.5, 0.1])
        + [0.1, 0.4, 0.2, 0.9][cell]
        + [0.0, 0.3, 0.5, 0.6, 0.65, 0.7][p["n"] - 1]
        + 0.01 * p["m"]
        + {"a": 0.1, "b": 0.3, "c": 0.7}[p["letter"]]
        + 0.5 * p["flag"]
        + 0.05 * p["size"]
        + 0.25
    )


def unknown(p: dict[str, Any]) -> float:
    return 0.3 * math.sin(3.0 * p["x"]) + 0.1 * p["n"] + (0.2 if p["flag"] else 0.0)


def searched(known: KnownPart | None, trials: int = 16, **settings: Any) -> Client:
    client = Client(random_seed=0)
    client.configure_experiment(PARAMETERS)
    client.configure_optimization("-objective")
    question = {"delta": 0.05, "epsilon": 0.05, "seed": 0, "num_initial_trials": 12}
    client.set_generation_strategy(
        pac_generation_strategy(
            **{**question, **settings}, known=known, cells={"bin": EDGES}
        )
    )
    rng = random.Random(0)
    for _ in range(trials):
        for index, p in client.get_next_trials(max_trials=1).items():
            value = by_hand(p) + unknown(p) + rng.gauss(0.0, 0.01)
            client.complete_trial(index, {"objective": (value, 0.01)})
    return client


@pytest.fixture(scope="module")
def client() -> Client:
    return searched(KNOWN)


def adapter_of(client: Client) -> Any:
    node = strategy_of(client).nodes_by_name["PAC"]
    return node.generator_spec.fitted_adapter


def test_the_function_of_the_models_inputs_is_the_known_part_of_the_parameters(client):
    adapter = adapter_of(client)
    known = state_of(adapter.botorch_model).known
    arms = list(experiment_of(client).arms_by_name.values())
    points = adapter.transform_observation_features(
        [ObservationFeatures(dict(arm.parameters)) for arm in arms]
    )
    values = known(torch.as_tensor(points).double()).tolist()
    assert values == pytest.approx([by_hand(arm.parameters) for arm in arms], abs=1e-9)
    assert len({arm.parameters["letter"] for arm in arms}) == 3


def test_the_model_sees_the_rest_and_predictions_are_of_the_whole(client):
    adapter = adapter_of(client)
    # The last fit is to the trials before the last proposal.
    data = experiment_of(client).lookup_data().df
    [dataset] = adapter.generator.surrogate.training_data
    rest = []
    for row in data.to_dict("records")[: len(dataset.Y)]:
        parameters = experiment_of(client).arms_by_name[row["arm_name"]].parameters
        rest.append(row["mean"] - by_hand(parameters))
    assert dataset.Y.squeeze(-1).tolist() == pytest.approx(rest, abs=1e-9)
    arm = experiment_of(client).arms_by_name["3_0"]
    features = [ObservationFeatures(dict(arm.parameters))]
    means, covariances = adapter.predict(features)
    points = torch.as_tensor(adapter.transform_observation_features(features)).double()
    posterior = adapter.botorch_model.posterior(points)
    expected = posterior.mean.item() + by_hand(arm.parameters)
    assert means["objective"][0] == pytest.approx(expected, abs=1e-9)
    variance = posterior.distribution.covariance_matrix.item()
    assert covariances["objective"]["objective"][0] == pytest.approx(variance, rel=1e-3)


def test_tables_are_stored_once_with_the_strategy_and_not_with_every_trial(client):
    for trial in experiment_of(client).trials.values():
        run = trial.generator_runs[0]
        kwargs = [run._generator_kwargs, run._adapter_kwargs]
        assert "0.65" not in repr(kwargs)
    spec = strategy_of(client).nodes_by_name["PAC"].generator_spec
    assert "0.65" in repr(spec.generator_kwargs)


def test_a_metric_with_a_weight_is_the_same_as_its_whole_objective():
    """The rest, times its weight, is what the model sees either way."""
    known = KnownPart({"x": 0.4, "n": 0.1}, floor=-5.0)
    gamma = 0.2

    def search(weight: float | None) -> Client:
        client = Client(random_seed=0)
        client.configure_experiment(PARAMETERS[:1] + PARAMETERS[3:4])
        client.configure_optimization("-metric")
        part = KnownPart(known.terms, floor=known.floor, weight=weight)
        # Space-filling points only, which are the same to the last bit.
        settings = {"delta": 0.01, "epsilon": 0.01, "seed": 0, "num_initial_trials": 20}
        client.set_generation_strategy(pac_generation_strategy(**settings, known=part))
        rng = random.Random(0)
        for _ in range(16):
            for index, p in client.get_next_trials(max_trials=1).items():
                value, sem = (
                    (p["x"] - 1.5) ** 2 + 0.2 * p["n"] + rng.gauss(0, 0.05),
                    0.05,
                )
                if weight is None:
                    value, sem = gamma * value + known(p), gamma * sem
                client.complete_trial(index, {"metric": (value, sem)})
        return client

    whole, part = search(None), search(gamma)
    trials = [experiment_of(client).trials.values() for client in (whole, part)]
    for one, two in zip(*trials, strict=True):
        assert one.arm.parameters == pytest.approx(two.arm.parameters, abs=1e-6)
    question = {"delta": 0.03, "epsilon": 0.05}
    first = certify_experiment(experiment_of(whole), **question, known=known)
    weighted = KnownPart(known.terms, floor=known.floor, weight=gamma)
    second = certify_experiment(experiment_of(part), **question, known=weighted)
    assert first.incumbent == pytest.approx(second.incumbent)
    assert first.score == pytest.approx(second.score, rel=1e-3)
    assert first.delta == second.delta
    # One set of evaluations serves any other weight.
    other = KnownPart(known.terms, weight=2.0)
    third = certify_experiment(experiment_of(part), **question, known=other)
    assert third.num_observations == second.num_observations
    settings = CertificateSettings(**question, known=weighted)
    adapter = Generators.BOTORCH_MODULAR(
        experiment=experiment_of(part), **generator_kwargs(settings)
    )
    arm = next(iter(experiment_of(part).arms_by_name.values()))
    means, covariances = adapter.predict([ObservationFeatures(dict(arm.parameters))])
    observed = experiment_of(part).lookup_data().df["mean"].iloc[0]
    assert means["metric"][0] == pytest.approx(observed, abs=0.2)
    assert 0.0 < covariances["metric"]["metric"][0] < 0.05**2


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"depth": 1.0}, "a term for 'depth'.*has the parameters"),
        ({"letter": 1.0}, "'letter' is a slope, the parameter no number"),
        ({"flag": 1.0}, "'flag' is a slope, the parameter no number"),
        ({"letter": (["a", "b"], [0.0, 1.0])}, r"'letter' lacks the values \['c'\]"),
        ({"x": ([0.0, 1.0], [0.0, 1.0])}, r"'x' covers \[0.0, 1.0\], not its range"),
        ({"x": (["a", "b"], [0.0, 1.0])}, "'x' needs a table of numbers"),
    ],
)
def test_terms_that_do_not_fit_the_search_space_are_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        searched(KnownPart(terms), trials=13)


# Without clipping, the noise of the good ones is next to nothing beside the bad ones.
@pytest.mark.filterwarnings("ignore:Very small noise values")
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("weight", [None, 0.5])
def test_what_is_too_bad_to_win_is_clipped_for_the_model_alone(sign, weight):
    """A steep error, minimised with a floor, or its mirror image maximised."""
    client = Client(random_seed=0)
    client.configure_experiment(PARAMETERS[:1])
    client.configure_optimization("-metric" if sign > 0.0 else "metric")
    bound = {"floor": 0.0} if sign > 0.0 else {"ceiling": 0.0}
    known = KnownPart({"x": sign * 0.2}, weight=weight, **bound)
    settings = {"delta": 0.02, "epsilon": 0.05, "seed": 0, "num_initial_trials": 12}
    client.set_generation_strategy(pac_generation_strategy(**settings, known=known))
    for _ in range(12):
        for index, p in client.get_next_trials(max_trials=1).items():
            value = sign * 100.0 * math.exp(-3.5 * p["x"])
            if weight is None:
                value += known(p)
            client.complete_trial(index, {"metric": (value, 0.01 + 0.02 * abs(value))})
    experiment = experiment_of(client)
    question = CertificateSettings(delta=0.02, epsilon=0.05, known=known)
    adapter = Generators.BOTORCH_MODULAR(
        experiment=experiment, **generator_kwargs(question)
    )
    arms = experiment.arms_by_name
    data = experiment.lookup_data().df
    points = [arms[name].parameters for name in data["arm_name"]]
    at = np.array([known(p) for p in points])
    unknown = (
        data["mean"].to_numpy() - at
        if weight is None
        else weight * data["mean"].to_numpy()
    )
    # By hand: half as far again as a better point can be, beyond which the logarithm
    # takes over.
    sem = data["sem"].to_numpy() * (weight or 1.0)
    size, cost = sign * unknown, sign * at
    place = int((cost + size + 2.0 * sem).argmin())
    best, slack = (cost + size + 2.0 * sem)[place], 2.0 * sem[place]
    bound = np.maximum(1.5 * (best - cost), 0.5 * best) + slack
    expected = np.where(
        size <= bound, size, bound * (1.0 + np.log(np.maximum(size, bound) / bound))
    )
    model = adapter.generator.surrogate.model
    transform = model.outcome_transform
    seen = (model.train_targets * transform.stdvs + transform.means).reshape(-1)
    np.testing.assert_allclose(
        np.sort(sign * seen.detach().numpy()), np.sort(expected), rtol=1e-9
    )
    assert expected.max() < 0.2 * size.max()
    # Predictions are of the metric as it was reported.
    features = [ObservationFeatures(dict(p)) for p in points]
    means, covariances = adapter.predict(features)
    np.testing.assert_allclose(means["metric"], data["mean"], rtol=0.05, atol=0.02)
    assert (np.array(covariances["metric"]["metric"]) < (5 * data["sem"]) ** 2).all()
    adapter.gen(1)
    reach = best + best / 6.0 + slack
    assert sign * state_of(model).known.reach == pytest.approx(reach, rel=0.02)
    # The incumbent is no other one without.
    bounds = {name: getattr(known, name) for name in ("floor", "ceiling")}
    plain = KnownPart(known.terms, weight=weight, clip=None, **bounds)
    first, second = (
        certify_experiment(experiment, delta=0.02, epsilon=0.05, known=part)
        for part in (known, plain)
    )
    assert first.incumbent == second.incumbent


def test_every_point_that_is_scored_can_win(client):
    floored = searched(KnownPart(KNOWN.terms, constant=2.0, floor=-0.3), trials=18)
    acquisition = last_acquisition(adapter_of(floored))
    score = acquisition.acqf
    assert score.rules_out
    challenger = torch.tensor([acquisition.certificate.challenger]).double()
    assert bool(score.can_win(challenger).all())
    assert bool(acquisition._domain.contains(challenger).all())
