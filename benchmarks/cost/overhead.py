"""Cost of each entry point of Ax, and of a trial beside Ax's default strategy."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from ax.adapter.torch import TorchAdapter
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.api.protocols import IMetric, IRunner
from ax.core.experiment import Experiment
from ax.core.trial_status import TrialStatus
from ax.exceptions.core import OptimizationComplete
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generators.torch.botorch_modular.acquisition import Acquisition
from ax.generators.torch.botorch_modular.surrogate import Surrogate
from ax.orchestration.orchestrator import Orchestrator, OrchestratorOptions
from torch.quasirandom import SobolEngine

import ax_pac.adapter.acquisition
from ax_pac import (
    PACStoppingStrategy,
    certificate_records,
    certified_generation_strategy,
    pac_generation_strategy,
)
from benchmarks.calibration.functions import sample_of_prior
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded

NAME = "overhead"
DESCRIPTION = "each entry point of Ax; CPU seconds per trial beside Ax's default"
MINUTES_ONCE = 0.0

EPSILON = 0.05
NOISE = 0.1
PARTS = ("fit", "certificate", "propose", "bookkeeping")
ENTRY_POINTS = (
    *("Client", "client.run_trials", "AxClient", "AxClient, stopping strategy"),
    *("Orchestrator", "Orchestrator, stopping strategy", "Client, Ax's proposals"),
)
_ENTRY = {"d": 3, "n": 0, "delta": 0.3, "most": 60}
_DIMENSIONS = (9, 16)
_SIZES = (20, 50, 100)
_MEASURED = 10
# Far too strict to be met: the search goes on, and no stronger check is made.
_DELTA = 0.1
_RUN_DELTA = 0.3

# Searches by each entry point, cost of a trial, and whole runs.
_PLAN = (
    *(({"what": "door", "door": entry, **_ENTRY}, 3, 0.3) for entry in ENTRY_POINTS),
    *(
        (
            {"what": "cost", "door": "Client", "d": d, "n": n}
            | {"delta": _DELTA, "most": 0},
            3,
            0.5,
        )
        for d in _DIMENSIONS
        for n in _SIZES
    ),
    *(
        (
            {"what": "whole", "door": "Client", "d": d, "n": 0}
            | {"delta": _RUN_DELTA, "most": 100},
            3,
            1.0,
        )
        for d in (2, 4)
    ),
)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


class Clock:
    """CPU seconds by part; an inner part is taken off the one around it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[float] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.process_time()
        self._open.append(0.0)
        try:
            yield
        finally:
            elapsed = time.process_time() - start
            self.seconds[name] += elapsed - self._open.pop()
            if self._open:
                self._open[-1] += elapsed

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return wrapper


