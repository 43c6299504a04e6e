"""Ax's Orchestrator, which saves through the client of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ax.core.base_trial import BaseTrial
from ax.core.experiment import Experiment
from ax.core.generator_run import GeneratorRun
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.orchestration.orchestrator import Orchestrator
from ax.orchestration.orchestrator_options import OrchestratorOptions


class SavesTrials(Protocol):
    """A client that writes trials to a database: see `StoredClient`."""

    def save_trials(self, trials: Sequence[BaseTrial], *, strategy: bool) -> None:
        """Write trials, and the strategy if it has proposed."""


class SavingOrchestrator(Orchestrator):
    """Ax's Orchestrator, each of whose steps is one transaction of a `StoredClient`.

    A trial is in the database as running before it runs, and with its data before the
    next one is asked for. Ax's own storage writes a step in several transactions.
    Checked on Ax 1.3.1.

    Args:
        experiment: With a runner, and metrics that fetch.
        generation_strategy: Proposes, and ends the search.
        options: As in Ax.
        client: The client that keeps the experiment in a database; None: it is kept in
            memory alone.
    """

    def __init__(
        self,
        experiment: Experiment,
        generation_strategy: GenerationStrategy,
        options: OrchestratorOptions,
        *,
        client: SavesTrials | None = None,
    ) -> None:
        self.client = client
        super().__init__(experiment, generation_strategy, options)

    def run_trials(
        self,
        new_trials: list[BaseTrial],
        existing_trials: list[BaseTrial],
        stage_only: bool = False,
    ) -> dict[int, dict[str, Any]]:
        """Run trials, as in Ax, once they are in the database as running.

        Args:
            new_trials: As in Ax.
            existing_trials: As in Ax.
            stage_only: As in Ax.
        """
        if self.client is None or stage_only:
            metadata: dict[int, dict[str, Any]] = super().run_trials(
                new_trials, existing_trials, stage_only
            )
            return metadata
        # Not tried again after an error, as in Ax: a trial would be submitted twice.
        trials = [*existing_trials, *new_trials]
        for trial in trials:
            trial.mark_running(no_runner_required=True)
        self.client.save_trials(trials, strategy=True)
        metadata = self.runner.run_multiple(trials=trials)
        # Saving a new trial has put another object in its place.
        stored = [self.experiment.trials[trial.index] for trial in trials]
        for trial in stored:
            trial.update_run_metadata(metadata=metadata.get(trial.index, {}))
        if any(metadata.values()):
            self.client.save_trials(stored, strategy=False)
        return metadata

    def save(self, trials: Sequence[BaseTrial]) -> None:
        """Write trials that changed, where there is a database.

        Args:
            trials: Of the experiment.
        """
        if self.client is not None:
            self.client.save_trials(trials, strategy=False)

    def _save_or_update_trials_in_db_if_possible(
        self,
        experiment: Experiment,
        trials: Sequence[BaseTrial],
        reduce_state_generator_runs: bool = False,
    ) -> bool:
        self.save(trials)
        return self.client is not None

    def _save_or_update_trials_and_generation_strategy_if_possible(
        self,
        experiment: Experiment,
        trials: list[BaseTrial],
        generation_strategy: GenerationStrategy,
        new_generator_runs: list[GeneratorRun],
        reduce_state_generator_runs: bool = False,
    ) -> None:
        if self.client is not None:
            self.client.save_trials(trials, strategy=True)
