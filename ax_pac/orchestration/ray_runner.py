"""Ax's runner and metric for evaluations that are tasks of Ray."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import pandas as pd
import torch
from ax.api.protocols import IRunner
from ax.core.base_trial import BaseTrial
from ax.core.data import Data
from ax.core.metric import Metric, MetricFetchE
from ax.core.trial_status import TrialStatus
from ax.utils.common.result import Err, Ok

Outcome = Mapping[str, tuple[float, float]]
"""Metric name to mean and standard error, in the metric's unit."""

Evaluate = Callable[..., Outcome]
"""`(parameters, trial_index) -> Outcome`, run on a worker."""

_LONGEST_WAIT: Final = 1.0
"""Seconds until a poll that finds nothing returns, for Ctrl-C and timeouts."""

_LONGEST_REASON: Final = 400


class RayRunner(IRunner):
    """Runs each trial as a task of Ray; `RayMetric` reads the outcomes.

    Ray has to be running, see `ray_session`. The function is put into Ray's object
    store once; each worker process reads it once, and runs on one thread. A task is not
    retried: an exception or a worker's death fails its trial, with the reason.

    References to tasks are held by this process only, so that a trial that another
    process started is abandoned.

    Args:
        evaluate: `(parameters, trial_index) -> {metric name: (mean, standard error)}`.
            Packages that it needs are installed on every machine.
        metrics: Names that an outcome must have.
        workers: Evaluations at the same time, at least 1.
        told: Called when a trial starts; returns further positional arguments of
            `evaluate`.
        resources: Options of `ray.remote` for one evaluation, such as
            `{"num_gpus": 1}`; by default one CPU.

    Raises:
        ImportError: when Ray is not installed.
        ValueError: when there are no workers, or `evaluate` cannot be sent to them.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        metrics: Iterable[str],
        *,
        workers: int,
        told: Callable[[], tuple[Any, ...]] = tuple,
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        ray = import_ray()
        require_workers(workers)
        self.workers = workers
        self.outcomes: dict[int, Outcome] = {}
        self.reasons: dict[int, str] = {}
        self.failures_in_a_row = 0
        self.ended: list[int] = []
        self._metrics = tuple(metrics)
        self._told = told
        self._tasks: dict[int, Any] = {}
        try:
            self._packed = ray.put(evaluate)
        except Exception as error:
            raise ValueError(
                "What is evaluated cannot be sent to Ray's workers; expected a "
                "function and data that can be pickled, without open files, locks or "
                f"connections. Ray's error: {_first_line(error)}"
            ) from error
        options = {"num_cpus": 1, "max_retries": 0, **(resources or {})}
        self._remote = ray.remote(**options)(_evaluate_on_worker)

    def run_trial(
        self, trial_index: int, parameterization: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Submit a trial; returns at once.

        Args:
            trial_index: Of the trial.
            parameterization: Parameter name to value.

        Returns:
            No metadata.
        """
        # In a list: Ray would unpack the reference itself, once per task.
        self._tasks[trial_index] = self._remote.remote(
            [self._packed], dict(parameterization), trial_index, self._told()
        )
        return {}

    def poll_trial(
        self, trial_index: int, trial_metadata: Mapping[str, Any]
    ) -> TrialStatus:
        """Return the status of one trial, without waiting.

        Args:
            trial_index: Of the trial.
            trial_metadata: As in Ax.
        """
        if trial_index in self._tasks:
            self._collect([trial_index], seconds=0.0)
        return self._status(trial_index)

    def poll_trial_status(
        self, trials: Iterable[BaseTrial]
    ) -> dict[TrialStatus, set[int]]:
        """Return the trials by status, as soon as one has ended, after a second anyway.

        Waiting here, not between polls, loses no time after a short evaluation and uses
        none during a long one.

        Args:
            trials: As in Ax.
        """
        indices = [trial.index for trial in trials]
        under_way = [index for index in indices if index in self._tasks]
        if under_way:
            self._collect(under_way, seconds=_LONGEST_WAIT)
        statuses: dict[TrialStatus, set[int]] = {}
        for index in indices:
            statuses.setdefault(self._status(index), set()).add(index)
        return statuses

    def poll_exception(self, trial: BaseTrial) -> str:
        """Return why a trial failed or was abandoned."""
        return self.reasons.get(trial.index, "it was begun by another process")

    def poll_available_capacity(self) -> int:
        """Return how many more trials may be submitted."""
        return self.workers - len(self._tasks)

    def stop_trial(
        self, trial_index: int, trial_metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Cancel a trial: its worker process is ended.

        Args:
            trial_index: Of the trial.
            trial_metadata: As in Ax.

        Returns:
            No metadata.
        """
        task = self._tasks.pop(trial_index, None)
        if task is not None:
            import_ray().cancel(task, force=True)
        return {}

    def _status(self, index: int) -> TrialStatus:
        if index in self._tasks:
            return TrialStatus.RUNNING
        if index in self.outcomes:
            return TrialStatus.COMPLETED
        return TrialStatus.FAILED if index in self.reasons else TrialStatus.ABANDONED

    def _collect(self, indices: list[int], seconds: float) -> None:
        """Collect the outcomes of tasks that have ended, after waiting for one."""
        ray = import_ray()
        tasks = [self._tasks[index] for index in indices]
        ray.wait(tasks, num_returns=1, timeout=seconds, fetch_local=False)
        ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0, fetch_local=False)
        for index in indices:
            if self._tasks[index] not in ready:
                continue
            try:
                self.outcomes[index] = _checked(
                    ray.get(self._tasks[index]), self._metrics
                )
                self.failures_in_a_row = 0
            except Exception as error:
                self.reasons[index] = _reason(error)
                self.failures_in_a_row += 1
            del self._tasks[index]
            self.ended.append(index)


class RayMetric(Metric):
    """One metric of what a `RayRunner` evaluated.

    Args:
        name: Of the metric.
        runner: Which evaluated it.
        lower_is_better: As in Ax.
    """

    def __init__(
        self, name: str, runner: RayRunner, lower_is_better: bool | None = None
    ) -> None:
        super().__init__(name=name, lower_is_better=lower_is_better)
        self._runner = runner

    def fetch_trial_data(self, trial: BaseTrial, **kwargs: Any) -> Any:
        """Return the row that `client.complete_trial` would add."""
        outcome = self._runner.outcomes.get(trial.index, {})
        if self.name not in outcome:
            message = f"{self.name!r} is not among {sorted(outcome)}"
            return Err(value=MetricFetchE(message=message, exception=None))
        mean, sem = outcome[self.name]
        row = {
            "trial_index": trial.index,
            "arm_name": trial.arm.name,
            "metric_name": self.name,
            "metric_signature": self.signature,
            "mean": mean,
            "sem": sem,
        }
        return Ok(value=Data(df=pd.DataFrame.from_records([row])))


@contextlib.contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """Use the Ray that runs, or the one of `RAY_ADDRESS`, or start one meanwhile.

    Args:
        workers: CPUs of a Ray that is started here.

    Raises:
        ImportError: when Ray is not installed.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=workers,
            log_to_driver=False,
            include_dashboard=False,
            logging_level="WARNING",
        )
    try:
        yield
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        ImportError: when it is not installed; the message says how to install it.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "Evaluations on several workers need Ray: pip install 'ax-pac[ray]'"
        ) from error
    return ray


