"""Ax's runner and metric for evaluations that are tasks of Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import time
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

_MOST_ATTEMPTS: Final = 2
"""Workers that a trial may cost: what kills each of them is the trial's own fault."""

# What `ray.remote` takes; any other name is that of a resource of the user's cluster.
_RAY_OPTIONS = (
    *("num_cpus", "num_gpus", "memory", "resources", "accelerator_type"),
    *("runtime_env", "scheduling_strategy", "label_selector"),
)

_LONGEST_OUTCOME: Final = 200
"""Characters that are shown of an outcome that is not one."""

_NO_ROOM: Final = (
    "does not fit into Ray's object store: start Ray with a larger one "
    "(ray.init(object_store_memory=BYTES), or ray start --object-store-memory), or "
    "free space on the disk, where Ray puts what its memory does not hold"
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Task:
    """A trial under evaluation.

    Args:
        parameters: Parameter name to value.
        told: Further arguments.
        results: Ray's generator of what the worker reports: first that it has begun,
            then the outcome.
        began: When the driver heard that it had; None before.
        attempts: Workers that it was given to.
    """

    parameters: dict[str, Any]
    told: tuple[Any, ...]
    results: Any
    began: float | None = None
    attempts: int = 1


class RayRunner(IRunner):
    """Runs each trial as a task of Ray; `RayMetric` reads the outcomes.

    Ray has to be running, see `ray_session`. The function is put into Ray's object
    store once; each worker process reads it once, and runs on one thread. An exception
    fails the trial, with the reason. A trial whose worker or machine died is given to
    another one, on the same samples, and fails if that dies too. Only numbers come
    back, so that results never fill the object store.

    References to tasks are held by this process only, so that a trial that another
    process started is abandoned.

    Args:
        evaluate: `(parameters, trial_index) -> {metric name: (mean, standard error)}`.
            Packages that it needs are installed on every machine.
        metrics: Names that an outcome must have.
        workers: Evaluations at the same time, at least 1.
        told: Called when a trial starts; returns further positional arguments of
            `evaluate`.
        resources: What one evaluation reserves, such as `{"num_gpus": 1}`: options of
            `ray.remote`, or amounts of resources that the cluster's nodes were given
            names for; by default one CPU.
        timeout: Seconds after which an evaluation that has not ended is cancelled and
            its trial fails; they begin when the worker does. None for no limit.

    Raises:
        ImportError: when Ray is not installed.
        ValueError: when there are no workers, the timeout is not positive, or
            `evaluate` cannot be sent to them.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        metrics: Iterable[str],
        *,
        workers: int,
        told: Callable[[], tuple[Any, ...]] = tuple,
        resources: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        ray = import_ray()
        require_workers(workers)
        require_timeout(timeout)
        self.workers = workers
        self.outcomes: dict[int, Outcome] = {}
        self.reasons: dict[int, str] = {}
        self.failures_in_a_row = 0
        self.ended: list[int] = []
        self.repeated: dict[int, list[str]] = {}
        self._timeout = timeout
        self._metrics = tuple(metrics)
        self._told = told
        self._tasks: dict[int, _Task] = {}
        try:
            self._packed = ray.put(evaluate)
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"What is evaluated {_NO_ROOM}. Ray's error: {_first_line(error)}"
            ) from error
        except Exception as error:
            raise ValueError(
                "What is evaluated cannot be sent to Ray's workers; expected a "
                "function and data that can be pickled, without open files, locks or "
                f"connections. Ray's error: {_first_line(error)}"
            ) from error
        self._needed = _amounts(resources)
        self._lacked = _lacking(self._needed)  # which `ray_session` has told
        options = {"num_returns": "streaming", "max_retries": 0}
        self._remote = ray.remote(**options, **ray_options(resources))(
            _evaluate_on_worker
        )

    def run_trial(
        self, trial_index: int, parameterization: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Submit a trial; returns at once.

        A trial whose arguments do not fit into the object store fails.

        Args:
            trial_index: Of the trial.
            parameterization: Parameter name to value.

        Returns:
            No metadata.
        """
        parameters, told = dict(parameterization), self._told()
        try:
            results = self._submitted(trial_index, parameters, told)
        except import_ray().exceptions.RayError as error:
            if not _is_without_room(error):
                raise
            name = type(error).__name__
            self._fail(trial_index, f"{name}: what the trial is told {_NO_ROOM}")
            self.ended.append(trial_index)
            return {}
        self._tasks[trial_index] = _Task(parameters, told, results)
        return {}

    def _submitted(
        self, index: int, parameters: dict[str, Any], told: tuple[Any, ...]
    ) -> Any:
        # In a list: Ray would unpack the reference itself, once per task.
        return self._remote.remote(
            [self._packed], self._metrics, parameters, index, told
        )

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
        # Below zero would mean that there is no limit.
        return max(0, self.workers - len(self._tasks))

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
            import_ray().cancel(task.results, force=True)
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
        until = time.monotonic() + seconds
        while True:
            waiting = {self._tasks[index].results: index for index in indices}
            pause = max(0.0, min(until, self._next_deadline()) - time.monotonic())
            results = list(waiting)
            ray.wait(results, num_returns=1, timeout=pause, fetch_local=False)
            ready, _ = ray.wait(
                results, num_returns=len(results), timeout=0, fetch_local=False
            )
            # In the order of the trials, whatever the order in which Ray has them.
            ended = [
                i for i in sorted(waiting[each] for each in ready) if self._read(i)
            ]
            ended += self._timed_out(set(indices) - set(ended))
            for index in ended:
                del self._tasks[index]
            self.ended += ended
            if ended:
                return
            if time.monotonic() >= until:
                self._tell_what_is_awaited()
                return

    def _read(self, index: int) -> bool:
        """Read what the worker of a trial has reported; return whether it has ended."""
        ray, task = import_ray(), self._tasks[index]
        try:
            reported = ray.get(next(task.results))
            if task.began is None:
                task.began = time.monotonic()
                return False
            self.outcomes[index] = reported
            self.failures_in_a_row = 0
        except Exception as error:
            reason = reason_of(error)
            if _is_lost(error) and task.attempts < _MOST_ATTEMPTS:
                self.repeated.setdefault(index, []).append(reason)
                _logger.warning("trial %d is repeated: %s", index, reason)
                task.attempts, task.began = task.attempts + 1, None
                task.results = self._submitted(index, task.parameters, task.told)
                return False
            self._fail(index, reason)
        return True

    def _tell_what_is_awaited(self) -> None:
        """Warn where evaluations cannot begin, since machines were lost; once each."""
        if all(task.began is not None for task in self._tasks.values()):
            return
        lacking = _lacking(self._needed)
        if lacking != self._lacked:
            _warn_of(lacking)
        self._lacked = lacking

    def _fail(self, index: int, reason: str) -> None:
        self.reasons[index] = reason
        self.failures_in_a_row += 1

    def _next_deadline(self) -> float:
        """When the first evaluation will have run for too long."""
        if self._timeout is None:
            return math.inf
        began = [t.began for t in self._tasks.values() if t.began is not None]
        return min(began, default=math.inf) + self._timeout

    def _timed_out(self, indices: Iterable[int]) -> list[int]:
        """Cancel the evaluations that have run for too long."""
        late = []
        for index in sorted(indices):
            began = self._tasks[index].began
            if self._timeout is None or began is None:
                continue
            if time.monotonic() - began >= self._timeout:
                import_ray().cancel(self._tasks[index].results, force=True)
                reason = f"it ran for longer than timeout = {self._timeout:g} s"
                self._fail(index, f"TimeoutError: {reason}")
                late.append(index)
        return late


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
def ray_session(
    workers: int, resources: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Use the Ray that runs, or the one of `RAY_ADDRESS`, or start one meanwhile.

    Args:
        workers: Evaluations at the same time, for which a Ray that is started here has
            CPUs.
        resources: What each of them reserves, see `RayRunner`.

    Raises:
        ImportError: when Ray is not installed.
        ValueError: when a Ray that is started here lacks a resource.
    """
    ray = import_ray()
    needed = _amounts(resources)
    if ray.is_initialized():
        _warn_if_lacking(needed)
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=math.ceil(workers * max(1.0, needed.get("CPU", 1.0))),
            log_to_driver=False,
            include_dashboard=False,
            logging_level="WARNING",
        )
    try:
        lacking = _lacking(needed)
        if lacking and not os.environ.get("RAY_ADDRESS"):
            raise ValueError(
                f"an evaluation reserves {lacking}, which this machine does not have. "
                "Change resources, or connect to a cluster that has it (RAY_ADDRESS)"
            )
        _warn_if_lacking(needed)
        yield
    finally:
        ray.shutdown()


def ray_options(resources: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of `ray.remote` for what an evaluation reserves.

    Args:
        resources: See `RayRunner`.

    Example:
        >>> ray_options({"num_gpus": 1, "fast": 2})
        {'num_cpus': 1, 'num_gpus': 1, 'resources': {'fast': 2}}
    """
    given = dict(resources or {})
    options = {"num_cpus": 1} | {k: v for k, v in given.items() if k in _RAY_OPTIONS}
    own = {k: v for k, v in given.items() if k not in _RAY_OPTIONS}
    if own:
        options["resources"] = {**options.get("resources", {}), **own}
    return options


def _amounts(resources: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what an evaluation reserves by the names that a cluster has for it."""
    options = ray_options(resources)
    named = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0)}
    return {k: float(v) for k, v in (named | options.get("resources", {})).items()}


def _lacking(needed: Mapping[str, float]) -> str:
    """Say which resources the cluster has too few of; empty if none."""
    there = import_ray().cluster_resources()
    return " and ".join(
        f"{amount:g} of {name!r} (there are {there.get(name, 0.0):g})"
        for name, amount in needed.items()
        if amount > there.get(name, 0.0)
    )


def _warn_if_lacking(needed: Mapping[str, float]) -> None:
    """Say what evaluations wait for; a cluster may add nodes by itself."""
    _warn_of(_lacking(needed))


def _warn_of(lacking: str) -> None:
    if lacking:
        _logger.warning("evaluations wait until the Ray cluster has %s", lacking)


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


def require_timeout(timeout: float | None) -> None:
    """Refuse a timeout that is not a positive number of seconds.

    Raises:
        ValueError: when it is.
    """
    if timeout is not None and not 0.0 < timeout < math.inf:
        raise ValueError(
            f"timeout must be a positive number of seconds, or None; got {timeout!r}"
        )


def _evaluate_on_worker(
    packed: list[Any],
    metrics: tuple[str, ...],
    parameters: dict[str, Any],
    trial_index: int,
    told: tuple[Any, ...],
) -> Iterator[Any]:
    """Evaluate one trial, in a worker process, after reporting that it has begun."""
    evaluate = _unpacked(packed[0])
    yield os.getpid()
    # Checked here: whatever else the function returns stays on this machine.
    yield _checked(evaluate(parameters, trial_index, *told), metrics)


@functools.lru_cache(maxsize=1)
def _unpacked(packed: Any) -> Evaluate:
    """Read the function on a worker process: once, not once per trial."""
    torch.set_num_threads(1)
    ray = import_ray()
    try:
        return ray.get(packed)
    except ray.exceptions.RayError as error:
        if not _is_without_room(error):
            raise
        # Ray's own message begins with bytes that name the object.
        address = ray.util.get_node_ip_address()
        raise RuntimeError(
            f"what is evaluated {_NO_ROOM} (on the machine {address})"
        ) from error


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
            f"{', '.join(map(repr, metrics))}; got {repr(outcome)[:_LONGEST_OUTCOME]}"
        )
    return {name: (mean, sem) for name, (mean, sem) in plain.items()}


def _is_lost(error: BaseException) -> bool:
    """Whether a worker or its machine died, rather than the evaluation failed."""
    exceptions = import_ray().exceptions
    lost = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.RaySystemError,
    )
    return isinstance(error, lost)


def _is_without_room(error: BaseException) -> bool:
    """Whether an object found no room, in memory and on the disk."""
    exceptions = import_ray().exceptions
    return isinstance(
        error, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError
    )


def reason_of(error: BaseException) -> str:
    """Name an error as the worker raised it, in one line.

    Args:
        error: From `ray.get`.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_LONGEST_REASON] if lines else "no message"
