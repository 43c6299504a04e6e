"""Speed of a second worker: trials per minute, and trials to the certificate."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.exceptions.core import OptimizationComplete

from ax_pac import (
    fit_model,
    latest_certificate,
    open_client,
    pac_generation_strategy,
    ray_orchestrator,
)
from ax_pac.orchestration.ray_runner import import_ray
from ax_pac.strategy.batch import proposed_together
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, provenance

NAME = "ray"
DESCRIPTION = "a second worker on Ray: trials per minute, trials to the certificate"
MINUTES_ONCE = 0.3

_SEM = 0.05
_TIMED_TRIALS = 20
# Small enough that no search ends while it is timed.
_TIMED = {"delta": 0.001, "level": "pairwise"}
_TIMED_PROPOSALS = 5
_TIMED_BATCHES = 3
# Added to a covariance in squared objective units, far below the noise.
_JITTER = 1e-8

_SPEED = {"part": "speed", "d": 3, "wait": 2.0}
_CERTIFICATE = {"part": "certificate", "wait": 1.0, "level": "joint"}
# The speed with 1 and 2 workers, in memory and in a database; the certificate with 2
# and in a plain loop; proposals while trials run, singly, together and by draws.
_PLAN = (
    (_SPEED | {"workers": 1}, 3, 0.9),
    (_SPEED | {"workers": 2}, 3, 0.45),
    (_SPEED | {"workers": 1, "database": "sqlite"}, 3, 0.9),
    (_SPEED | {"workers": 2, "database": "sqlite"}, 3, 0.45),
    (_CERTIFICATE | {"d": 2, "delta": 0.05}, 8, 0.6),
    (_CERTIFICATE | {"d": 3, "delta": 0.1}, 8, 0.6),
    *(
        ({"part": "pending", "d": 9, "n": 50, "p": p}, 1, 0.3)
        for p in (0, 1, 10, 100, 1000)
    ),
    *(
        ({"part": "together", "d": 9, "n": 50, "p": p, "q": q}, 1, 1.0)
        for p, q in ((10, 10), (100, 10), (1000, 10))
    ),
    *(
        ({"part": "draws", "d": 9, "n": 50, "points": points, "q": 100}, 1, 0.2)
        for points in (1024, 2048)
    ),
)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Run one search on Ray; of part `certificate`, the plain loop as well."""
    for name in ("ax.api.client", "ax.orchestration.orchestrator"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Very small noise values")
    if settings["part"] in ("speed", "certificate"):
        _warm_up()
    parts = {"speed": _speed, "certificate": _certificate}
    parts |= {"pending": _pending, "together": _together, "draws": _draws}
    result, trials = parts[settings["part"]](seed, settings)
    return Trace(
        benchmark=NAME,
        settings=settings,
        seed=seed,
        result=result,
        trials=trials,
        provenance=provenance(torch.get_num_threads())
        | {"ray": import_ray().__version__},
    )


def _speed(
    seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time a search that does not end by certificate."""
    with tempfile.TemporaryDirectory() as folder:
        stored = "database" in settings
        client = open_client(Path(folder) / "search.db", "bowl") if stored else Client()
        return _timed(
            _configured(client, seed, settings["d"], **_TIMED), settings, seed
        )


def _timed(
    client: Client, settings: dict[str, Any], seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    start = time.perf_counter()
    trials: list[dict[str, Any]] = []

    def note(index: int) -> None:
        trials.append({"trial": index, "seconds": time.perf_counter() - start})

    evaluate = _evaluation(seed, settings["wait"])
    with ray_orchestrator(
        client, evaluate, workers=settings["workers"], on_end=note
    ) as orchestrator:
        orchestrator.run_n_trials(_TIMED_TRIALS)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "trials_a_minute": 60.0 * len(trials) / seconds,
        "ask_seconds": orchestrator.ask_seconds,
    }, trials


def _certificate(
    seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Count the evaluations to the certificate, in a plain loop and with 2 workers."""
    question = {"delta": settings["delta"], "level": settings["level"]}
    client = _client(seed, settings["d"], **question)
    evaluate = _evaluation(seed, 0.0)
    try:
        while len(client._experiment.trials) < 200:
            for index, point in client.get_next_trials(max_trials=1).items():
                client.complete_trial(index, evaluate(point, index))
    except OptimizationComplete:
        pass
    alone = _count(client)
    client = _client(seed, settings["d"], **question)
    evaluate = _evaluation(seed, settings["wait"])
    with ray_orchestrator(client, evaluate, workers=2) as orchestrator:
        orchestrator.run_n_trials(200)
    return {"alone": alone, "workers": _count(client)}, []


def _pending(
    seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time proposals while `p` trials run, one ending before each; without Ray."""
    rng = np.random.default_rng(seed)
    client = _client(seed, settings["d"], **_TIMED)
    evaluate = _evaluation(seed, 0.0)

    def begin() -> int:
        point = {f"x{i}": float(rng.random()) for i in range(settings["d"])}
        return client.attach_trial(point)

    def end(index: int) -> None:
        parameters = client._experiment.trials[index].arm.parameters
        client.complete_trial(index, evaluate(parameters, index))

    for _ in range(settings["n"]):
        end(begin())
    running = [begin() for _ in range(settings["p"])]
    trials = []
    for _ in range(_TIMED_PROPOSALS):
        end(running.pop(0) if running else begin())
        wall, cpu = time.perf_counter(), time.process_time()
        running += list(client.get_next_trials(max_trials=1))
        trials.append(
            {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        )
        if settings["p"] == 0:
            end(running.pop())
    return {kind: float(np.median([t[kind] for t in trials])) for kind in trials[0]}, (
        trials
    )


def _together(
    seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time batches of `q` proposals while `p` trials run; without Ray.

    One trial ends before each batch, so that it has a fit and a certificate.
    """
    rng = np.random.default_rng(seed)
    client = _client(seed, settings["d"], **_TIMED)
    evaluate, experiment = _evaluation(seed, 0.0), client._experiment

    def begin() -> Any:
        point = {f"x{i}": float(rng.random()) for i in range(settings["d"])}
        _, index = experiment.attach_trial([point])
        return experiment.trials[index]

    def end(trial: Any) -> None:
        client.complete_trial(trial.index, evaluate(trial.arm.parameters, trial.index))

    for _ in range(settings["n"]):
        end(begin())
    running = [begin() for _ in range(settings["p"])]
    trials = []
    for number in range(_TIMED_BATCHES + 1):
        end(running.pop(0))
        wall, cpu = time.perf_counter(), time.process_time()
        proposed_together(client._generation_strategy, experiment, settings["q"])
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        running.append(begin())
        if number:  # the first one also imports
            trials.append({k: v / settings["q"] for k, v in took.items()})
    medians = {k: float(np.median([t[k] for t in trials])) for k in trials[0]}
    return medians, trials


def _draws(
    seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time what Thompson draws of `q` functions cost, on so many `points` of the box.

    The functions are exact joint draws of a fitted posterior on the points, and each
    one's maximum would be a proposal. No strategy proposes in this way.
    """
    rng = np.random.default_rng(seed)
    d, evaluate = settings["d"], _evaluation(seed, 0.0)
    visited = rng.random((settings["n"], d))
    losses = [
        evaluate({f"x{i}": value for i, value in enumerate(row)}, index)["loss"][0]
        for index, row in enumerate(visited)
    ]
    Y = -torch.tensor(losses, dtype=torch.float64).unsqueeze(-1)
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    noise = torch.full_like(Y, _SEM**2)
    model = fit_model(torch.from_numpy(visited), Y, noise, bounds)
    trials = []
    for number in range(_TIMED_BATCHES + 1):
        points = torch.from_numpy(rng.random((settings["points"], d)))
        cpu = time.process_time()
        with torch.no_grad():
            posterior = model.posterior(points)
            root = torch.linalg.cholesky(
                posterior.covariance_matrix
                + _JITTER * torch.eye(len(points), dtype=torch.float64)
            )
            begin = time.process_time()
            normal = torch.randn(len(points), settings["q"], dtype=torch.float64)
            best = (posterior.mean + root @ normal).argmax(0)
        end = time.process_time()
        if number:  # the first one also imports
            took = {"root": begin - cpu, "draw": (end - begin) / settings["q"]}
            trials.append(took | {"different": len(set(best.tolist()))})
    return {k: float(np.median([t[k] for t in trials])) for k in trials[0]}, trials


def _count(client: Client) -> dict[str, Any]:
    certificate = latest_certificate(client)
    trials = client._experiment.trials.values()
    return {
        "holds": certificate is not None and certificate.holds,
        "begun": len(trials),
        "completed": sum(trial.status.is_completed for trial in trials),
    }


def _evaluation(seed: int, wait: float) -> Callable[..., Any]:
    """A noisy bowl whose minimum depends on the seed; the noise, on the trial."""

    def evaluate(parameters: Any, trial_index: int) -> dict[str, tuple[float, float]]:
        time.sleep(wait)
        centre = np.random.default_rng(seed).uniform(0.2, 0.8, len(parameters))
        distance = np.square(np.array(list(parameters.values())) - centre).sum()
        noise = np.random.default_rng((seed, trial_index)).standard_normal()
        return {"loss": (float(distance + _SEM * noise), _SEM)}

    return evaluate


def _client(seed: int, d: int, **question: Any) -> Client:
    return _configured(Client(), seed, d, **question)


def _configured(client: Client, seed: int, d: int, **question: Any) -> Client:
    client.configure_experiment(
        name="bowl",
        parameters=[
            RangeParameterConfig(name=f"x{i}", parameter_type="float", bounds=(0, 1))
            for i in range(d)
        ],
    )
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(
        pac_generation_strategy(**question, epsilon=0.05, seed=seed)
    )
    return client


def _warm_up() -> None:
    """Have Ray and two workers running, packages imported, before any clock."""
    ray = import_ray()
    if ray.is_initialized():
        return
    ray.init(
        address="local",
        num_cpus=2,
        log_to_driver=False,
        include_dashboard=False,
        logging_level="ERROR",
    )
    client = _client(0, 2, **_TIMED)
    with ray_orchestrator(client, _evaluation(0, 10.0), workers=2) as orchestrator:
        orchestrator.run_n_trials(4)
