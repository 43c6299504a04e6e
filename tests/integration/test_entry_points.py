"""One search through every entry point of Ax: same points and certificates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from ax.api.client import Client
from ax.api.protocols import IMetric, IRunner
from ax.core.experiment import Experiment
from ax.core.trial_status import TrialStatus
from ax.exceptions.core import OptimizationComplete, OptimizationShouldStop
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.orchestration.orchestrator import Orchestrator, OrchestratorOptions

import ax_pac.adapter.acquisition
from ax_pac import (
    PACStoppingStrategy,
    certificate_records,
    certified_generation_strategy,
    latest_certificate,
    pac_generation_strategy,
)
from tests.helpers.ax_loops import SEM, experiment_of, new_client, run, squared_distance

# Ax's own proposals: BoTorch's line search may end early, and starts again elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:Optimization failed")

QUESTION: dict[str, Any] = {"delta": 0.1, "epsilon": 0.05}
MAX_TRIALS = 40


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


def pac() -> GenerationStrategy:
    return pac_generation_strategy(**QUESTION, num_initial_trials=5, seed=1)


def client_with_runner(strategy: GenerationStrategy) -> Client:
    client = new_client(strategy=False)
    client.set_generation_strategy(strategy)
    client.configure_runner(Evaluate())
    client.configure_metrics([Loss(name="loss")])
    return client


def through_client(strategy: GenerationStrategy) -> Experiment:
    client = new_client(strategy=False)
    client.set_generation_strategy(strategy)
    run(client, max_trials=MAX_TRIALS)
    return experiment_of(client)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ax waits a second between two polls; these evaluations are done at once."""
    monkeypatch.setattr("ax.orchestration.orchestrator.sleep", lambda seconds: None)


def through_run_trials(strategy: GenerationStrategy) -> Experiment:
    client = client_with_runner(strategy)
    client.run_trials(max_trials=MAX_TRIALS, initial_seconds_between_polls=0)
    return experiment_of(client)


def through_orchestrator(
    strategy: GenerationStrategy, stopping: PACStoppingStrategy | None = None
) -> Experiment:
    experiment = experiment_of(client_with_runner(strategy))
    options = OrchestratorOptions(
        max_pending_trials=1,
        global_stopping_strategy=stopping,
        init_seconds_between_polls=0,
        min_seconds_before_poll=0.0,
    )
    Orchestrator(experiment, strategy, options).run_n_trials(MAX_TRIALS)
    return experiment


def through_ax_client(
    strategy: GenerationStrategy, stopping: PACStoppingStrategy | None = None
) -> Experiment:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from ax.service.ax_client import AxClient, ObjectiveProperties

        client = AxClient(
            generation_strategy=strategy,
            global_stopping_strategy=stopping,
            verbose_logging=False,
        )
    client.create_experiment(
        parameters=[
            {"name": f"x{i}", "type": "range", "bounds": [0.0, 1.0]} for i in range(2)
        ],
        objectives={"loss": ObjectiveProperties(minimize=True)},
    )
    expected = OptimizationComplete if stopping is None else OptimizationShouldStop

    def search() -> None:
        for _ in range(MAX_TRIALS):
            point, index = client.get_next_trial()
            client.complete_trial(index, (squared_distance(point, index), SEM))

    with pytest.raises(expected):
        search()
    return client.experiment


def stopping() -> PACStoppingStrategy:
    return PACStoppingStrategy(**QUESTION)


ENTRY_POINTS: dict[str, Callable[[], Experiment]] = {
    "client.run_trials": lambda: through_run_trials(pac()),
    "AxClient": lambda: through_ax_client(pac()),
    "AxClient, stopping strategy": lambda: through_ax_client(pac(), stopping()),
    "Orchestrator": lambda: through_orchestrator(pac()),
    "Orchestrator, stopping strategy": lambda: through_orchestrator(pac(), stopping()),
}


@pytest.fixture(scope="module")
def reference() -> Experiment:
    return through_client(pac())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each certificate that is computed, by whomever."""
    calls: list[int] = []
    certify = ax_pac.adapter.acquisition.certify

    def counted(model: Any, *arguments: Any, **settings: Any) -> Any:
        calls.append(len(model.train_targets))
        return certify(model, *arguments, **settings)

    monkeypatch.setattr(ax_pac.adapter.acquisition, "certify", counted)
    return calls


def points(experiment: Experiment) -> list[tuple[float, ...]]:
    return [tuple(t.arm.parameters.values()) for t in experiment.trials.values()]


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record less its wall seconds, its numbers apart."""
    return {name: value for name, value in record.items() if name != "seconds"}


def assert_same_records(one: Experiment, two: Experiment) -> None:
    first, second = certificate_records(one), certificate_records(two)
    assert [r["num_trials"] for r in first] == [r["num_trials"] for r in second]
    for a, b in zip(map(plain, first), map(plain, second), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, (float, list)):
                assert b[name] == pytest.approx(value, abs=1e-6), name
            else:
                assert b[name] == value, name


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_entry_point_gives_the_same_points_and_certificates(
    entry_point, reference, computed
):
    experiment = ENTRY_POINTS[entry_point]()
    assert len(experiment.trials) == len(reference.trials) < MAX_TRIALS
    for one, two in zip(points(experiment), points(reference), strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    assert_same_records(experiment, reference)
    # However often Ax asked, and whoever: each set of data was certified once.
    assert computed == [r["num_observations"] for r in certificate_records(reference)]


def test_a_stopping_strategy_waits_for_the_initial_design_of_the_search_beside_it():
    question = {"delta": 3.0, "epsilon": 0.05, "level": "pairwise"}
    settings = {**question, "num_initial_trials": 9, "seed": 1}
    alone = through_client(pac_generation_strategy(**settings))
    beside = through_ax_client(
        pac_generation_strategy(**settings), PACStoppingStrategy(**question)
    )
    # By itself the stopping strategy would have asked, and stopped, at six.
    assert len(alone.trials) == len(beside.trials) == 9
    assert_same_records(alone, beside)


def axs_own(**changes: Any) -> GenerationStrategy:
    return certified_generation_strategy(**{**QUESTION, "seed": 1, **changes})


@pytest.mark.parametrize(
    "entry_point", [through_client, through_run_trials, through_ax_client]
)
def test_axs_own_search_ends_by_our_certificate_through_every_entry_point(
    entry_point, computed
):
    experiment = entry_point(axs_own(delta=0.3))
    records = certificate_records(experiment)
    assert [record["holds"] for record in records] == [False] * (len(records) - 1) + [
        True
    ]
    assert records[-1]["num_trials"] == len(experiment.trials) < MAX_TRIALS
    assert computed == [record["num_observations"] for record in records]
    nodes = {
        t.generator_runs[0]._generation_node_name for t in experiment.trials.values()
    }
    assert "PAC" not in nodes


def test_a_certified_strategy_is_stored_and_refuses_one_that_ends(tmp_path):
    client = new_client(strategy=False)
    client.set_generation_strategy(axs_own(delta=0.3))
    run(client, max_trials=7)
    path = str(tmp_path / "client.json")
    client.save_to_json_file(path)
    loaded = Client.load_from_json_file(path)
    run(loaded, max_trials=MAX_TRIALS)
    certificate = latest_certificate(loaded)
    assert certificate is not None
    assert certificate.holds
    with pytest.raises(ValueError, match="last node 'PAC' of strategy 'PAC'"):
        certified_generation_strategy(pac(), **QUESTION)
