"""Searches in a database, on every server that there is: killed, continued, apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ax_pac import certificate_records, latest_certificate, open_client
from compression_adapters import compress
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import SEM, experiment_of, new_client, run, take_up
from tests.helpers.networks import pool, small_network

# A number of 1e-13 is stored, and GPyTorch raises it to 1e-6 of the variance.
pytestmark = pytest.mark.filterwarnings("ignore:Very small noise values")

ROOT = Path(__file__).parents[2]
SEARCH = {"gamma": 0.5, "delta": 0.02, "epsilon": 0.05, "level": "pairwise"}

# Goes on with a search and kills itself inside the save of its n-th statement, with the
# transaction open.
KILLED = """
import os, signal, sys
import sqlalchemy
import ax_pac
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import run, take_up

writes = 0
last = int(sys.argv[2])

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    global writes
    if statement.lower().startswith(("insert", "update")):
        writes += 1
        if writes == last:
            os.kill(os.getpid(), signal.SIGKILL)

client = ax_pac.open_client(sys.argv[1], "bowl")
if not client.is_configured:
    prepare(client)
take_up(client)
run(client)
"""


def killed(database: str, write: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, database, str(write)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_search_killed_twice_goes_on_as_if_nothing_had_happened(database):
    expected = run(new_client())
    killed(database, 40)
    first = open_client(database, "bowl")
    trials = len(experiment_of(first).trials)
    assert 0 < trials < len(expected)
    killed(database, 30)
    client = open_client(database, "bowl")
    assert len(experiment_of(client).trials) > trials
    for index, parameters in client.unfinished_trials().items():
        assert parameters == pytest.approx(expected[index], abs=1e-6)
    take_up(client)
    run(client, max_trials=40)
    proposals = [t.arm.parameters for t in experiment_of(client).trials.values()]
    assert len(proposals) == len(expected)
    for one, two in zip(proposals, expected, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    certificate = latest_certificate(client)
    assert certificate is not None
    assert certificate.holds


def test_numbers_texts_and_records_come_back_as_they_were(database):
    client = prepare(open_client(database, "bowl"))
    run(client, max_trials=7)
    index = client.attach_trial({"x0": 0.1, "x1": 0.2})
    client.complete_trial(index, {"loss": (1.23456789e-11 / 3.0, 1e-13 / 7.0)})
    (failed,) = client.get_next_trials(max_trials=1)
    client.mark_trial_failed(failed, failed_reason="no memory " * 300)
    loaded = open_client(database, "bowl")
    one, two = experiment_of(client), experiment_of(loaded)
    values = [
        e.lookup_data().df[["mean", "sem"]].to_numpy().tolist() for e in (one, two)
    ]
    assert values[0] == values[1]
    assert two.trials[failed].status_reason == "no memory " * 300
    assert certificate_records(two) == certificate_records(one) != []
    assert json.dumps(two._properties)


def test_one_database_holds_many_searches(database):
    first = prepare(open_client(database, "bowl"))
    run(first, max_trials=3)
    other = open_client(database, "other")
    assert not other.is_configured
    result = compress(small_network(), pool(), db=database, max_trials=7, **SEARCH)
    again = compress(small_network(), pool(), db=database, max_trials=40, **SEARCH)
    assert again.certificate.holds
    assert len(again.trials) >= len(result.trials) == 7
    before, after = (r.trials["objective"].iloc[:7].tolist() for r in (result, again))
    assert before == after
    assert len(experiment_of(open_client(database, "bowl")).trials) == 3


def test_a_trial_that_was_running_is_taken_up(database):
    client = prepare(open_client(database, "bowl"))
    run(client, max_trials=2)
    (asked,) = client.get_next_trials(max_trials=1).items()
    loaded = open_client(database, "bowl")
    assert loaded.unfinished_trials() == dict([asked])
    loaded.complete_trial(asked[0], {"loss": (0.5, SEM)})
    assert open_client(database, "bowl").unfinished_trials() == {}
