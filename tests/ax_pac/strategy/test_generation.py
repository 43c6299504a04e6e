from __future__ import annotations

import math

import pytest
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.api.protocols import IMetric, IRunner
from ax.core.trial_status import TrialStatus
from ax.exceptions.core import OptimizationComplete

import ax_pac.adapter.acquisition
from ax_pac import (
    certificate_history,
    certificate_records,
    incumbent_arm,
    latest_certificate,
    pac_generation_strategy,
)
from tests.helpers.ax_loops import (
    SEM,
    SETTINGS,
    experiment_of,
    new_client,
    run,
    squared_distance,
)


def test_an_ordinary_client_loop_ends_by_its_certificate(finished):
    client, proposals = finished
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds
    assert certificate.num_observations == len(proposals) < 40
    with pytest.raises(OptimizationComplete):
        client.get_next_trials(max_trials=1)
    best = incumbent_arm(client)
    assert best is not None
    # The bowl's minimum is zero: the incumbent's value is its regret.
    assert sum((value - 0.3) ** 2 for value in best.parameters.values()) < 0.1


def test_run_trials_ends_by_the_certificate(monkeypatch):
    # Ax waits a second between two polls.
    monkeypatch.setattr("ax.orchestration.orchestrator.sleep", lambda seconds: None)

    class Evaluate(IRunner):
        def run_trial(self, trial_index, parameterization):
            return {"loss": squared_distance(dict(parameterization), trial_index)}

        def poll_trial(self, trial_index, trial_metadata):
            return TrialStatus.COMPLETED

        def stop_trial(self, trial_index, trial_metadata):
            return {}

    class Loss(IMetric):
        def fetch(self, trial_index, trial_metadata):
            return 0, (trial_metadata["loss"], SEM)

    client = new_client(delta=3.0, num_initial_trials=3)
    client.configure_runner(Evaluate())
    client.configure_metrics([Loss(name="loss")])
    client.run_trials(max_trials=12)
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds
    assert len(experiment_of(client).trials) < 12


def test_each_certificate_is_computed_once(monkeypatch):
    calls = []
    certify = ax_pac.adapter.acquisition.certify

    def counted(*arguments, **settings):
        calls.append(1)
        return certify(*arguments, **settings)

    monkeypatch.setattr(ax_pac.adapter.acquisition, "certify", counted)
    client = new_client()
    run(client)
    for _ in range(3):
        with pytest.raises(OptimizationComplete):
            client.get_next_trials(max_trials=1)
    history = certificate_history(client)
    assert len(calls) == len(history)
    assert history["num_trials"].is_unique
    assert history["num_trials"].is_monotonic_increasing
    assert list(history["holds"]) == [False] * (len(history) - 1) + [True]


def test_same_seed_proposes_the_same_points_and_another_seed_others(finished):
    _, first = finished
    assert run(new_client()) == first
    assert run(new_client(seed=8), max_trials=1) != first[:1]


# Ax's own report of its best point takes variances below 1e-10 for rounding error.
@pytest.mark.filterwarnings("ignore:Negative variance values")
@pytest.mark.parametrize("unit", [1e-9, 1e3])
def test_delta_is_in_objective_units(unit, finished):
    """Ax's own outcome transforms would turn delta into standard deviations."""

    def scaled(parameters, index):
        return unit * squared_distance(parameters, index)

    client = new_client(delta=unit * SETTINGS["delta"])
    proposals = run(client, evaluate=scaled, sem=unit * SEM)
    reference, expected = finished
    # The likelihood is optimised to a tolerance, on data that differ by rounding, so a
    # check that is close to epsilon may come out either way: one evaluation more.
    assert abs(len(proposals) - len(expected)) <= 1
    one, two = (certificate_history(c)["score"].iloc[0] for c in (client, reference))
    assert one == pytest.approx(two, abs=1e-2)
    for c in (client, reference):
        certificate = latest_certificate(c)
        assert certificate is not None
        assert certificate.holds


