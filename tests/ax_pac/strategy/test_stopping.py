from __future__ import annotations

import pytest
from ax.exceptions.core import OptimizationShouldStop

from ax_pac import (
    PACStoppingStrategy,
    certificate_records,
    certify_experiment,
    incumbent_arm,
    latest_certificate,
)
from tests.helpers.ax_loops import SEM, experiment_of, new_client, run, squared_distance

# Ax's own proposals: BoTorch's line search may end early, and starts again elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:Optimization failed")

QUESTION = {"delta": 0.2, "epsilon": 0.05}


@pytest.mark.filterwarnings("ignore:.*AxClient.*:DeprecationWarning")
def test_the_service_api_stops_by_certificate():
    from ax.service.ax_client import AxClient, ObjectiveProperties

    client = AxClient(
        global_stopping_strategy=PACStoppingStrategy(delta=0.2, epsilon=0.05),
        random_seed=0,
        verbose_logging=False,
    )
    parameters = [
        {"name": f"x{i}", "type": "range", "bounds": [0.0, 1.0], "value_type": "float"}
        for i in range(2)
    ]
    client.create_experiment(
        parameters=parameters, objectives={"loss": ObjectiveProperties(minimize=True)}
    )

    def search() -> None:
        for _ in range(30):
            point, index = client.get_next_trial()
            client.complete_trial(index, (squared_distance(point, index), SEM))

    with pytest.raises(OptimizationShouldStop, match=r"at most epsilon = 0\.05"):
        search()
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds


def test_an_experiment_whose_points_another_rule_chose_is_certified():
    client = new_client(strategy=False)
    for i in range(12):
        point = {"x0": (0.37 * i) % 1, "x1": (0.61 * i) % 1}
        index = client.attach_trial(point)
        client.complete_trial(index, {"loss": (squared_distance(point, i), SEM)})
    experiment = experiment_of(client)
    certificate = certify_experiment(experiment, **QUESTION)
    assert certificate.num_observations == 12
    best = incumbent_arm(client)
    assert best is not None
    assert tuple(best.parameters.values()) == pytest.approx(certificate.incumbent)
    # The same question about the same data is answered from the record ...
    assert certify_experiment(experiment, **QUESTION) == certificate
    assert len(certificate_records(experiment)) == 1
    # ... another question is not.
    certify_experiment(experiment, delta=0.3, epsilon=0.05)
    assert len(certificate_records(experiment)) == 2


def test_the_sample_size_behind_the_standard_errors_is_used():
    client = new_client(delta=0.01)
    run(client, max_trials=6)
    experiment = experiment_of(client)
    certify_experiment(experiment, **QUESTION, num_samples=10)
    certify_experiment(experiment, **QUESTION, num_samples=10)
    certify_experiment(experiment, **QUESTION, num_samples=1000)
    sizes = [r["settings"]["num_samples"] for r in certificate_records(experiment)]
    assert sizes[-2:] == [10, 1000]
    assert sizes.count(10) == 1


def test_new_data_need_a_new_certificate():
    client = new_client(delta=0.01)
    run(client, max_trials=6)
    experiment = experiment_of(client)
    first = certify_experiment(experiment, **QUESTION)
    client.attach_data(5, {"loss": (0.9, SEM)})
    second = certify_experiment(experiment, **QUESTION)
    assert first.score != second.score


def test_an_experiment_without_data_is_refused():
    client = new_client()
    assert latest_certificate(client) is None
    assert incumbent_arm(client) is None
    with pytest.raises(ValueError, match="the experiment has no data"):
        certify_experiment(experiment_of(client), **QUESTION)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="delta must be"):
        PACStoppingStrategy(delta=-1.0, epsilon=0.05)
