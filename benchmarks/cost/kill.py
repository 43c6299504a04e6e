"""A search in a database, killed at random moments until it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ax_pac import open_client
from benchmarks.cost.kill_workers import killed_workers, two_processes
from benchmarks.harness.networks import small_problem
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded
from compression_adapters import SearchOptions
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.search.result import CompressionResult
from compression_adapters.search.run import search_problem
from compression_adapters.search.trials import trial_seed

NAME = "kill"
DESCRIPTION = "searches in a database whose processes are killed at random moments"
MINUTES_ONCE = 0.0

_RUNS = 100
_MOST_KILLS = 40
_SETTINGS = {"delta": 0.1, "epsilon": 0.05, "level": "joint"}
_CERTIFICATE = ("score", "failure_probability", "pairwise_probability", "delta")
DIGITS = 1e-6

# Evaluations of a third of a second, so that most kills find one under way.
_WORKERS = _SETTINGS | {"workers": 2, "wait": 0.3}
_PLAN = (
    (_SETTINGS, _RUNS, 0.35),
    (_WORKERS | {"killed": "driver", "database": "sqlite"}, 18, 0.9),
    (_WORKERS | {"killed": "driver", "database": "postgresql"}, 8, 0.9),
    (_WORKERS | {"killed": "driver", "database": "sqlite", "span": 2.0}, 8, 1.0),
    (_WORKERS | {"killed": "driver", "database": "postgresql", "span": 2.0}, 6, 1.0),
    (_WORKERS | {"killed": "worker", "database": "sqlite"}, 8, 0.5),
    (
        _SETTINGS
        | {"killed": "nobody", "database": "sqlite", "processes": 2, "wait": 0.05},
        20,
        0.2,
    ),
)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Kill one search until it ends, and compare it with an undisturbed one."""
    kinds = {"driver": killed_workers, "worker": killed_workers}
    kinds |= {"nobody": two_processes, "process": killed_search}
    search = kinds[settings.get("killed", "process")]
    with tempfile.TemporaryDirectory() as folder:
        result, kills = search(Path(folder), seed, settings)
    return recorded(NAME, settings, seed, result, kills)


