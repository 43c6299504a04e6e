"""The loop of a search: ask, evaluate, tell; the Ax client holds all its state."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from ax.api.client import Client
from ax.core.trial_status import TrialStatus
from ax.exceptions.core import OptimizationComplete
from tqdm import tqdm

from ax_pac import (
    PACCertificate,
    StoredClient,
    certificate_records,
    certify_experiment,
    latest_certificate,
)
from compression_adapters.ax_space import range_parameters
from compression_adapters.problem import CompressionProblem
from compression_adapters.ranks import bin_edges
from compression_adapters.u_statistics import MeanSEM

StopReason = Literal["certified", "max_trials", "interrupted"]

SAMPLE_SIZE_PROPERTY = "compression_sample_size"
"""Where an experiment keeps how its number of samples was chosen, see `SampleSize`."""
_METRICS = ("objective", "loss", "compression_ratio")
_MAX_CONSECUTIVE_FAILURES = 3


class EvaluationError(RuntimeError):
    """Several evaluations in a row failed.

    Args:
        message: What happened.
        client: The client, with every trial that was completed before.
    """

    def __init__(self, message: str, client: Client) -> None:
        super().__init__(message)
        self.client = client


class SearchLoop:
    """One run of the loop on an Ax client.

    Args:
        problem: What is searched.
        client: Holds trials and strategy.
        seed: Seed of the search; with a trial's index it decides its samples.
        progress: Whether to show a progress bar; None: on a terminal only.
        known: How many of the client's trials do not count towards `max_trials`; None:
            all that it has.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        client: Client,
        *,
        seed: int,
        progress: bool | None,
        known: int | None = None,
    ) -> None:
        self.problem = problem
        self.client = client
        self.seed = seed
        self.experiment = client._experiment
        self.ask_seconds = 0.0
        self.evaluate_seconds = 0.0
        self.first_record = len(certificate_records(self.experiment))
        self.first_trial = len(self.experiment.trials)
        self.known = self.first_trial if known is None else known
        self.bar = tqdm(
            unit="trial",
            disable=None if progress is None else not progress,
            bar_format="{desc}: {n} trials, {elapsed}{postfix}",
            desc="searching",
            initial=self.first_trial - self.known,
        )

    def run(self, max_trials: int) -> StopReason:
        """Search; return why it ended."""
        self.failures = 0
        try:
            # Under evaluation when the process that began them ended.
            self._evaluate_all(self._running())
            while len(self.experiment.trials) - self.known < max_trials:
                try:
                    trials = self._ask()
                except OptimizationComplete:
                    return "certified"
                self._evaluate_all(trials)
        except KeyboardInterrupt:
            if len(self._completed("loss")) < 2:
                raise  # nothing has been found yet that could be returned
            return "interrupted"
        finally:
            self.bar.close()
        return "max_trials"

    def certify(
        self, delta: float, epsilon: float, level: str, relative: bool
    ) -> PACCertificate:
        """Return the certificate on the last data, from the record where there is."""
        return certify_experiment(
            self.experiment,
            delta=delta,
            epsilon=epsilon,
            level=level,
            relative=relative,
            seed=self.seed,
            num_samples=self.problem.num_samples,
            cells=bin_edges(self.problem.parameters),
        )

    def timings(self) -> dict[str, float]:
        """Wall seconds of this run, split by what they were spent on."""
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

    def _running(self) -> dict[int, Any]:
        """Trials that were asked for and never reported."""
        return {
            index: dict(trial.arm.parameters)
            for index, trial in self.experiment.trials.items()
            if trial.status.is_running
        }

    def _evaluate_all(self, trials: dict[int, Any]) -> None:
        """Evaluate trials one after the other; give up after several failures."""
        for index, parameterization in trials.items():
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
                seed=trial_seed(self.seed, index),
                earlier=self._completed("loss"),
            )
        except KeyboardInterrupt:
            # In a database it stays, to be taken up when the search is continued.
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
        """Estimates of one metric in trial order."""
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


def trial_seed(seed: int, trial_index: int) -> int:
    """Return the seed that decides which samples a trial is evaluated on."""
    return int(np.random.SeedSequence((seed, trial_index)).generate_state(1)[0])


def fresh_seed(seed: int) -> int:
    """Return the seed of samples that no trial of a search is evaluated on."""
    return int(np.random.SeedSequence((seed, 0, 1)).generate_state(1)[0])


