"""Evaluations on many machines: Ax's Orchestrator with a runner and metrics on Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ax.adapter.adapter_utils import get_fixed_features_from_experiment
from ax.api.client import Client
from ax.core.base_trial import BaseTrial
from ax.core.experiment import Experiment
from ax.core.generator_run import GeneratorRun
from ax.orchestration.orchestrator import (
    FailureRateExceededError,
    Orchestrator,
    OrchestratorOptions,
)

from ax_pac.ax_internals import experiment_of, has_storage, strategy_of
from ax_pac.orchestration.ray_runner import (
    Evaluate,
    RayMetric,
    RayRunner,
    ray_session,
    require_workers,
)
from ax_pac.storage.client import StoredClient
from ax_pac.storage.orchestrator import SavesTrials, SavingOrchestrator
from ax_pac.strategy.batch import proposed_together


class RayOrchestrator(SavingOrchestrator):
    """Ax's Orchestrator, which cancels what runs once the search is finished.

    Ax waits for trials that run when the strategy, or a global stopping strategy, ends
    the search. A certificate is about completed trials only, so waiting has no use: the
    running trials are cancelled and abandoned, with the reason. Checked on Ax 1.3.1.

    Args:
        experiment: Its runner is a `RayRunner`.
        generation_strategy: Proposes, and ends the search.
        options: As in Ax; the failure rates are not used.
        client: See `SavingOrchestrator`.
        max_failures: Evaluations failing in a row after which to give up.
        on_end: Called with the index of each trial that completed or failed.
    """

    ask_seconds = 0.0
    """Wall seconds spent proposing, certificates included."""
    wait_seconds = 0.0
    """Wall seconds spent waiting for evaluations."""

    def __init__(
        self,
        experiment: Experiment,
        generation_strategy: Any,
        options: OrchestratorOptions,
        *,
        client: SavesTrials | None = None,
        max_failures: int = 3,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(experiment, generation_strategy, options, client=client)
        self._max_failures = max_failures
        self._on_end = on_end

    @property
    def is_finished(self) -> bool:
        """Whether the search was ended by a rule, not by the number of trials."""
        return bool(self.should_consider_optimization_complete()[0])

    def run(self, max_new_trials: int, timeout_hours: float | None = None) -> bool:
        """Propose and submit, as in Ax.

        Args:
            max_new_trials: As in Ax.
            timeout_hours: As in Ax.
        """
        start = time.perf_counter()
        try:
            return bool(super().run(max_new_trials, timeout_hours))
        finally:
            self.ask_seconds += time.perf_counter() - start

    def _gen_new_trials_from_generation_strategy(
        self, num_trials: int, n: int | None = None
    ) -> list[list[GeneratorRun]]:
        self.generation_strategy.experiment = self.experiment
        return proposed_together(
            self.generation_strategy,
            self.experiment,
            num_trials,
            fixed_features=get_fixed_features_from_experiment(self.experiment),
        )

    def wait_for_completed_trials_and_report_results(
        self,
        idle_callback: Callable[[Orchestrator], None] | None = None,
        force_refit: bool = False,
    ) -> dict[str, Any]:
        """Wait for a trial to end, or cancel all if the search is finished.

        Args:
            idle_callback: As in Ax.
            force_refit: As in Ax.
        """
        if self.is_finished:
            self.cancel_running("the search was finished without it")
        start = time.perf_counter()
        results: dict[str, Any] = super().wait_for_completed_trials_and_report_results(
            idle_callback, force_refit
        )
        self.wait_seconds += time.perf_counter() - start
        while self.runner.ended:
            index = self.runner.ended.pop(0)
            if index in self.runner.repeated:
                trial = self.experiment.trials[index]
                reasons = self.runner.repeated[index]
                trial.update_run_metadata({"repeated_because": reasons})
                self.save([trial])
            if self._on_end is not None:
                self._on_end(index)
        return results

    def error_if_failure_rate_exceeded(self, force_check: bool = False) -> None:
        """Give up after failures in a row; what was cancelled did not fail.

        Args:
            force_check: As in Ax; of no effect.

        Raises:
            FailureRateExceededError: when so many evaluations in a row have failed.
        """
        failures = self.runner.failures_in_a_row
        if failures >= self._max_failures:
            last = list(self.runner.reasons.values())[-1]
            raise FailureRateExceededError(
                f"{failures} evaluations in a row failed, the last with {last}."
            )

    def cancel_running(self, reason: str) -> None:
        """Cancel and abandon every trial that is not at its end.

        Args:
            reason: Kept with each trial.
        """
        running = self._stop_running()
        for trial in running:
            trial.mark_abandoned(reason=f"cancelled: {reason}")
        if running:
            self.save(running)

    def interrupt(self) -> None:
        """Cancel what runs after an error or Ctrl-C.

        In a database the trials stay as running, to be taken up when the search goes
        on; otherwise they are abandoned.
        """
        if self.client is None:
            self.cancel_running("the search was interrupted")
        else:
            self._stop_running()

    def _stop_running(self) -> list[BaseTrial]:
        """Cancel the tasks of trials that are not at their end; return these."""
        running = [
            trial
            for trial in self.experiment.trials.values()
            if not trial.status.is_terminal
        ]
        for trial in running:
            self.runner.stop_trial(trial.index, {})
        return running


@contextlib.contextmanager
def ray_orchestrator(
    client: Client,
    evaluate: Evaluate,
    *,
    workers: int,
    told: Callable[[], tuple[Any, ...]] = tuple,
    resources: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    max_failures: int = 3,
    global_stopping_strategy: Any = None,
    on_end: Callable[[int], None] | None = None,
) -> Iterator[RayOrchestrator]:
    """Run a client's trials on Ray: `with ... as orchestrator: run_n_trials(200)`.

    The strategy is asked whenever a worker is free, and takes what runs into account.
    Once it ends, by its certificate, trials that still run are cancelled. Whatever ends
    the block (an exception and Ctrl-C too), no evaluation is left running, and the
    client has its own runner and metrics again, so that it can be saved and continued
    by any loop.

    The client may be a `StoredClient`: a trial is then in the database before it is
    evaluated, and with its result before the next one is asked for. Trials that were
    running when the process ended, by an error, Ctrl-C or a kill, are running in the
    database, and are evaluated first when the search goes on.

    A Ray that is already initialised is used; else the cluster that the variable
    `RAY_ADDRESS` names; else one is started here and ended with the block.

    Args:
        client: With an experiment, metrics and a generation strategy. Trials that it
            has running are evaluated first, and not counted by `run_n_trials`.
        evaluate: `(parameters, trial_index) -> {metric name: (mean, standard error)}`,
            for all of the client's metrics.
        workers: Evaluations at the same time, at least 1.
        told: See `RayRunner`.
        resources: See `RayRunner`.
        timeout: See `RayRunner`.
        max_failures: Evaluations failing in a row after which to give up.
        global_stopping_strategy: As in Ax, such as `PACStoppingStrategy`.
        on_end: Called with the index of each trial that completed or failed.

    Yields:
        The orchestrator, for `run_n_trials`, which raises `FailureRateExceededError`
        where it gives up; completed trials stay with the client.

    Raises:
        ImportError: when Ray is not installed.
        ValueError: when there are no workers, when `evaluate` cannot be sent to
            workers, or when the client is in a database by Ax's own storage, which
            cannot store a runner.
        SearchHeldError: when another process holds the search in the database.
    """
    require_workers(workers)
    stored = client if isinstance(client, StoredClient) else None
    if stored is None and has_storage(client):
        raise ValueError(
            "Ax's own storage cannot keep a search on Ray's workers: open the client "
            "with ax_pac.open_client, or leave storage out and save it afterwards with "
            "client.save_to_json_file."
        )
    experiment = experiment_of(client)
    options = OrchestratorOptions(
        max_pending_trials=workers,
        # As many as there are free workers, from one fit.
        run_trials_in_batches=True,
        global_stopping_strategy=global_stopping_strategy,
        # The runner waits by itself.
        init_seconds_between_polls=0,
        min_seconds_before_poll=0.0,
        enforce_immutable_search_space_and_opt_config=False,
        logging_level=30,
    )
    if stored is not None:
        stored.hold(experiment.name)
    with ray_session(workers, resources):
        runner = RayRunner(
            evaluate,
            experiment.metrics,
            workers=workers,
            told=told,
            resources=resources,
            timeout=timeout,
        )
        with _evaluated_by(runner, experiment):
            orchestrator = RayOrchestrator(
                experiment,
                strategy_of(client),
                options,
                client=stored,
                max_failures=max_failures,
                on_end=on_end,
            )
            for trial in list(orchestrator.running_trials):
                runner.run_trial(trial.index, trial.arm.parameters)
            try:
                yield orchestrator
            except BaseException:
                orchestrator.interrupt()
                raise
            orchestrator.cancel_running("the search was finished without it")


@contextlib.contextmanager
def _evaluated_by(runner: RayRunner, experiment: Experiment) -> Iterator[None]:
    """Give an experiment a runner and its metrics, and take them away again."""
    before, metrics = experiment.runner, list(experiment.metrics.values())
    experiment.runner = runner
    for metric in metrics:
        experiment.update_metric(RayMetric(metric.name, runner, metric.lower_is_better))
    try:
        yield
    finally:
        experiment.runner = before
        for metric in metrics:
            experiment.update_metric(metric)
