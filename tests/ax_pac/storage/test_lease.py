"""One process writes a search; another one is told, or takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ax_pac import SearchChangedError, SearchHeldError, open_client
from tests.ax_pac.storage.test_client import prepare, result_of
from tests.helpers.ax_loops import experiment_of, run

sqlalchemy = pytest.importorskip("sqlalchemy")
from ax_pac.storage import lease as leases  # noqa: E402 - needs SQLAlchemy

ROOT = Path(__file__).parents[3]

# Begins a search, says so, and holds it until its input ends.
HOLDER = """
import sys
import ax_pac
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import run

client = prepare(ax_pac.open_client(sys.argv[1], "bowl"))
run(client, max_trials=2)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(database):
    """Another process that holds the search, with two trials."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER, database],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def row_of(database: str) -> dict[str, object] | None:
    """The lease as it is in the database."""
    client = open_client(database, "bowl")
    with client._database.engine.connect() as connection:
        row = connection.execute(sqlalchemy.select(leases.LEASES)).mappings().first()
        return None if row is None else dict(row)


def change(database: str, **values: object) -> None:
    """Make the lease that of somebody else."""
    client = open_client(database, "bowl")
    with client._database.engine.begin() as connection:
        connection.execute(leases.LEASES.update().values(**values))


def test_another_process_is_told_who_holds_a_search_and_still_reads(holder, database):
    client = open_client(database, "bowl")
    assert len(experiment_of(client).trials) == 2
    before = result_of(database)
    for write in (
        lambda: client.get_next_trials(max_trials=1),
        lambda: open_client(database, "bowl", hold=True),
        client.hold,
    ):
        with pytest.raises(
            SearchHeldError, match=rf"held by process {holder.pid} on .* since 20\d\d-"
        ):
            write()
    assert result_of(database) == before
    other = prepare_other(database)  # one lease per search, not per database
    run(other, max_trials=1)


def prepare_other(database):
    client = open_client(database, "other")
    client.configure_experiment(
        experiment_parameters(open_client(database, "bowl")), name="other"
    )
    client.configure_optimization("-loss")
    from ax_pac import pac_generation_strategy

    client.set_generation_strategy(pac_generation_strategy(delta=0.1, epsilon=0.05))
    return client


def experiment_parameters(client):
    from ax.api.configs import RangeParameterConfig

    names = experiment_of(client).search_space.parameters
    return [
        RangeParameterConfig(name=name, parameter_type="float", bounds=(0, 1))
        for name in names
    ]


def test_a_process_that_was_killed_has_lost_its_search_at_once(holder, database):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    client = open_client(database, "bowl")
    run(client, max_trials=1)
    assert len(result_of(database)) == 3
    row = row_of(database)
    assert row is not None
    assert row["process"] == os.getpid()


@pytest.mark.parametrize(
    ("values", "is_over"),
    [
        ({"machine": "another"}, False),
        ({"machine": "another", "beat": 0.0}, True),
        ({}, False),
        ({"process": 2**22 + 1}, True),  # above the largest id of Linux
        ({"started": "1"}, True),  # the id was given to another process since
    ],
)
def test_a_search_is_taken_over_once_its_holder_is_gone(database, values, is_over):
    first = prepare(open_client(database, "bowl"))
    run(first, max_trials=1)
    change(database, token="another", **values)
    client = open_client(database, "bowl")
    if is_over:
        run(client, max_trials=1)
        assert len(result_of(database)) == 2
        return
    with pytest.raises(SearchHeldError, match="last heard of"):
        run(client, max_trials=1)
    assert len(result_of(database)) == 1


def test_a_process_that_slept_for_long_does_not_write_what_was_taken_over(database):
    slept = prepare(open_client(database, "bowl"))
    run(slept, max_trials=1)
    change(database, token="another", process=os.getpid())
    with pytest.raises(SearchHeldError):
        run(slept, max_trials=1)
    other = open_client(database, "bowl")
    change(database, beat=0.0, machine="another")
    run(other, max_trials=1)
    with pytest.raises(SearchChangedError, match="open_client"):
        slept.get_next_trials(max_trials=1)
    assert len(result_of(database)) == 2


def test_a_search_that_is_released_or_whose_client_is_gone_is_free(database):
    client = prepare(open_client(database, "bowl"))
    run(client, max_trials=1)
    assert row_of(database) is not None
    client.release()
    assert row_of(database) is None
    run(client, max_trials=1)
    row = row_of(database)
    assert row is not None
    assert row["token"] == leases.Holder.this_process().token
    client.release()


def test_heartbeats_keep_a_lease(database, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.02)
    client = prepare(open_client(database, "bowl"))
    change(database, beat=1.0)
    for _ in range(1000):  # if no heartbeat comes, the test fails instead
        row = row_of(database)
        if row is not None and row["beat"] > 1.0:
            break
        time.sleep(0.01)
    else:
        pytest.fail("no heartbeat")
    assert row["since"] > 1.0
    client.release()


def test_a_database_in_memory_has_no_lease():
    client = prepare(open_client("sqlite://", "bowl"))
    assert client._lease is None
    assert json.dumps(client.unfinished_trials()) == "{}"