def killed_search(
    folder: Path,
    seed: int,
    settings: dict[str, Any],
    *,
    kill_at_writes: Sequence[int] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a search undisturbed and killed, each in processes of its own.

    The processes are forks of this one, so that Ax is imported once.

    Args:
        folder: An empty folder.
        seed: Of the search and of the moments.
        settings: Of the search.
        kill_at_writes: Kill the first processes, in place of random moments, at these
            statements that write (one number a process, its first write is 1): kills
            that do not depend on how fast the machine is.

    Returns:
        What differs, and one row a kill.
    """
    rng = np.random.default_rng(seed)
    alone, killed = folder / "alone", folder / "killed"
    for place in (alone, killed):
        place.mkdir()
    begin = time.perf_counter()
    _wait(_start(alone, seed, settings))
    duration = time.perf_counter() - begin
    reference = json.loads((alone / "result.json").read_text())

    kills: list[dict[str, Any]] = []
    broken: list[str] = []
    while True:
        before, evaluated_before = stored_trials(killed), _evaluated(killed)
        is_planned = len(kills) < len(kill_at_writes)
        at_write = kill_at_writes[len(kills)] if is_planned else 0
        process = _start(killed, seed, settings, at_write)
        moment = None
        if not kill_at_writes and len(kills) < _MOST_KILLS:
            moment = float(rng.uniform(0.0, duration))
        ended = _wait(process, moment)
        again = _evaluated(killed)[len(evaluated_before) :]
        stored = stored_trials(killed)
        repeated = [index for index in again if index in evaluated_before]
        broken += _broken(before, stored, again, repeated)
        if ended:
            break
        kills.append(
            {
                "moment": moment,
                "trials": len(stored),
                "running": sum(not trial["completed"] for trial in stored.values()),
                "evaluated": len(again),
                "repeated": len(repeated),
            }
        )
    result = json.loads((killed / "result.json").read_text())
    broken += _different(reference, result)
    return {
        "broken": broken,
        "kills": len(kills),
        "trials": len(result["trials"]),
        "evaluations": len(_evaluated(killed)),
        "seconds": duration,
        "holds": result["certificate"]["holds"],
    }, kills


def stored_trials(folder: Path) -> dict[int, dict[str, Any]]:
    """Read what the database holds, as another process finds it."""
    if not (folder / "search.db").exists():
        return {}
    client = open_client(folder / "search.db", "compression")
    if client._maybe_experiment is None:
        return {}
    experiment = client._experiment
    data = experiment.lookup_data().df
    return {
        index: {
            "completed": trial.status.is_completed,
            "point": dict(trial.arm.parameters),
            "data": sorted(
                map(list, data[data["trial_index"] == index][_COLUMNS].to_numpy())
            ),
        }
        for index, trial in experiment.trials.items()
    }


_COLUMNS = ["metric_name", "mean", "sem"]


def _broken(
    before: dict[int, Any], after: dict[int, Any], again: list[int], repeated: list[int]
) -> list[str]:
    """Say which promise one process broke."""
    broken = []
    for index, trial in before.items():
        if trial["completed"] and after.get(index) != trial:
            broken.append(f"completed trial {index} was lost or changed")
        if trial["completed"] and index in again:
            broken.append(f"stored trial {index} was evaluated again")
    if len(repeated) > 1:
        broken.append(f"evaluations {repeated} were repeated after one kill")
    for index, trial in after.items():
        if trial["completed"] and len(trial["data"]) != 3:
            broken.append(f"completed trial {index} has no data")
    return broken


def _different(one: Any, two: Any, where: str = "result") -> list[str]:
    """Compare what two searches came to, numbers to six digits."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [d for k in one for d in _different(one[k], two[k], f"{where}.{k}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return [d for i, (a, b) in pairs for d in _different(a, b, f"{where}[{i}]")]
    if isinstance(one, float) and isinstance(two, float):
        if abs(one - two) <= DIGITS * max(1.0, abs(one)):
            return []
    elif one == two:
        return []
    return [f"{where}: {one} alone, {two} killed"]


def _evaluated(folder: Path) -> list[int]:
    """Read which trials were evaluated, in order, from the log beside the database."""
    path = folder / "evaluated.log"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _start(
    folder: Path, seed: int, settings: dict[str, Any], kill_at_write: int = 0
) -> int:
    """Fork a process that searches; return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        _search(folder, seed, settings, kill_at_write)
        status = 0
    finally:
        os._exit(status)


def _wait(process: int, moment: float | None = None) -> bool:
    """Wait for the end of a process, or kill it; return whether it ended by itself."""
    if moment is not None:
        end = time.perf_counter() + moment
        while time.perf_counter() < end:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                break
            time.sleep(0.001)
        else:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
    else:
        _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        raise RuntimeError("a search ended with an error, printed above")
    return True


def _search(
    folder: Path, seed: int, settings: dict[str, Any], kill_at_write: int
) -> None:
    """Search or go on, and write what came out."""
    torch.set_num_threads(1)
    if kill_at_write:
        _kill_at(kill_at_write)
    options = SearchOptions(
        seed=seed, db=folder / "search.db", progress=False, **settings
    )
    result = search_problem(logged_problem(seed, folder / "evaluated.log"), options)
    (folder / "result.json").write_text(json.dumps(outcome(result)))


def _kill_at(write: int) -> None:
    """Have this process kill itself just before its n-th write to a database."""
    import sqlalchemy

    count = 0

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
    def kill(connection, cursor, statement, parameters, context, many) -> None:
        nonlocal count
        if statement.split(None, 1)[0] in ("INSERT", "UPDATE", "DELETE"):
            count += 1
        if count == write:
            os.kill(os.getpid(), signal.SIGKILL)


def outcome(result: CompressionResult) -> dict[str, Any]:
    """Collect what two searches are compared by."""
    certificate = result.certificate.to_dict()
    trials = result.trials.drop(columns=["failed_reason"])
    trials = trials.loc[:, ~trials.columns.str.startswith("rank_")]
    return {
        "certificate": {k: certificate[k] for k in ("holds", *_CERTIFICATE)},
        "ranks": {name: str(rank) for name, rank in result.ranks.items()},
        "loss": list(result.loss),
        "stop_reason": result.stop_reason,
        "weights": [
            float(weight.detach().double().square().sum())
            for weight in result.network.parameters()
        ],
        "trials": json.loads(trials.to_json(orient="records", double_precision=12)),
    }


def logged_problem(seed: int, log: Path) -> CompressionProblem:
    """A small network whose evaluations are written down, each as it begins."""
    indices = {trial_seed(seed, index): index for index in range(1000)}

    class Logged(CompressionProblem):
        def evaluate(self, parameterization, *, seed, earlier=()):  # type: ignore[no-untyped-def]
            with log.open("a") as file:
                file.write(f"{indices[seed]}\n")
            return super().evaluate(parameterization, seed=seed, earlier=earlier)

    problem = small_problem()
    fields = dataclasses.fields(problem)
    return Logged(**{field.name: getattr(problem, field.name) for field in fields})
