"""Cost of storing a search in SQLite, in a `Client` loop."""

from __future__ import annotations

import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig, StorageConfig

from ax_pac import StoredClient, pac_generation_strategy
from benchmarks.harness.plans import minutes_of, planned
from benchmarks.harness.traces import Trace, recorded

NAME = "storage_cost"
DESCRIPTION = "seconds per trial of a Client loop with and without storage, in pairs"
MINUTES_ONCE = 0.0

_SEM = 0.02
_TIMED_TRIALS = 10
# Small enough that no search ends while it is timed.
_DELTA = 0.001

_PLAN = tuple(
    ({"d": d, "n": n, "level": level}, 1, 0.8)
    for d in (9, 16)
    for n in (20, 50)
    for level in ("pairwise", "joint")
)
plan = partial(planned, _PLAN)
minutes = partial(minutes_of, _PLAN)


def run(seed: int, settings: dict[str, Any]) -> Trace:
    """Time the same trials on a client without storage, on ours, and on Ax's own."""
    logging.getLogger("ax").setLevel(logging.ERROR)
    rng = np.random.default_rng(seed)
    d = settings["d"]
    points = rng.random((settings["n"], d))
    noise = _SEM * rng.standard_normal(settings["n"] + _TIMED_TRIALS)
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        clients = {
            "none": Client(),
            "stored": StoredClient(Path(folder) / "stored.db"),
            "ax": _ax_client(Path(folder) / "ax.db"),
        }
        for client in clients.values():
            _prepare(client, d, settings["level"], seed, points, noise)
        for number in range(settings["n"], settings["n"] + _TIMED_TRIALS):
            row: dict[str, Any] = {}
            # In turns, so that a change of the machine's load meets all of them.
            for name, client in clients.items():
                wall, cpu = time.perf_counter(), time.process_time()
                for index, point in client.get_next_trials(max_trials=1).items():
                    outcome = _bowl(point.values()) + noise[number]
                    client.complete_trial(index, {"loss": (outcome, _SEM)})
                row[name] = {
                    "wall": time.perf_counter() - wall,
                    "cpu": time.process_time() - cpu,
                    "point": list(point.values()),
                }
            trials.append(row)
    same = all(
        np.allclose(row["none"]["point"], row[name]["point"], atol=1e-6)
        for row in trials
        for name in ("stored", "ax")
    )
    return recorded(
        NAME,
        settings,
        seed,
        {"same_proposals": same},
        [
            {name: {k: cell[k] for k in ("wall", "cpu")} for name, cell in row.items()}
            for row in trials
        ],
    )


def _bowl(values: Any) -> float:
    return float(sum((value - 0.3) ** 2 for value in values))


def _ax_client(path: Path) -> Client:
    """Ax's own client on its own storage."""
    from ax.storage.sqa_store.db import (
        create_all_tables,
        get_engine,
        init_engine_and_session_factory,
    )

    url = f"sqlite:///{path}"
    init_engine_and_session_factory(url=url, force_init=True)
    create_all_tables(get_engine())
    return Client(storage_config=StorageConfig(url=url))


def _prepare(
    client: Client, d: int, level: str, seed: int, points: Any, noise: Any
) -> None:
    """Set a client up and give it the trials before those that are timed."""
    client.configure_experiment(
        name="bowl",
        parameters=[
            RangeParameterConfig(name=f"x{i}", parameter_type="float", bounds=(0, 1))
            for i in range(d)
        ],
    )
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(
        pac_generation_strategy(delta=_DELTA, epsilon=0.05, level=level, seed=seed)
    )
    for point, error in zip(points, noise, strict=False):
        index = client.attach_trial({f"x{i}": float(v) for i, v in enumerate(point)})
        client.complete_trial(index, {"loss": (_bowl(point) + float(error), _SEM)})