@contextlib.contextmanager
def clocked() -> Iterator[Clock]:
    """Time the parts of whatever strategy runs inside."""
    clock = Clock()
    places = [
        (Surrogate, "fit", "fit"),
        (Acquisition, "optimize", "propose"),
        (Acquisition, "__init__", "propose"),
        (TorchAdapter, "predict", "propose"),
        (ax_pac.adapter.acquisition, "certify", "certificate"),
        (ax_pac.adapter.acquisition.CertifyingAcquisition, "_propose", "propose"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, part), original in zip(places, originals, strict=True):
        setattr(owner, name, clock.timed(part, original))
    try:
        yield clock
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


class _Problem:
    """A GP draw on the unit box, observed with known noise."""

    def __init__(self, d: int, seed: int) -> None:
        lengthscale = torch.full((d,), 0.25 * d**0.5, dtype=torch.float64)
        self._draw = sample_of_prior(lengthscale, 1.0, 0.0, seed=1_000_003 * d + seed)
        self._seed, self.d = seed, d

    def observe(self, parameters: dict[str, Any], index: int) -> tuple[float, float]:
        x = torch.tensor([[parameters[f"x{i}"] for i in range(self.d)]])
        noise = np.random.default_rng((self._seed, index)).standard_normal()
        return float(self._draw(x.double())) + NOISE * noise, NOISE

    def client(self, strategy: GenerationStrategy | None) -> Client:
        client = Client(random_seed=self._seed)
        client.configure_experiment(
            parameters=[
                RangeParameterConfig(
                    name=f"x{i}", parameter_type="float", bounds=(0, 1)
                )
                for i in range(self.d)
            ]
        )
        client.configure_optimization(objective="gain")
        if strategy is not None:
            client.set_generation_strategy(strategy)
        return client

    def attach(self, client: Client, n: int) -> None:
        design = SobolEngine(self.d, scramble=True, seed=self._seed)
        for row in design.draw(n, dtype=torch.float64).tolist():
            parameters = {f"x{i}": value for i, value in enumerate(row)}
            index = client.attach_trial(parameters)
            client.complete_trial(index, {"gain": self.observe(parameters, index)})


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run one search by one entry point, or ten trials of both strategies."""
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.ExitStack() as after:
        after.callback(logging.disable, quiet)
        warnings.simplefilter("ignore")
        problem = _Problem(settings["d"], seed)
        if settings["what"] == "cost":
            result = _cost(problem, settings, seed)
        else:
            result = _search(problem, settings, seed)
    return recorded(NAME, settings, seed, result)


def _cost(problem: _Problem, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """CPU seconds of ten trials after n, the strategies taking turns."""
    pac = pac_generation_strategy(
        delta=settings["delta"],
        epsilon=EPSILON,
        level="pairwise",
        num_initial_trials=6,
        seed=seed,
    )
    clients = {"pac": problem.client(pac), "ax": problem.client(None)}
    clients["ax"].configure_generation_strategy(initialization_random_seed=seed)
    for client in clients.values():
        problem.attach(client, settings["n"])
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    for trial in range(_MEASURED + 1):
        for name, client in clients.items():
            seconds = _one_trial(problem, client)
            if trial > 0:  # the first imports what it needs
                trials[name].append(seconds)
    storage = {name: _storage(client) for name, client in clients.items()}
    return {"trials": trials, "storage": storage}


def _one_trial(problem: _Problem, client: Client) -> dict[str, float]:
    with clocked() as clock:
        start = time.process_time()
        ((index, parameters),) = client.get_next_trials(max_trials=1).items()
        total = time.process_time() - start
        outcome = problem.observe(dict(parameters), index)
        start = time.process_time()
        client.complete_trial(index, {"gain": outcome})
        total += time.process_time() - start
    rest = total - sum(clock.seconds.values())
    return {**clock.seconds, "bookkeeping": rest, "total": total}


def _storage(client: Client) -> float:
    """CPU seconds of a save to JSON, which both strategies leave to the user."""
    start = time.process_time()
    json.dumps(client._to_json_snapshot())
    return time.process_time() - start


def _search(problem: _Problem, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Search by an entry point until the certificate; count checks and seconds."""
    question = {"delta": settings["delta"], "epsilon": EPSILON, "level": "joint"}
    entry, most = settings["door"], settings["most"]
    with clocked() as clock:
        start = time.process_time()
        experiment = _through(problem, entry, question, most, seed)
        total = time.process_time() - start
    records = certificate_records(experiment)
    last = records[-1]
    return {
        "trials": len(experiment.trials),
        "holds": last["holds"],
        "score": last["score"],
        "failure_probability": last["failure_probability"],
        "incumbent": last["incumbent"],
        "certificates": len(records),
        "seconds": {**clock.seconds, "total": total},
    }


def _through(
    problem: _Problem, entry: str, question: dict[str, Any], most: int, seed: int
) -> Experiment:
    """Search by one entry point; docs/how_to/ax_loops.md describes all of them."""
    if entry.endswith("Ax's proposals"):
        strategy = certified_generation_strategy(**question, seed=seed)
    else:
        strategy = pac_generation_strategy(**question, seed=seed)
    stopping = None
    if entry.endswith("stopping strategy"):
        stopping = PACStoppingStrategy(**question, seed=seed)
    if entry.startswith("AxClient"):
        return _ax_client(problem, strategy, stopping, most)
    client = problem.client(strategy)
    experiment = client._experiment
    if entry.startswith("Client"):
        with contextlib.suppress(OptimizationComplete):
            for _ in range(most):
                ((index, point),) = client.get_next_trials(max_trials=1).items()
                client.complete_trial(
                    index, {"gain": problem.observe(dict(point), index)}
                )
        return experiment
    client.configure_runner(_Start(problem))
    client.configure_metrics([_Gain(name="gain")])
    if entry == "client.run_trials":
        client.run_trials(max_trials=most)
        return experiment
    options = OrchestratorOptions(
        max_pending_trials=1,
        global_stopping_strategy=stopping,
        init_seconds_between_polls=0,
        min_seconds_before_poll=0.0,
    )
    Orchestrator(experiment, strategy, options).run_n_trials(most)
    return experiment


def _ax_client(
    problem: _Problem,
    strategy: GenerationStrategy,
    stopping: PACStoppingStrategy | None,
    most: int,
) -> Experiment:
    from ax.service.ax_client import AxClient, ObjectiveProperties

    client = AxClient(
        generation_strategy=strategy,
        global_stopping_strategy=stopping,
        verbose_logging=False,
    )
    client.create_experiment(
        parameters=[
            {"name": f"x{i}", "type": "range", "bounds": [0.0, 1.0]}
            for i in range(problem.d)
        ],
        objectives={"gain": ObjectiveProperties(minimize=False)},
    )
    with contextlib.suppress(OptimizationComplete):
        for _ in range(most):
            point, index = client.get_next_trial()
            client.complete_trial(index, problem.observe(point, index))
    return client.experiment


class _Start(IRunner):
    def __init__(self, problem: _Problem) -> None:
        super().__init__()
        self._problem = problem

    def run_trial(self, trial_index: int, parameterization: Any) -> dict[str, Any]:
        outcome = self._problem.observe(dict(parameterization), trial_index)
        return {"outcome": list(outcome)}

    def poll_trial(self, trial_index: int, trial_metadata: Any) -> TrialStatus:
        return TrialStatus.COMPLETED

    def stop_trial(self, trial_index: int, trial_metadata: Any) -> dict[str, Any]:
        return {}


class _Gain(IMetric):
    def fetch(
        self, trial_index: int, trial_metadata: Any
    ) -> tuple[int, tuple[float, float]]:
        mean, sem = trial_metadata["outcome"]
        return 0, (mean, sem)
