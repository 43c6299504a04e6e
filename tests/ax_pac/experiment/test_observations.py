"""What is read from an experiment, once for each state that it is in."""

from __future__ import annotations

import pytest

from ax_pac.experiment.observations import observed_data
from ax_pac.strategy.node_certificate import fit_node
from tests.helpers.ax_loops import experiment_of, new_client, run


def test_observations_follow_the_experiment():
    client = new_client()
    run(client, max_trials=6)
    experiment = experiment_of(client)
    before = observed_data(experiment)
    client.attach_data(5, {"loss": (123.0, 0.5)})
    after = observed_data(experiment)
    assert before["mean"].tolist()[:5] == after["mean"].tolist()[:5]
    assert after["mean"].tolist()[5:] == [123.0]
    experiment.trials[5].mark_abandoned(unsafe=True)
    assert len(observed_data(experiment)) == 5


def test_whoever_changes_the_observations_changes_a_copy():
    client = new_client()
    run(client, max_trials=5)
    changed = observed_data(experiment_of(client))
    changed.loc[:, "mean"] = 0.0
    assert (observed_data(experiment_of(client))["mean"] != 0.0).all()


def test_experiments_with_as_many_trials_are_told_apart():
    first, second = new_client(seed=1), new_client(seed=2)
    for client in (first, second):
        run(client, max_trials=5)
    one, two = (observed_data(experiment_of(client)) for client in (first, second))
    assert (one["mean"] != two["mean"]).all()


@pytest.fixture
def node_and_experiment():
    client = new_client(delta=1e-4)
    run(client, max_trials=7)
    node = client._generation_strategy.nodes_by_name["PAC"]
    return node, experiment_of(client), client


def test_the_same_data_are_transformed_once(node_and_experiment, monkeypatch):
    node, experiment, client = node_and_experiment
    adapter = fit_node(node, experiment)
    transformed = []
    transform = type(adapter)._transform_data

    def counted(self, *arguments, **options):
        transformed.append(1)
        return transform(self, *arguments, **options)

    monkeypatch.setattr(type(adapter), "_transform_data", counted)
    model = adapter.botorch_model
    for _ in range(3):
        assert fit_node(node, experiment) is adapter
    once = len(transformed)
    fit_node(node, experiment)
    assert len(transformed) == once
    assert adapter.botorch_model is model
    client.attach_data(6, {"loss": (5.0, 0.5)})
    fit_node(node, experiment)
    assert len(transformed) > once
    assert adapter.botorch_model is not model
    raw = experiment.lookup_data().df["mean"]
    assert adapter.botorch_model.train_targets.shape == raw.shape
