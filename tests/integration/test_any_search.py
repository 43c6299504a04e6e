"""The certificate for experiments whose points Ax's default strategy chose."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ax.api.client import Client
from ax.core.experiment import Experiment

from ax_pac import (
    DEFAULT_LEVEL,
    certificate_records,
    certify_experiment,
    incumbent_arm,
    latest_certificate,
)
from tests.helpers.ax_loops import SEM, experiment_of, new_client

# Ax's default acquisition says when it optimises again from other points.
pytestmark = pytest.mark.filterwarnings("ignore:Optimization failed")

QUESTION = {"delta": 0.15, "epsilon": 0.05}


def noisy_bowl(parameters, index: int) -> tuple[float, float]:
    noise = SEM * np.random.default_rng(index).standard_normal()
    return sum((x - 0.3) ** 2 for x in parameters.values()) + noise, SEM


def default_client() -> Client:
    """Ax's own strategy; no part of it is ours."""
    client = new_client(strategy=False)
    client.configure_generation_strategy(
        method="fast", initialization_random_seed=0, initialization_budget=6
    )
    return client


def tell_one_more(client: Client) -> None:
    for index, parameters in client.get_next_trials(max_trials=1).items():
        client.complete_trial(index, {"loss": noisy_bowl(parameters, index)})


def nodes(experiment: Experiment) -> set[str | None]:
    return {
        run._generation_node_name
        for trial in experiment.trials.values()
        for run in trial.generator_runs
    }


@pytest.fixture(scope="module")
def checked() -> tuple[Client, list[int]]:
    """A default search that is certified every second trial, until that holds."""
    client, checks = default_client(), []
    for trial in range(1, 25):
        tell_one_more(client)
        if trial >= 6 and trial % 2 == 0:
            checks.append(trial)
            if certify_experiment(experiment_of(client), **QUESTION).holds:
                break
    return client, checks


def test_a_periodic_check_ends_the_default_search(checked):
    client, checks = checked
    experiment = experiment_of(client)
    assert "PAC" not in nodes(experiment)
    assert len(nodes(experiment)) > 1  # space-filling points and a model's
    records = certificate_records(experiment)
    # One record a check, each on the data of its time.
    assert [record["num_observations"] for record in records] == checks
    assert [record["holds"] for record in records[:-1]] == [False] * (len(records) - 1)
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds
    assert certificate.level == DEFAULT_LEVEL
    best = incumbent_arm(client)
    assert best is not None
    regret = sum((x - 0.3) ** 2 for x in best.parameters.values())
    assert regret < QUESTION["delta"]


def test_a_search_goes_on_after_its_certificate(checked):
    client, _ = checked
    before = len(experiment_of(client).trials)
    tell_one_more(client)
    assert len(experiment_of(client).trials) == before + 1
    # A new observation makes new data, for which no record answers.
    records = len(certificate_records(experiment_of(client)))
    certify_experiment(experiment_of(client), **QUESTION)
    assert len(certificate_records(experiment_of(client))) == records + 1


@pytest.mark.parametrize("level", ["pairwise", "joint", "marginal"])
def test_a_finished_search_is_certified_after_a_reload(checked, level, tmp_path):
    client, _ = checked
    path = str(tmp_path / "client.json")
    client.save_to_json_file(path)
    experiment = experiment_of(Client.load_from_json_file(path))
    tight = certify_experiment(experiment, delta=1e-4, epsilon=0.05, level=level)
    assert not tight.holds
    certificate = certify_experiment(experiment, **QUESTION, level=level)
    assert certificate.level == level
    assert certificate.num_observations == len(experiment.trials)
    assert math.isfinite(certificate.score)
    assert certificate.pairwise_probability <= QUESTION["epsilon"]


def test_a_missing_standard_error_is_named():
    client = default_client()
    for index, parameters in client.get_next_trials(max_trials=1).items():
        client.complete_trial(index, {"loss": noisy_bowl(parameters, index)[0]})
    with pytest.raises(ValueError, match="standard error of the mean is missing"):
        certify_experiment(experiment_of(client), **QUESTION)
