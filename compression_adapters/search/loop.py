"""The loop of a search: propose, evaluate, report; the Ax client holds all state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from ax.api.client import Client
from ax.core.trial_status import TrialStatus
from ax.exceptions.core import OptimizationComplete
from ax.generation_strategy.generation_strategy import GenerationStrategy
from tqdm import tqdm

from ax_pac import (
    PACCertificate,
    StoredClient,
    certificate_records,
    certify_experiment,
    latest_certificate,
)
from ax_pac.ax_internals import experiment_of
from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.rank_space.parameters import bin_edges
from compression_adapters.search.client import (
    _METRICS,
)
from compression_adapters.search.initial_design import attach_beside_best
from compression_adapters.search.known_part import known_part_of
from compression_adapters.search.time_limit import NO_LIMIT
from compression_adapters.search.trials import (
    trial_seed,
)

StopReason = Literal[
    "certified", "max_trials", "out_of_time", "interrupted", "no_search"
]


_MAX_CONSECUTIVE_FAILURES = 3


# Checks in a row after which a loss counts as flat: one may be chance.
_FLAT = 3
# What a certificate says of data that noise alone explains.
_NOISE = ("output_scale_at_bound", "noise_alone")


class EvaluationError(RuntimeError):
    """Several evaluations in a row failed.

    Args:
        message: The error message.
        client: The client, with all completed trials.
    """

    def __init__(self, message: str, client: Client) -> None:
        super().__init__(message)
        self.client = client


class SearchLoop:
    """One run of the loop on an Ax client.

    Args:
        problem: The problem.
        client: Holds trials and strategy.
        options: How; the seed, with a trial's index, determines its samples.
        known: Number of the client's trials that do not count towards `max_trials`;
            None: all of them.
        if_flat: Returns the strategy to go on with where the unknown part is flat to
            within its noise, of which the certificate can then say nothing; None: the
            search goes on as it is.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        client: Client,
        options: SearchOptions,
        *,
        known: int | None = None,
        if_flat: Callable[[], GenerationStrategy] | None = None,
    ) -> None:
        self.problem = problem
        self.if_flat = if_flat
        self.client = client
        self.options = options
        self.experiment = experiment_of(client)
        self.ask_seconds = 0.0
        self.evaluate_seconds = 0.0
        self.first_record = len(certificate_records(self.experiment))
        self.first_trial = len(self.experiment.trials)
        self.failures = 0
        self.known = self.first_trial if known is None else known
        self.limit = NO_LIMIT
        self.last_seconds = 0.0
        self.bar = tqdm(
            unit="trial",
            disable=None if options.progress is None else not options.progress,
            bar_format="{desc}: {n} trials, {elapsed}{postfix}",
            desc="searching",
            initial=self.first_trial - self.known,
        )

    def run(self, max_trials: int) -> StopReason:
        """Search; return why the search ended."""
        try:
            # Trials that were running when their process ended.
            self.evaluate_all(self._running())
            while not self._is_out_of_time() and attach_beside_best(
                self.client, self.problem, self.options
            ):
                self.evaluate_all(self._running())
            while len(self.experiment.trials) - self.known < max_trials:
                if self._is_out_of_time():
                    return "out_of_time"
                began = time.perf_counter()
                try:
                    trials = self._ask()
                except OptimizationComplete:
                    return "certified"
                self.evaluate_all(trials)
                self.last_seconds = time.perf_counter() - began
                if self.if_flat is not None and self._is_flat():
                    self.client.set_generation_strategy(self.if_flat())
        except KeyboardInterrupt:
            if len(self._completed("loss")) < 2:
                raise  # there is no result yet to return
            return "interrupted"
        finally:
            self.bar.close()
        return "max_trials"

    def _is_out_of_time(self) -> bool:
        """Whether another trial would end too late, once there is a result."""
        if self.limit.leaves(self.last_seconds):
            return False
        return len(self._completed("loss")) >= 2

    def _is_flat(self) -> bool:
        """Whether noise alone has explained the unknown part a few times in a row."""
        last = certificate_records(self.experiment)[-_FLAT:]
        return (
            known_part_of(self.client) is not None
            and len(last) == _FLAT
            and all(record.get("hyperparameter_status") in _NOISE for record in last)
        )

    def certify(self) -> PACCertificate:
        """Return the certificate on the last data, from its record if there is one."""
        return certify_experiment(
            self.experiment,
            delta=self.options.delta,
            epsilon=self.options.epsilon,
            level=self.options.level,
            relative=self.options.relative,
            seed=self.options.seed,
            num_samples=self.problem.num_samples,
            cells=bin_edges(self.problem.parameters),
            known=known_part_of(self.client),
        )

    def timings(self) -> dict[str, float]:
        """Wall seconds of this run, by activity."""
        records = certificate_records(self.experiment)[self.first_record :]
        fit = sum(record["seconds"]["fit"] for record in records)
        for trial in list(self.experiment.trials.values())[self.first_trial :]:
            fit += sum(run.fit_time or 0.0 for run in trial.generator_runs)
        fit = min(fit, self.ask_seconds)
        return {
            "fit": fit,
            "propose": self.ask_seconds - fit,
            "evaluate": self.evaluate_seconds,
        }

    def last_loss(self) -> MeanSEM:
        """Return the estimated loss of the trial that was evaluated last."""
        return self._completed("loss")[-1]

    def _running(self) -> dict[int, Any]:
        """Trials that were proposed and never reported."""
        return {
            index: dict(trial.arm.parameters)
            for index, trial in self.experiment.trials.items()
            if trial.status.is_running
        }

    def evaluate_all(self, trials: dict[int, Any]) -> None:
        """Evaluate trials one after the other; give up after several failures.

        Args:
            trials: Trial index to parameterization.
        """
        for index, parameterization in trials.items():
            if self._is_out_of_time():
                # In a database it stays, and is evaluated when the search goes on.
                if not isinstance(self.client, StoredClient):
                    self.client.mark_trial_abandoned(index)
                continue
            failed = self._evaluate(index, parameterization)
            self.failures = self.failures + 1 if failed else 0
            self._give_up_after(self.failures, failed)
            self._show(index)

    def _ask(self) -> dict[int, Any]:
        start = time.perf_counter()
        try:
            return self.client.get_next_trials(max_trials=1)
        finally:
            self.ask_seconds += time.perf_counter() - start

    def _evaluate(self, index: int, parameterization: dict[str, Any]) -> str | None:
        """Evaluate one trial and report it; return the reason if it failed."""
        start = time.perf_counter()
        try:
            outcome = self.problem.evaluate(
                parameterization,
                seed=trial_seed(self.options.seed, index),
                earlier=self._completed("loss"),
            )
        except KeyboardInterrupt:
            # In a database it stays and is evaluated when the search is continued.
            if not isinstance(self.client, StoredClient):
                self.client.mark_trial_abandoned(index)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.client.mark_trial_failed(index, failed_reason=reason)
            return reason
        finally:
            self.evaluate_seconds += time.perf_counter() - start
        self.client.complete_trial(
            index, {name: tuple(outcome[name]) for name in _METRICS}
        )
        return None

    def _give_up_after(self, failures: int, reason: str | None) -> None:
        if failures >= _MAX_CONSECUTIVE_FAILURES:
            raise EvaluationError(
                f"{failures} evaluations in a row failed, the last with {reason}. "
                "Completed trials are kept in the client of this error.",
                self.client,
            )

    def _completed(self, metric: str) -> list[MeanSEM]:
        """Estimates of one metric, in the order of the trials."""
        data = self.experiment.lookup_data().df
        if data.empty:
            return []
        rows = data[data["metric_name"] == metric].sort_values("trial_index")
        return [
            MeanSEM(float(mean), float(sem))
            for mean, sem in zip(rows["mean"], rows["sem"], strict=True)
        ]

    def _show(self, index: int) -> None:
        """Update the progress bar with the last trial and the certificate."""
        status = f"trial {index} failed"
        if self.experiment.trials[index].status == TrialStatus.COMPLETED:
            objective = self._completed("objective")[-1].mean
            ratio = self._completed("compression_ratio")[-1].mean
            status = f"objective {objective:.4g}, ratio {ratio:.1%}"
        certificate = latest_certificate(self.client)
        if certificate is not None:
            probability = 1.0 - certificate.failure_probability
            status += (
                f", certified with {probability:.4f} of {1 - certificate.epsilon:g}"
            )
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update(1)
