"""Several evaluations at once: batches, trials under way, trials of several arms."""

from __future__ import annotations

import math
import warnings
from collections import deque
from typing import Any

import botorch.optim.optimize_mixed
import numpy as np
import pandas as pd
import pytest
import torch
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.core.data import Data
from ax.core.metric import Metric
from ax.core.trial_status import TrialStatus
from ax.exceptions.core import OptimizationComplete
from ax.orchestration.orchestrator import (
    Orchestrator,
    OrchestratorOptions,
    TrialType,
)
from ax.runners.synthetic import SyntheticRunner
from ax.utils.common.result import Ok
from botorch.exceptions.warnings import OptimizationWarning

from ax_pac import (
    PACAcquisition,
    certificate_records,
    find_challenger,
    latest_certificate,
    open_client,
    pac_generation_strategy,
)
from ax_pac.acquisition.difference import condition_on_pending
from ax_pac.ax_internals import (
    last_acquisition,
    new_runs,
    node_of,
    objective_transform,
    strategy_of,
)
from ax_pac.strategy.batch import proposed_together
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import (
    SEM,
    experiment_of,
    new_client,
    run,
    squared_distance,
    take_up,
)


def batch_of(client: Any, number: int) -> torch.Tensor:
    trials = client.get_next_trials(max_trials=number)
    return torch.tensor([list(p.values()) for p in trials.values()]).double()


def noisy(seed: int, sem: float) -> Any:
    def evaluate(parameters, index):
        noise = np.random.default_rng((seed, index)).standard_normal()
        return sum((value - 0.3) ** 2 for value in parameters.values()) + sem * noise

    return evaluate


@pytest.mark.parametrize("sem", [0.02, 0.1])
def test_a_batch_holds_different_points_and_the_incumbent_at_most_once(sem):
    client = new_client(delta=0.02)
    run(client, max_trials=8, sem=sem, evaluate=noisy(0, sem))
    visited = {
        tuple(trial.arm.parameters.values())
        for trial in experiment_of(client).trials.values()
    }
    batch = [tuple(point.tolist()) for point in batch_of(client, 5)]
    assert len(set(batch)) == 5
    assert sum(point in visited for point in batch) <= 1
    assert min(math.dist(a, b) for i, a in enumerate(batch) for b in batch[:i]) > 5e-3


def test_no_evaluation_under_way_is_started_again_when_more_are_asked_for_later():
    client = new_client(delta=0.02)
    run(client, max_trials=8, sem=0.1, evaluate=noisy(0, 0.1))
    points = torch.cat([batch_of(client, 1) for _ in range(4)])
    distances = torch.cdist(points, points) + torch.eye(4)
    assert float(distances.min()) > 5e-3


def test_with_cells_a_batch_holds_different_cells():
    edges = tuple(np.linspace(0.0, 1.0, 6).tolist())
    client = new_client(delta=0.02, cells={"x0": edges, "x1": edges})
    run(client, max_trials=8, sem=0.1, evaluate=noisy(0, 0.1))
    batch = {tuple(point.tolist()) for point in batch_of(client, 6)}
    assert len(batch) == 6


def test_more_evaluations_at_once_than_cells_repeat_some():
    client = new_client(d=1, delta=0.02, cells={"x0": (0.0, 0.4, 0.7, 1.0)})
    run(client, max_trials=6, sem=0.1, evaluate=noisy(0, 0.1))
    assert len(batch_of(client, 5).unique(dim=0)) == 3


@pytest.mark.parametrize("sampling", ["challenger", "expected_improvement"])
def test_batches_of_the_other_sampling_rules_hold_different_points(sampling):
    client = new_client(delta=0.02, sampling=sampling)
    run(client, max_trials=8)
    points = batch_of(client, 4)
    distances = torch.cdist(points, points) + torch.eye(4)
    assert float(distances.min()) > 1e-4


def test_batches_in_spaces_of_integers_hold_different_points():
    client = Client()
    width = RangeParameterConfig(name="x0", parameter_type="int", bounds=(0, 20))
    share = RangeParameterConfig(name="x1", parameter_type="float", bounds=(0, 1))
    client.configure_experiment(parameters=[width, share])
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(
        pac_generation_strategy(delta=0.1, epsilon=0.05, num_initial_trials=5, seed=0)
    )
    run(client, max_trials=6, evaluate=lambda p, i: (p["x0"] / 20 - 0.4) ** 2 + p["x1"])
    assert len(batch_of(client, 4).unique(dim=0)) == 4


