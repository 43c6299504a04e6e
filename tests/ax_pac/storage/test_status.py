"""How searches in a database stand, read beside whoever writes them."""

from __future__ import annotations

import datetime
import os
import sqlite3
import stat

import pytest

from ax_pac import certificate_records, latest_certificate, open_client
from tests.ax_pac.storage.test_client import prepare
from tests.helpers.ax_loops import experiment_of, run

pytest.importorskip("sqlalchemy")
from ax_pac.storage.status import read_status, seconds_left


def test_states_of_a_search_from_its_start_to_its_certificate(database):
    client = prepare(open_client(database, "bowl"))
    run(client, max_trials=2)
    client.get_next_trials(max_trials=1)
    (status,) = read_status(database)
    assert (status.name, status.state) == ("bowl", "running")
    assert status.trials == {"COMPLETED": 2, "RUNNING": 1}
    assert f"process {os.getpid()} on " in str(status.held_by)
    assert status.failure_probability is status.best_mean is status.seconds_left is None
    client.release()
    (status,) = read_status(database)
    assert (status.state, status.held_by) == ("interrupted", None)
    for index in client.unfinished_trials():
        client.mark_trial_failed(index)
    client.release()
    (status,) = read_status(database)
    assert status.state == "stopped"
    run(client)
    client.release()
    (status,) = read_status(database)
    certificate = latest_certificate(client)
    assert certificate is not None
    assert status.state == "certified"
    assert status.failure_probability == certificate.failure_probability
    assert (status.epsilon, status.level) == (certificate.epsilon, certificate.level)
    records = certificate_records(experiment_of(client))
    assert status.history == [
        (record["num_trials"], record["failure_probability"]) for record in records
    ]
    assert status.best_mean == records[-1]["incumbent_mean"]
    assert status.trials["COMPLETED"] == len(experiment_of(client).trials) - 1
    assert status.to_dict()["name"] == "bowl"


def test_reading_writes_nothing_and_works_while_another_process_writes(tmp_path):
    client = prepare(open_client(tmp_path / "a ?%.db", "bowl"))
    run(client, max_trials=2)
    path = tmp_path / "a ?%.db"
    other = sqlite3.connect(path)
    other.execute("begin immediate")  # as a writer before its commit
    before = path.read_bytes()
    (status,) = read_status(path)
    assert status.trials == {"COMPLETED": 2}
    assert path.read_bytes() == before
    other.rollback()
    other.close()
    path.chmod(stat.S_IRUSR)
    assert read_status(path)[0].trials == {"COMPLETED": 2}
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


def test_what_is_no_database_of_searches_is_refused_and_not_made(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_status(tmp_path / "no.db")
    assert not (tmp_path / "no.db").exists()
    (tmp_path / "text.db").write_text("something else, long enough to be looked at" * 9)
    with pytest.raises(ValueError, match="cannot be read"):
        read_status(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(ValueError, match="holds no search"):
        read_status(tmp_path / "empty.db")
    with pytest.raises(ValueError, match="expected a path, or the URL"):
        read_status("nosuch://")


def test_a_database_from_before_there_were_leases_is_read(tmp_path):
    client = prepare(open_client(tmp_path / "a.db", "bowl"))
    run(client, max_trials=1)
    client.release()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("drop table ax_pac_leases")
    connection.close()
    (status,) = read_status(tmp_path / "a.db")
    assert (status.state, status.held_by) == ("stopped", None)


START = datetime.datetime(2026, 1, 1)


def minutes(number: int) -> list[datetime.datetime]:
    return [START + k * datetime.timedelta(minutes=1) for k in range(number)]


def test_the_guess_continues_the_trend():
    # Halved by each trial, from 0.16: two more to 0.04, three to 0.02.
    history = [(n, 0.16 * 2.0 ** (10 - n)) for n in range(5, 11)]
    assert seconds_left(history, 0.04, minutes(10)) == pytest.approx(120.0)
    assert seconds_left(history, 0.02, minutes(10)) == pytest.approx(180.0)
    # A break of a night between two trials changes nothing.
    late = [*minutes(9), START + datetime.timedelta(hours=9)]
    assert seconds_left(history, 0.04, late) == pytest.approx(120.0)


@pytest.mark.parametrize(
    ("history", "ended"),
    [
        ([], minutes(9)),
        ([(5, 0.5), (6, 0.4), (7, 0.3)], minutes(9)),  # too few
        ([(n, 0.5) for n in range(9)], minutes(9)),  # it does not fall
        ([(n, 0.1 + 0.01 * n) for n in range(9)], minutes(9)),  # it rises
        ([(n, 0.9999**n) for n in range(1, 9)], minutes(9)),  # too slowly
        ([(8, 0.5**n) for n in range(9)], minutes(9)),  # all of the same data
        ([(n, 0.5**n) for n in range(1, 9)], minutes(1)),
    ],
)
def test_no_trend_is_no_guess(history, ended):
    assert seconds_left(history, 0.001, ended) is None
