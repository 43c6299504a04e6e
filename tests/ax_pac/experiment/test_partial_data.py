"""What counts as evidence: completed trials, in every way that data arrive."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import pytest
from ax.adapter.registry import Generators
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.core.arm import Arm
from ax.core.data import Data

from ax_pac import (
    PACStoppingStrategy,
    certificate_records,
    certify_experiment,
    pac_generation_strategy,
)
from ax_pac.adapter.generator import generator_kwargs
from ax_pac.experiment.observations import observed_data, unevaluated_arms
from ax_pac.experiment.settings import CertificateSettings
from tests.helpers.ax_loops import experiment_of

SEM = 0.02
QUESTION: dict[str, Any] = {"delta": 0.02, "epsilon": 0.05}


def loss(x: float) -> float:
    return (x - 0.3) ** 2


def client_with_completed(number: int = 12, strategy: bool = False) -> Client:
    """Trials at x = 0, 2/24, 4/24 and so on."""
    client = Client(random_seed=0)
    client.configure_experiment([RangeParameterConfig("x", (0.0, 1.0), "float")])
    client.configure_optimization("-loss")
    if strategy:
        client.set_generation_strategy(pac_generation_strategy(**QUESTION, seed=0))
    for k in range(number):
        index = client.attach_trial({"x": 2 * k / 24})
        client.complete_trial(index, {"loss": (loss(2 * k / 24), SEM)})
    return client


def running(client: Client, index: int) -> None:
    client.attach_data(index, {"loss": (1.0, SEM)}, progression=1)


def running_without_progression(client: Client, index: int) -> None:
    client.attach_data(index, {"loss": (1.0, SEM)})


def stopped_early(client: Client, index: int) -> None:
    running(client, index)
    client.mark_trial_early_stopped(index)


def failed(client: Client, index: int) -> None:
    running(client, index)
    client.mark_trial_failed(index)


def abandoned(client: Client, index: int) -> None:
    running(client, index)
    client.mark_trial_abandoned(index)


PARTIAL = [running, running_without_progression, stopped_early, failed, abandoned]


def attach_partial(client: Client, report: Any) -> list[int]:
    """Six trials between the completed ones, with worse values than those."""
    indices = []
    for k in range(6):
        index = client.attach_trial({"x": (2 * k + 1) / 24})
        report(client, index)
        indices.append(index)
    return indices


@pytest.mark.parametrize("report", PARTIAL)
def test_partial_data_are_no_evidence(report):
    client = client_with_completed()
    experiment = experiment_of(client)
    before = certify_experiment(experiment, **QUESTION)
    attach_partial(client, report)
    assert len(observed_data(experiment)) == 12
    after = certify_experiment(experiment, **QUESTION)
    assert after.num_observations == 12
    assert after.failure_probability == before.failure_probability
    # Computed anew, from what the model is fitted to, it is the same number.
    copy = client_with_completed()
    attach_partial(copy, report)
    fresh = certify_experiment(experiment_of(copy), **QUESTION)
    # The reason may count the points that gave no observation.
    assert dataclasses.replace(fresh, reason=before.reason) == before


@pytest.mark.parametrize("report", PARTIAL)
def test_a_stopping_strategy_does_not_count_them_either(report):
    client = client_with_completed(number=5)
    attach_partial(client, report)
    strategy = PACStoppingStrategy(**QUESTION)
    stops, reason = strategy.should_stop_optimization(experiment_of(client))
    assert not stops
    assert "too few observations" in reason


@pytest.mark.parametrize("report", PARTIAL)
def test_points_with_partial_data_are_not_proposed_again(report):
    client = client_with_completed(number=8, strategy=True)
    tried = []
    for _ in range(3):
        ((index, point),) = client.get_next_trials(max_trials=1).items()
        assert all(abs(point["x"] - x) > 0.005 for x in tried)
        tried.append(point["x"])
        report(client, index)
    arms = unevaluated_arms(experiment_of(client))
    has_ended = report in (stopped_early, failed, abandoned)
    assert len(arms) == (3 if has_ended else 0)
    records = certificate_records(experiment_of(client))
    assert {record["num_observations"] for record in records} == {8}


def test_a_trial_counts_from_the_moment_of_its_completion():
    client = client_with_completed(strategy=True)
    (first, *_) = attach_partial(client, running)
    client.get_next_trials(max_trials=1)
    client.complete_trial(first, {"loss": (loss(1 / 24), SEM)})
    data = observed_data(experiment_of(client))
    assert len(data) == 13
    assert data.loc[data["trial_index"] == first, "mean"].item() == loss(1 / 24)
    client.get_next_trials(max_trials=1)
    record = certificate_records(experiment_of(client))[-1]
    assert record["num_observations"] == 13


def test_of_several_progressions_the_last_one_counts():
    plain, curves = client_with_completed(0), client_with_completed(0)
    for k in range(12):
        x = 2 * k / 24
        for client in (plain, curves):
            index = client.attach_trial({"x": x})
        plain.complete_trial(index, {"loss": (loss(x), SEM)})
        for step in (1, 2, 3):
            value = (loss(x) + (3 - step), SEM)
            curves.attach_data(index, {"loss": value}, progression=step)
        curves.complete_trial(index)
    one, two = (observed_data(experiment_of(c)) for c in (plain, curves))
    assert one.equals(two)
    assert certify_experiment(experiment_of(plain), **QUESTION) == certify_experiment(
        experiment_of(curves), **QUESTION
    )


def test_data_attached_again_replace_what_was_there():
    client = client_with_completed()
    client.attach_data(3, {"loss": (0.5, 0.1)})
    data = observed_data(experiment_of(client))
    assert len(data) == 12
    assert data.loc[3, ["mean", "sem"]].tolist() == [0.5, 0.1]


def test_an_arm_that_was_abandoned_within_its_trial_is_no_evidence():
    client = client_with_completed(strategy=True)
    experiment = experiment_of(client)
    trial = experiment.new_batch_trial()
    for x in (0.11, 0.77):
        trial.add_arm(Arm({"x": x}))
    trial.mark_running(no_runner_required=True)
    first, second = (arm.name for arm in trial.arms)
    trial.mark_arm_abandoned(first)
    rows = [
        {"trial_index": trial.index, "arm_name": name, "metric_name": "loss"}
        | {"metric_signature": "loss", "mean": 0.1, "sem": SEM}
        for name in (first, second)
    ]
    experiment.attach_data(Data(df=pd.DataFrame(rows)))
    trial.mark_completed()
    names = set(observed_data(experiment)["arm_name"])
    assert second in names
    assert first not in names
    client.get_next_trials(max_trials=1)
    assert certificate_records(experiment)[-1]["num_observations"] == 13


def test_a_baseline_in_the_search_space_is_an_observation_like_any_other():
    client = client_with_completed()
    before = certify_experiment(experiment_of(client), **QUESTION)
    index = client.attach_baseline({"x": 0.31})
    client.complete_trial(index, {"loss": (loss(0.31), SEM)})
    after = certify_experiment(experiment_of(client), **QUESTION)
    assert after.num_observations == before.num_observations + 1


def test_the_model_of_ax_sees_the_observations_of_completed_trials_alone():
    client = client_with_completed()
    attach_partial(client, running)
    settings = CertificateSettings(**QUESTION, noise="raw")
    adapter = Generators.BOTORCH_MODULAR(
        experiment=experiment_of(client), **generator_kwargs(settings)
    )
    assert len(adapter.botorch_model.train_targets) == 12