def test_a_line_search_that_ends_early_in_such_a_space_says_nothing(monkeypatch):
    climb = botorch.optim.optimize_mixed.gen_candidates_scipy

    def ends_early(*args, **kwargs):
        warnings.warn("status 2, ABNORMAL", OptimizationWarning, stacklevel=1)
        return climb(*args, **kwargs)

    monkeypatch.setattr(
        botorch.optim.optimize_mixed, "gen_candidates_scipy", ends_early
    )
    test_batches_in_spaces_of_integers_hold_different_points()


def largest_score(client: Any, evaluated: torch.Tensor) -> float:
    """What the strongest challenger would score after evaluations as expected."""
    adapter = strategy_of(client).adapter
    (X,) = adapter.generator.surrogate.Xs
    acquisition = PACAcquisition(
        condition_on_pending(adapter.botorch_model, evaluated),
        X,
        0.02,
        objective_transform(last_acquisition(adapter), PACAcquisition),
    )
    box = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    return find_challenger(acquisition, X, box, seed=0).score


def test_a_batch_says_more_than_repetitions_and_than_random_points():
    """The score to come down after the batch, the measure of how close one is."""
    better_than_repeated = better_than_random = 0
    for seed in range(2):
        client = new_client(delta=0.02, seed=seed, level="pairwise")
        run(client, max_trials=9, sem=0.05, evaluate=noisy(seed, 0.05))
        batch = batch_of(client, 4)
        rng = torch.Generator().manual_seed(seed)
        random = torch.rand(4, 2, generator=rng, dtype=torch.float64)
        score = largest_score(client, batch)
        better_than_repeated += score < largest_score(client, batch[:1].expand(4, 2))
        better_than_random += score < largest_score(client, random)
    assert better_than_repeated == 2
    assert better_than_random == 2


def evaluations(batch: int, seed: int, *, d: int, delta: float, sem: float) -> int:
    """Evaluations of a search in batches until it is certified."""
    client = new_client(d=d, delta=delta, seed=seed, num_initial_trials=None)
    evaluate, done = noisy(seed, sem), 0
    while done < 150:
        try:
            trials = client.get_next_trials(max_trials=batch)
        except OptimizationComplete:
            return done
        for index, parameters in trials.items():
            client.complete_trial(index, {"loss": (evaluate(parameters, index), sem)})
            done += 1
    return done


# Measured: 1.29, 1.13 and 1.33 in the three settings, of which rounding up to whole
# batches is 0.1 to 0.2.
FACTOR = 1.5


@pytest.mark.parametrize(
    ("d", "delta", "sem", "seeds"),
    [
        (2, 0.05, 0.02, 1),
        pytest.param(2, 0.05, 0.02, 10, marks=pytest.mark.slow),
        pytest.param(2, 0.05, 0.05, 10, marks=pytest.mark.slow),
        pytest.param(3, 0.1, 0.05, 10, marks=pytest.mark.slow),
    ],
)
def test_batches_of_four_need_few_more_evaluations(d, delta, sem, seeds):
    setting = {"d": d, "delta": delta, "sem": sem}
    one, four = (
        sum(evaluations(batch, seed, **setting) for seed in range(seeds))
        for batch in (1, 4)
    )
    assert four <= FACTOR * one


def test_an_asynchronous_loop_is_stopped_while_evaluations_run():
    client = new_client()
    running: deque[tuple[int, dict[str, Any]]] = deque()
    certified_beside_running = False
    for _ in range(60):
        try:
            running.extend(client.get_next_trials(max_trials=3 - len(running)).items())
        except OptimizationComplete:
            certified_beside_running = len(running) == 2
            break
        index, parameters = running.popleft()
        client.complete_trial(
            index, {"loss": (squared_distance(parameters, index), SEM)}
        )
        by_status = experiment_of(client).trial_indices_by_status
        assert len(by_status[TrialStatus.RUNNING]) == 2
    assert certified_beside_running
    record = certificate_records(experiment_of(client))[-1]
    assert record["holds"]
    # It speaks of the evaluations that were complete, and of no others.
    assert record["num_observations"] == len(experiment_of(client).trials) - 2


