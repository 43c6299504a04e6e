"""Searches on two workers and in a database: drivers and workers that are killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ax_pac import SearchHeldError, open_client
from benchmarks.harness.networks import small_problem
from compression_adapters import SearchOptions
from compression_adapters.evaluation.estimates import MeanSEM
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.search.run import search_problem
from compression_adapters.search.trials import trial_seed

POSTGRES = "AX_PAC_TEST_POSTGRES"
"""Variable with the URL of a PostgreSQL server, as for the tests."""

_MOST_KILLS = 40
# Seconds over which moments are drawn, from the first evaluation of a process or, the
# share of the early ones, from its start; about as long as a search goes on. With a
# `span` of its own a search is killed more often.
_SPAN, _SHARE_EARLY = 6.0, 0.25
_CERTIFICATE = ("delta", "epsilon", "level")
_COLUMNS = ["metric_name", "mean", "sem"]

# A Ray that outlives the drivers, in a process of its own: a fork must not have one.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def killed_workers(
    folder: Path, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run one search on two workers until it ends, while processes are killed.

    Args:
        folder: An empty folder.
        seed: Of the search and of the moments.
        settings: Of the search; `killed` says what: the driver, or a worker.

    Returns:
        What was broken, and one row per kill.
    """
    address = _started_cluster()[1]
    with _database(folder, settings["database"]) as database:
        begin = time.perf_counter()
        kill = _kill_driver if settings["killed"] == "driver" else _kill_worker
        kills, broken = kill(folder, seed, settings, database, address)
        seconds = time.perf_counter() - begin
        stored = stored_trials(database)
        broken += _unsound(stored, seed)
        evaluated = [index for index, _ in evaluations(folder)]
    done = json.loads((folder / "result.json").read_text())
    if not done["holds"]:
        broken.append("the search did not end with a certificate")
    return {
        "broken": broken,
        "kills": len(kills),
        "trials": len(stored),
        "completed": sum(t["status"] == "COMPLETED" for t in stored.values()),
        "failed": sum(t["status"] == "FAILED" for t in stored.values()),
        "repeated_by_ray": sum(bool(t["repeated"]) for t in stored.values()),
        "evaluations": len(evaluated),
        "seconds": seconds,
        "holds": done["holds"],
    }, kills