def trial_table(client: Client, problem: CompressionProblem) -> pd.DataFrame:
    """Return one row a trial: status, estimates with SEMs, score, coordinates, ranks.

    Args:
        client: The client of a search.
        problem: What was searched.
    """
    experiment = client._experiment
    data = experiment.lookup_data().df
    rows = []
    for index, trial in experiment.trials.items():
        row: dict[str, Any] = {
            "trial_index": index,
            "status": trial.status.name,
            "node": trial.generator_runs[0]._generation_node_name,
        }
        for metric in _METRICS:
            row[metric] = row[f"{metric}_sem"] = math.nan
        for estimate in data[data["trial_index"] == index].to_dict("records"):
            row[estimate["metric_name"]] = estimate["mean"]
            row[f"{estimate['metric_name']}_sem"] = estimate["sem"]
        row["score"] = _score_of_proposal(trial)
        point = {name: float(value) for name, value in trial.arm.parameters.items()}
        row.update({f"u_{name}": value for name, value in point.items()})
        ranks = problem.ranks(point)
        row.update({f"rank_{name}": rank for name, rank in ranks.items()})
        row["failed_reason"] = trial.status_reason
        rows.append(row)
    return pd.DataFrame(rows)


def _score_of_proposal(trial: Any) -> float:
    """Return the PAC score at which a trial was proposed; NaN for Sobol points."""
    metadata = trial.generator_runs[0].gen_metadata or {}
    scores = metadata.get("expected_acquisition_value")
    if scores is None:
        return math.nan
    return float(np.ravel(scores)[0])


def new_client(problem: CompressionProblem) -> Client:
    """Set up an Ax client for a problem."""
    client = Client()
    configure_client(client, problem, "compression")
    return client


def configure_client(client: Client, problem: CompressionProblem, name: str) -> None:
    """Tell an empty client what is searched, and its name."""
    client.configure_experiment(
        name=name, parameters=range_parameters(problem.parameters)
    )
    sign = "-" if problem.minimize else ""
    client.configure_optimization(objective=f"{sign}objective")
    client.configure_tracking_metrics(["loss", "compression_ratio"])


def reweighted_client(client: Client, problem: CompressionProblem) -> Client:
    """Set up a client for another gamma, with every evaluation of an earlier one.

    Loss, its SEM and ratio are stored apart from the objective, so that another gamma
    only weighs anew what was measured.

    Args:
        client: Of an earlier search of the same layers.
        problem: The problem with the new gamma.

    Returns:
        A client of its own; failed trials are left behind.

    Raises:
        ValueError: when the client belongs to another search.
    """
    check_same_space(client, problem)
    experiment = client._experiment
    data = experiment.lookup_data().df
    fresh = new_client(problem)
    if SAMPLE_SIZE_PROPERTY in experiment._properties:
        chosen = experiment._properties[SAMPLE_SIZE_PROPERTY]
        fresh._experiment._properties[SAMPLE_SIZE_PROPERTY] = chosen
    for index, trial in experiment.trials.items():
        if trial.status != TrialStatus.COMPLETED:
            continue
        rows = data[data["trial_index"] == index].set_index("metric_name")
        loss, ratio = (
            MeanSEM(float(rows["mean"][name]), float(rows["sem"][name]))
            for name in ("loss", "compression_ratio")
        )
        outcome = problem.outcome(loss, ratio.mean)
        point = {name: float(value) for name, value in trial.arm.parameters.items()}
        with quiet_ax():
            fresh.complete_trial(
                fresh.attach_trial(point),
                {name: tuple(outcome[name]) for name in _METRICS},
            )
    return fresh


def check_same_space(client: Client, problem: CompressionProblem) -> None:
    """Refuse to continue a search of other layers."""
    known = set(client._experiment.search_space.parameters)
    expected = {parameter.name for parameter in problem.parameters}
    if known != expected:
        raise ValueError(
            "the client belongs to another search: its parameters are "
            f"{sorted(known)}, this network's are {sorted(expected)}"
        )


@contextlib.contextmanager
def quiet_ax() -> Iterator[None]:
    """Keep Ax's report of every trial off the screen while our own bar shows them."""
    logger = logging.getLogger("ax.api.client")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # GPyTorch raises noise below 1e-6 of the data's variance to that, at every
            # fit. More noise than there is makes a certificate harder to obtain.
            warnings.filterwarnings("ignore", message="Very small noise values")
            yield
    finally:
        logger.setLevel(level)