def test_maximising_the_negative_is_the_same_search(finished):
    up = run(
        new_client(objective="gain"),
        evaluate=lambda p, i: -squared_distance(p, i),
        metric="gain",
    )
    assert up == finished[1]


def test_relative_delta_follows_the_incumbent():
    client = new_client(delta=0.2, relative=True)
    run(client, evaluate=lambda p, i: 1.0 + squared_distance(p, i))
    deltas = certificate_history(client)["delta"]
    assert deltas.iloc[-1] == pytest.approx(0.2, rel=0.1)
    assert deltas.nunique() > 1


def test_relative_delta_of_a_mean_near_zero_is_refused():
    client = new_client(delta=0.2, relative=True, num_initial_trials=4)
    with pytest.raises(ValueError, match="not distinguishable from zero"):
        run(client, evaluate=lambda p, i: 0.01 * math.sin(7 * i), sem=0.5)
    assert len(experiment_of(client).trials_by_status[TrialStatus.COMPLETED]) == 4


def test_a_finished_search_continues_with_a_tighter_delta():
    client = new_client()
    run(client)
    loose = len(experiment_of(client).trials)
    client.set_generation_strategy(
        pac_generation_strategy(**{**SETTINGS, "delta": 0.07})
    )
    run(client)
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.delta == 0.07
    assert len(experiment_of(client).trials) > loose
    # No second space-filling design: the trials that exist were counted.
    nodes = [
        run._generation_node_name
        for trial in list(experiment_of(client).trials.values())[loose:]
        for run in trial.generator_runs
    ]
    assert set(nodes) == {"PAC"}


def test_the_initial_design_depends_on_the_dimension():
    client = new_client(d=6, num_initial_trials=None)
    run(client, max_trials=9)
    trials = experiment_of(client).trials.values()
    nodes = [t.generator_runs[0]._generation_node_name for t in trials]
    assert nodes == ["Sobol"] * 8 + ["PAC"]


def test_several_trials_at_once_are_different_points():
    client = new_client(delta=0.02)
    run(client, max_trials=6)
    trials = client.get_next_trials(max_trials=3)
    points = [tuple(parameters.values()) for parameters in trials.values()]
    assert len(set(points)) == 3
    distances = [math.dist(a, b) for i, a in enumerate(points) for b in points[:i]]
    assert min(distances) > 1e-3


def test_certificate_ignores_pending_trials():
    client = new_client(delta=0.02)
    run(client, max_trials=7)
    client.get_next_trials(max_trials=2)
    records = certificate_records(experiment_of(client))
    client.get_next_trials(max_trials=1)
    assert certificate_records(experiment_of(client)) == records


def noisy(parameters, index):
    """Noise of a tenth, far above what one evaluation can resolve."""
    exact = squared_distance(parameters, index)
    return exact + 0.1 * math.sin(1000.0 * (index + 1))


def test_an_incumbent_is_evaluated_again_and_never_reads_as_a_certificate():
    client = new_client(delta=0.05, level="pairwise")
    proposals = run(client, evaluate=noisy, sem=0.1, max_trials=16)
    points = [tuple(p.values()) for p in proposals]
    assert len(set(points)) < len(points)
    trials = list(experiment_of(client).trials.values())[5:]
    # Deduplication would have put a Sobol point in place of the repetition.
    assert {t.generator_runs[0]._generation_node_name for t in trials} == {"PAC"}
    repeated = [t for t in trials if points.index(points[t.index]) < t.index]
    for trial in repeated:
        score = trial.generator_runs[0].gen_metadata["expected_acquisition_value"]
        assert score[0] > -50  # the challenger's, not minus infinity
    # A repeated arm keeps its name, and both observations are fitted.
    assert (
        repeated[0].arm.name
        == trials[0].experiment.arms_by_signature[repeated[0].arm.signature].name
    )
    record = certificate_records(experiment_of(client))[-1]
    assert record["num_observations"] == record["num_trials"]
    assert not record["holds"]