def require_workers(workers: int) -> None:
    """Refuse a number of workers below 1.

    Raises:
        ValueError: when it is.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _evaluate_on_worker(
    packed: list[Any],
    parameters: dict[str, Any],
    trial_index: int,
    told: tuple[Any, ...],
) -> Outcome:
    """Evaluate one trial, in a worker process."""
    return _unpacked(packed[0])(parameters, trial_index, *told)


@functools.lru_cache(maxsize=1)
def _unpacked(packed: Any) -> Evaluate:
    """Read the function on a worker process: once, not once per trial."""
    torch.set_num_threads(1)
    return import_ray().get(packed)


def _checked(outcome: Any, metrics: tuple[str, ...]) -> Outcome:
    """Return the metrics of an outcome as plain finite numbers."""
    try:
        plain = {name: tuple(map(float, outcome[name])) for name in metrics}
        fits = all(len(p) == 2 and all(map(math.isfinite, p)) for p in plain.values())
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "expected {metric name: (mean, standard error)} of finite numbers for "
            f"{', '.join(map(repr, metrics))}; got {outcome!r}"
        )
    return {name: (mean, sem) for name, (mean, sem) in plain.items()}


def _reason(error: BaseException) -> str:
    """Name an error as the worker raised it, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_LONGEST_REASON] if lines else "no message"
