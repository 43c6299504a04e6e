"""What becomes of trials without a usable observation, through a `Client`."""

from __future__ import annotations

import math
import warnings

import pytest

from ax_pac import certificate_records, certify_experiment, latest_certificate
from ax_pac.experiment.observations import observed_data, unevaluated_arms
from tests.helpers.ax_loops import SEM, experiment_of, new_client, run, squared_distance

EDGES = {"x0": [0.0, 0.1, 0.3, 0.6, 1.0], "x1": [0.0, 0.25, 0.5, 0.75, 1.0]}


def fail(client, index):
    client.mark_trial_failed(index, failed_reason="no memory")


def abandon(client, index):
    client.mark_trial_abandoned(index)


def abandon_with_data(client, index):
    client.attach_data(index, {"loss": (0.5, SEM)})
    client.mark_trial_abandoned(index)


def complete_without_data(client, index):
    client.complete_trial(index)


def report_nan(client, index):
    client.complete_trial(index, {"loss": (math.nan, SEM)})


ENDINGS = [fail, abandon, abandon_with_data, complete_without_data, report_nan]


def distance(one, two):
    return max(abs(one[name] - two[name]) for name in one)


@pytest.mark.parametrize(
    ("ending", "settings"),
    [*((ending, {}) for ending in ENDINGS), (fail, {"cells": EDGES})],
)
def test_a_point_without_an_observation_is_not_proposed_again(ending, settings):
    client = new_client(delta=0.03, **settings)
    run(client, max_trials=7)
    tried = []
    for _ in range(3):
        ((index, point),) = client.get_next_trials(max_trials=1).items()
        ending(client, index)
        assert all(distance(point, other) > 0.01 for other in tried)
        tried.append(point)


def test_the_certificate_speaks_of_the_data_and_says_what_is_unknown():
    client = new_client(delta=0.03, sampling="challenger")  # always a new point
    run(client, max_trials=7)
    experiment = experiment_of(client)
    before = certify_experiment(experiment, delta=0.03, epsilon=0.05, seed=1)
    assert "unknown" not in before.reason
    for number, said in ((1, "; 1 point gave"), (2, "; 2 points gave")):
        ((index, _),) = client.get_next_trials(max_trials=1).items()
        client.mark_trial_failed(index)
        after = certify_experiment(experiment, delta=0.03, epsilon=0.05, seed=1)
        assert said in after.reason
        assert after.score == before.score
        assert after.challenger == before.challenger
        assert len(certificate_records(experiment)[-1]["unevaluated"]) == number
    assert latest_certificate(client) == after


def test_a_point_that_was_evaluated_in_the_end_counts_as_evaluated():
    client = new_client(delta=0.03)
    run(client, max_trials=6)
    ((index, point),) = client.get_next_trials(max_trials=1).items()
    client.mark_trial_failed(index)
    assert len(unevaluated_arms(experiment_of(client))) == 1
    again = client.attach_trial(point)
    client.complete_trial(again, {"loss": (squared_distance(point, again), SEM)})
    assert unevaluated_arms(experiment_of(client)) == []
    client.get_next_trials(max_trials=1)
    reason = latest_certificate(client).reason
    assert "unknown" not in reason


def test_a_visited_point_that_failed_is_left_alone_until_another_observation():
    client = new_client(delta=0.03)
    (visited, *_) = run(client, max_trials=7)
    index = client.attach_trial(visited)
    client.mark_trial_failed(index)
    (arm,) = unevaluated_arms(experiment_of(client))
    assert arm.parameters == visited
    client.get_next_trials(max_trials=1)
    assert "unknown" not in latest_certificate(client).reason
    run(client, max_trials=1)
    assert unevaluated_arms(experiment_of(client)) == []


def test_data_brought_later_make_a_completed_trial_count():
    client = new_client(delta=0.03)
    run(client, max_trials=6)
    ((index, point),) = client.get_next_trials(max_trials=1).items()
    client.complete_trial(index)
    assert len(observed_data(experiment_of(client))) == 6
    client.attach_data(index, {"loss": (squared_distance(point, index), SEM)})
    assert len(observed_data(experiment_of(client))) == 7
    assert unevaluated_arms(experiment_of(client)) == []


def test_points_outside_the_search_space_count_for_nothing_and_are_named():
    client = new_client(delta=0.03)
    run(client, max_trials=6)
    with pytest.warns(RuntimeWarning, match="out-of-design"):  # Ax's own
        index = client.attach_trial({"x0": 1.5, "x1": 0.5})
    client.complete_trial(index, {"loss": (-9.0, SEM)})
    experiment = experiment_of(client)
    with pytest.warns(UserWarning, match=rf"trials \[{index}\] lie outside"):
        data = observed_data(experiment)
    assert index not in set(data["trial_index"])
    with warnings.catch_warnings(action="ignore"):
        client.get_next_trials(max_trials=1)
    incumbent = certificate_records(experiment)[-1]["incumbent_arm"]
    assert experiment.arms_by_name[incumbent].parameters["x0"] <= 1.0
    assert certificate_records(experiment)[-1]["num_trials"] == 6


def test_repeated_points_are_observations_of_one_arm():
    client = new_client(delta=0.03)
    (point, *_) = run(client, max_trials=6)
    index = client.attach_trial(point)
    client.complete_trial(index, {"loss": (squared_distance(point, index), SEM)})
    data = observed_data(experiment_of(client))
    assert len(data) == 7
    assert data["arm_name"].nunique() == 6
    assert len(client.get_next_trials(max_trials=1)) == 1


def test_a_failed_point_is_remembered_after_a_reload(tmp_path):
    from ax.api.client import Client

    client = new_client(delta=0.03)
    run(client, max_trials=7)
    ((index, failed),) = client.get_next_trials(max_trials=1).items()
    client.mark_trial_failed(index)
    client.save_to_json_file(str(tmp_path / "a.json"))
    ((_, here),) = client.get_next_trials(max_trials=1).items()
    loaded = Client.load_from_json_file(str(tmp_path / "a.json"))
    ((_, there),) = loaded.get_next_trials(max_trials=1).items()
    assert distance(here, failed) > 0.01
    assert there == pytest.approx(here, abs=1e-6)