def two_processes(
    folder: Path, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Start one search in two processes at the same moment.

    Args:
        folder: An empty folder.
        seed: Of the search.
        settings: Of the search.

    Returns:
        What was broken, and what became of each process.
    """
    with _database(folder, settings["database"]) as database:
        places = [folder / "one", folder / "two"]
        for place in places:
            place.mkdir()
        begin = time.perf_counter()
        processes = [_start(p, seed, settings, database, None) for p in places]
        for process in processes:
            _wait(process)
        seconds = time.perf_counter() - begin
        ended = [json.loads((p / "result.json").read_text()) for p in places]
        stored = stored_trials(database)
    broken = _unsound(stored, seed)
    wrote = [end for end in ended if "held" not in end]
    told = [end for end in ended if "held" in end]
    # One may also have begun when the other had ended, and read its result.
    if not wrote or any(not end["holds"] for end in wrote):
        broken.append("no process ended the search with a certificate")
    if any(not end["held"] for end in told):
        broken.append("a process was not told who holds the search")
    log = [index for place in places for index, _ in evaluations(place)]
    if len(log) != len(set(log)):
        broken.append("both processes evaluated the same trial")
    return {
        "broken": broken,
        "kills": 0,
        "told": len(told),
        "trials": len(stored),
        "evaluations": len(log),
        "seconds": seconds,
        "holds": bool(wrote and wrote[0]["holds"]),
    }, []


def _kill_driver(
    folder: Path,
    seed: int,
    settings: dict[str, Any],
    database: str,
    address: str,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Kill the process of the search at random moments, until it ends."""
    rng = np.random.default_rng(seed)
    kills: list[dict[str, Any]] = []
    broken: list[str] = []
    while True:
        before, log = stored_trials(database), len(evaluations(folder))
        process = _start(folder, seed, settings, database, address)
        ended = False
        span = settings.get("span", _SPAN)
        moment = float(rng.uniform(0.0, span)) if len(kills) < _MOST_KILLS else None
        # Ray and its workers take longer to start than all the trials take.
        is_early = bool(rng.random() < _SHARE_EARLY)
        while not (is_early or ended or len(evaluations(folder)) > log):
            ended = _has_ended(process)
            time.sleep(0.002)
        ended = ended or _wait(process, moment)
        after = stored_trials(database)
        again = [index for index, _ in evaluations(folder)[log:]]
        broken += _lost(before, after, again)
        if ended:
            return kills, broken
        running = sum(t["status"] == "RUNNING" for t in after.values())
        if running > settings["workers"]:
            broken.append(f"{running} trials were running")
        kills.append(
            {
                "moment": moment,
                "early": is_early,
                "trials": len(after),
                "running": running,
                "repeated": len([i for i in again if i in before]),
            }
        )


def _kill_worker(
    folder: Path,
    seed: int,
    settings: dict[str, Any],
    database: str,
    address: str,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Kill the worker that began last, at random moments, while the search goes on."""
    rng = np.random.default_rng(seed)
    process = _start(folder, seed, settings, database, address)
    kills: list[dict[str, Any]] = []
    for pause in rng.uniform(0.0, _SPAN / 4.0, 3):
        known = len(evaluations(folder))
        end = time.perf_counter() + float(pause)
        while time.perf_counter() < end or len(evaluations(folder)) <= known:
            if _has_ended(process):
                return kills, []
            time.sleep(0.001)
        index, worker = evaluations(folder)[-1]
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
            kills.append({"moment": float(pause), "trial": index, "running": 1})
    _wait(process)
    return kills, []


def stored_trials(database: str) -> dict[int, dict[str, Any]]:
    """Read what the database holds, as another process finds it."""
    if "://" not in database and not Path(database).exists():
        return {}
    client = open_client(database, "compression")
    if not client.is_configured:
        return {}
    experiment = client._experiment
    data = experiment.lookup_data().df
    return {
        index: {
            "status": trial.status.name,
            "reason": trial.status_reason,
            "repeated": trial.run_metadata.get("repeated_because"),
            "point": dict(trial.arm.parameters),
            "data": sorted(
                map(list, data[data["trial_index"] == index][_COLUMNS].to_numpy())
            ),
        }
        for index, trial in experiment.trials.items()
    }


def _lost(before: dict[int, Any], after: dict[int, Any], again: list[int]) -> list[str]:
    """Say what of the completed trials one process lost or did again."""
    broken = []
    for index, trial in before.items():
        if trial["status"] != "COMPLETED":
            continue
        if after.get(index) != trial:
            broken.append(f"completed trial {index} was lost or changed")
        if index in again:
            broken.append(f"completed trial {index} was evaluated again")
    return broken


def _unsound(stored: dict[int, Any], seed: int) -> list[str]:
    """Say which trials of a search that has ended are not as they should be."""
    problem, broken = small_problem(), []
    for index, trial in sorted(stored.items()):
        status, data = trial["status"], trial["data"]
        if status == "RUNNING":
            broken.append(f"trial {index} is still running")
        if status in ("FAILED", "ABANDONED") and not trial["reason"]:
            broken.append(f"trial {index} is {status} without a reason")
        if status != "COMPLETED":
            continue
        if len(data) != 3:
            broken.append(f"trial {index} has {len(data)} rows of data, not 3")
            continue
        # The mean: the floor of a standard error depends on earlier trials.
        measured = problem.evaluate(trial["point"], seed=trial_seed(seed, index))
        for name, mean, _ in data:
            if abs(measured[name].mean - mean) > 1e-5 * max(1.0, abs(mean)):
                broken.append(f"trial {index} was evaluated on other samples")
    return broken


def evaluations(folder: Path) -> list[tuple[int, int]]:
    """Read which trials were evaluated, in order, and by which process."""
    path = folder / "evaluated.log"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [(int(index), int(worker)) for index, worker in map(str.split, lines)]


def _start(
    folder: Path,
    seed: int,
    settings: dict[str, Any],
    database: str,
    address: str | None,
) -> int:
    """Fork a process that searches or goes on; return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        _search(folder, seed, settings, database, address)
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def _search(
    folder: Path,
    seed: int,
    settings: dict[str, Any],
    database: str,
    address: str | None,
) -> None:
    """Search, and write what became of it."""
    torch.set_num_threads(1)
    workers = None
    if address is not None:
        import ray

        workers = settings["workers"]
        # So that workers find this module.
        environment = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level="ERROR",
        )
    options = SearchOptions(
        seed=seed,
        db=database,
        progress=False,
        workers=workers,
        start="space-filling" if workers is None else "auto",
        **{name: settings[name] for name in _CERTIFICATE},
    )
    problem = _logged(seed, folder / "evaluated.log", settings["wait"])
    try:
        result = search_problem(problem, options)
        outcome = {"holds": result.certificate.holds, "reason": result.stop_reason}
    except SearchHeldError as error:
        outcome = {"held": str(error)}
    (folder / "result.json").write_text(json.dumps(outcome))


@dataclasses.dataclass(frozen=True, eq=False)
class Logged(CompressionProblem):
    """A problem whose evaluations are written down, each as it begins, and last."""

    log: str = ""
    wait: float = 0.0
    indices: dict[int, int] = dataclasses.field(default_factory=dict)

    def evaluate(
        self,
        parameterization: Mapping[str, float],
        *,
        seed: int,
        earlier: Sequence[MeanSEM] = (),
    ) -> dict[str, MeanSEM]:
        """Write the trial down, wait, and evaluate it."""
        with Path(self.log).open("a") as file:
            file.write(f"{self.indices[seed]} {os.getpid()}\n")
        time.sleep(self.wait)
        return super().evaluate(parameterization, seed=seed, earlier=earlier)


def _logged(seed: int, log: Path, wait: float) -> Logged:
    problem = small_problem()
    names = [field.name for field in dataclasses.fields(problem)]
    indices = {trial_seed(seed, index): index for index in range(1000)}
    return Logged(
        **{name: getattr(problem, name) for name in names},
        log=str(log),
        wait=wait,
        indices=indices,
    )


def _wait(process: int, moment: float | None = None) -> bool:
    """Wait for the end of a process, or kill it; return whether it ended by itself."""
    end = np.inf if moment is None else time.perf_counter() + moment
    while not _has_ended(process):
        if time.perf_counter() >= end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return False
        time.sleep(0.002)
    return True


def _has_ended(process: int) -> bool:
    """Whether a process has ended by itself; an error of its is one here."""
    done, status = os.waitpid(process, os.WNOHANG)
    if done and status != 0:
        raise RuntimeError("a search ended with an error, printed above")
    return bool(done)


@contextlib.contextmanager
def _database(folder: Path, kind: str) -> Iterator[str]:
    """An empty database."""
    if kind == "sqlite":
        yield str(folder / "search.db")
        return
    import sqlalchemy

    server = os.environ.get(POSTGRES)
    if server is None:
        raise RuntimeError(
            f"needs a PostgreSQL server, whose URL {POSTGRES} holds: eval "
            '"$(.ci/postgres start)"'
        )
    url, name = sqlalchemy.make_url(server), f"kill_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(
        url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"drop database {name} with (force)"))


@cache
def _started_cluster() -> tuple[subprocess.Popen[str], str]:
    """Start a Ray of two CPUs for all runs of this process; return its address too."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _CLUSTER],
        stdin=subprocess.PIPE,  # it ends with this process, which closes the pipe
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("address "):
            return process, line.split()[1]
    raise RuntimeError("Ray did not start")