class LossOfArms(Metric):
    """Every arm of a trial, evaluated when it is asked for."""

    def fetch_trial_data(self, trial, **kwargs):
        rows = [
            {
                "trial_index": trial.index,
                "arm_name": name,
                "metric_name": self.name,
                "metric_signature": self.signature,
                "mean": squared_distance(arm.parameters, 100 * trial.index + k),
                "sem": SEM,
            }
            for k, (name, arm) in enumerate(trial.arms_by_name.items())
        ]
        return Ok(value=Data(df=pd.DataFrame(rows)))


def test_trials_of_several_arms_end_by_the_certificate():
    experiment = experiment_of(new_client(strategy=False))
    strategy = pac_generation_strategy(
        delta=0.1, epsilon=0.05, num_initial_trials=5, seed=1
    )

    def search() -> None:
        for _ in range(10):
            (runs,) = strategy.gen(experiment=experiment, n=4)
            trial = experiment.new_batch_trial(generator_runs=runs)
            assert len(trial.arms) == 4
            trial.mark_running(no_runner_required=True)
            data = LossOfArms(name="loss").fetch_trial_data(trial).value
            experiment.attach_data(data)
            trial.mark_completed()

    with pytest.raises(OptimizationComplete):
        search()
    certificate = latest_certificate(experiment)
    assert certificate is not None
    assert certificate.num_observations == 4 * len(experiment.trials)


class Immediate(SyntheticRunner):
    """Every trial is complete when it is looked at."""

    def poll_trial_status(self, trials):
        return {TrialStatus.COMPLETED: {trial.index for trial in trials}}


def test_an_orchestrator_runs_trials_of_several_arms_to_the_certificate():
    client = new_client(strategy=False)
    strategy = pac_generation_strategy(
        delta=0.1, epsilon=0.05, num_initial_trials=5, seed=1
    )
    experiment = experiment_of(client)
    experiment.runner = Immediate()
    experiment.update_metric(LossOfArms(name="loss"))
    options = OrchestratorOptions(
        trial_type=TrialType.BATCH_TRIAL,
        batch_size=4,
        max_pending_trials=1,
        init_seconds_between_polls=0,
        min_seconds_before_poll=0.0,
    )
    Orchestrator(experiment, strategy, options).run_n_trials(10)
    certificate = latest_certificate(experiment)
    assert certificate is not None
    assert certificate.holds


@pytest.mark.parametrize("trials", [2, 8])
def test_points_proposed_together_are_those_of_one_after_the_other(trials):
    """In the initial design, and by the model; with a trial under way."""
    one, two = new_client(delta=0.02), new_client(delta=0.02)
    for client in (one, two):
        run(client, max_trials=trials)
        client.attach_trial({"x0": 0.9, "x1": 0.1})
    expected = one.get_next_trials(max_trials=4)
    experiment, strategy = experiment_of(two), strategy_of(two)
    runs = proposed_together(strategy, experiment, 4)
    assert [len(each) for each in runs] == [1] * 4
    for (generator_run,), point in zip(runs, expected.values(), strict=True):
        trial = experiment.new_trial(generator_run=generator_run)
        assert trial.arm.parameters == pytest.approx(point, abs=1e-6)
    before = [trial.generator_run for trial in experiment_of(one).trials.values()][-4:]
    after = [trial.generator_run for trial in experiment.trials.values()][-4:]
    assert new_runs(strategy)[-4:] == [each for (each,) in runs]
    for first, second in zip(before, after, strict=True):
        assert node_of(first) == node_of(second)
        values = [(r.gen_metadata or {}) for r in (first, second)]
        scores = [v.get("expected_acquisition_value") for v in values]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_batch_in_a_database_goes_on_after_a_reload(tmp_path):
    pytest.importorskip("sqlalchemy")
    client = prepare(open_client(tmp_path / "a.db", "bowl"))
    run(client, max_trials=8)
    runs = proposed_together(strategy_of(client), experiment_of(client), 3)
    trials = [experiment_of(client).new_trial(generator_run=run) for (run,) in runs]
    for trial in trials:
        trial.mark_running(no_runner_required=True)
    client.save_trials(trials, strategy=True)
    loaded = open_client(tmp_path / "a.db", "bowl")
    assert loaded.unfinished_trials() == client.unfinished_trials()
    assert len(loaded.unfinished_trials()) == 3
    take_up(loaded)
    run(loaded)
    assert latest_certificate(loaded).holds