def test_the_published_rule_never_looks_at_the_incumbent_again():
    client = new_client(delta=0.05, sampling="challenger")
    run(client, evaluate=noisy, sem=0.1, max_trials=12)
    records = certificate_records(experiment_of(client))
    trials = experiment_of(client).trials
    for record in records[:-1]:
        proposed = trials[record["num_trials"]].arm.parameters
        assert tuple(proposed.values()) == pytest.approx(tuple(record["challenger"]))


def test_integers_and_choices_are_left_to_ax():
    client = Client()
    client.configure_experiment(
        parameters=[
            RangeParameterConfig(name="width", parameter_type="int", bounds=(1, 40)),
            RangeParameterConfig(
                name="rate", parameter_type="float", bounds=(1e-4, 1.0), scaling="log"
            ),
            ChoiceParameterConfig(
                name="depth", values=[1, 2, 4], parameter_type="int", is_ordered=True
            ),
        ]
    )
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(
        pac_generation_strategy(delta=0.1, epsilon=0.05, num_initial_trials=5, seed=0)
    )

    def loss(p, index):
        return (p["width"] / 40 - 0.5) ** 2 + (math.log10(p["rate"]) + 2) ** 2 / 16

    proposals = run(client, evaluate=loss, max_trials=8)
    assert all(
        isinstance(p["width"], int) and p["depth"] in (1, 2, 4) for p in proposals
    )
    record = certificate_records(experiment_of(client))[-1]
    assert record["incumbent_arm"] in experiment_of(client).arms_by_name


@pytest.mark.parametrize(
    ("outcome", "message", "position"),
    [
        (0.5, "standard error of the mean is missing", 1),
        ((0.5, None), "standard error of the mean is missing", 1),
        ((0.5, math.nan), "standard error of the mean is missing", 6),
        ((0.5, math.inf), "standard error of the mean is inf", 1),
        ((0.5, -0.1), "standard error of the mean is -0.1", 6),
        ((math.inf, 0.1), "the mean is inf", 1),
    ],
)
def test_an_unusable_observation_is_named_and_can_be_replaced(
    outcome, message, position
):
    client = new_client(delta=0.01)
    run(client, max_trials=position)
    (index,) = client.get_next_trials(max_trials=1)
    client.complete_trial(index, {"loss": outcome})
    with pytest.raises(ValueError, match=rf"trial {index}, metric 'loss'.*{message}"):
        client.get_next_trials(max_trials=1)
    client.attach_data(index, {"loss": (0.5, SEM)})
    assert len(client.get_next_trials(max_trials=1)) == 1


def test_outcome_constraints_and_several_objectives_are_refused():
    client = new_client()
    client.configure_optimization(objective="-loss", outcome_constraints=["size <= 1"])
    with pytest.raises(ValueError, match="outcome constraints are not supported"):
        client.get_next_trials(max_trials=1)
    client = new_client()
    client.configure_optimization(objective="-loss, -size")
    with pytest.raises(ValueError, match="several objectives are not supported"):
        client.get_next_trials(max_trials=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0}, "delta must be"),
        ({"epsilon": 1}, "epsilon must be"),
        ({"level": "certain"}, "level must be"),
        ({"sampling": "random"}, "sampling must be"),
        ({"num_initial_trials": 1}, "num_initial_trials must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pac_generation_strategy(**{**SETTINGS, **settings})


def test_level_marginal_is_reached_through_ax():
    client = new_client(delta=0.3, level="marginal", num_initial_trials=8)
    run(client)
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds
    assert certificate.hyperparameter_status == "ok"
    assert certificate.num_observations >= 10  # fewer say nothing of hyperparameters
    history = certificate_history(client)
    early = history[history["num_observations"] < 10]
    assert not early["holds"].any()
