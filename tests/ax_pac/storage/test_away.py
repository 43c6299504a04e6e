"""A database that is away, full or locked: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading

import pytest

from ax_pac import DatabaseFullError, DatabaseUnreachableError, open_client
from ax_pac.storage import database as databases
from tests.ax_pac.storage.test_client import prepare, result_of
from tests.helpers.ax_loops import SEM, experiment_of, run

sqlalchemy = pytest.importorskip("sqlalchemy")


class Wire:
    """A connection to a PostgreSQL server that can be cut.

    Args:
        host: Of the server.
        port: Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.is_cut = False
        self.cut_after: bytes | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for one in self._open:
            with one:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        self._open.clear()

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            server = socket.create_connection(self._server)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                arguments = (source, sink, source is client)
                threading.Thread(target=self._pass, args=arguments, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        try:
            while content := source.recv(65536):
                wanted = self.cut_after
                last = asks and wanted is not None and wanted in content.upper()
                sink.sendall(content)
                if last:
                    # The server does what it was asked, and nobody hears of it.
                    self.cut_after = None
                    sink.settimeout(5.0)
                    threading.Event().wait(0.2)
                    self.cut()
        except OSError:
            pass
        finally:
            for one in (source, sink):
                one.close()


@pytest.fixture
def wired():
    """The URL of an empty PostgreSQL database, directly and through a wire."""
    server = os.environ.get("AX_PAC_TEST_POSTGRES")
    if server is None:
        pytest.skip("needs a PostgreSQL server, whose URL AX_PAC_TEST_POSTGRES holds")
    url = sqlalchemy.make_url(server)
    engine = sqlalchemy.create_engine(
        url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    name = f"wire_{os.getpid()}"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name}"))
    direct = url.set(database=name)
    wire = Wire(url.host, url.port)
    through = direct.set(host="127.0.0.1", port=wire.port)
    try:
        yield (
            wire,
            direct.render_as_string(hide_password=False),
            through.render_as_string(hide_password=False),
        )
    finally:
        wire.close()
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"drop database {name} with (force)"))


def rows_of(url: str) -> int:
    """Rows of data in a database."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return connection.execute(
            sqlalchemy.text("select count(*) from data_v2")
        ).scalar_one()


def test_a_database_that_comes_back_has_everything_once(wired):
    wire, direct, through = wired
    client = prepare(open_client(through, "bowl"))
    run(client, max_trials=2)
    (index,) = client.get_next_trials(max_trials=1)
    wire.cut()
    threading.Timer(1.0, wire.mend).start()
    client.complete_trial(index, {"loss": (0.5, SEM)})
    assert result_of(direct)[index] == 0.5
    assert rows_of(direct) == 3
    run(client, max_trials=1)
    assert rows_of(direct) == 4
    client.release()


def test_a_database_that_stays_away_ends_in_an_error_and_loses_nothing(wired):
    wire, direct, through = wired
    client = prepare(open_client(through, "bowl", patience=0.3))
    (index,) = client.get_next_trials(max_trials=1)
    wire.cut()
    with pytest.raises(DatabaseUnreachableError, match="could not be reached for"):
        client.complete_trial(index, {"loss": (0.5, SEM)})
    assert result_of(direct) == {}
    wire.mend()
    (other,) = client.get_next_trials(max_trials=1)  # writes both
    stored = experiment_of(open_client(direct, "bowl")).trials
    assert [stored[i].status.name for i in (index, other)] == ["COMPLETED", "RUNNING"]
    client.complete_trial(other, {"loss": (0.4, SEM)})
    assert result_of(direct) == {index: 0.5, other: 0.4}
    client.release()


def test_a_commit_that_is_not_confirmed_is_not_made_again(wired):
    wire, direct, through = wired
    client = prepare(open_client(through, "bowl"))
    run(client, max_trials=1)
    wire.cut_after = b"COMMIT"
    threading.Timer(1.5, wire.mend).start()
    (index,) = client.get_next_trials(max_trials=1)
    assert wire.cut_after is None
    assert [*experiment_of(open_client(direct, "bowl")).trials] == [0, index]
    client.complete_trial(index, {"loss": (0.5, SEM)})
    assert result_of(direct)[index] == 0.5
    assert rows_of(direct) == 2
    client.release()


def test_a_locked_file_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "SQLITE_TIMEOUT", 0.05)
    client = prepare(open_client(tmp_path / "a.db", "bowl"))
    other = sqlite3.connect(tmp_path / "a.db", check_same_thread=False)
    other.execute("begin exclusive")
    threading.Timer(0.5, other.rollback).start()
    run(client, max_trials=1)
    other.close()
    assert len(result_of(tmp_path / "a.db")) == 1


def test_a_full_disk_is_named_and_leaves_the_database_as_it_was(tmp_path):
    path = tmp_path / "a.db"
    client = prepare(open_client(path, "bowl"))
    run(client, max_trials=3)
    engine = client._database.engine

    def full(connection, _record):
        # What SQLite does on a disk that has no room for another page.
        (pages,) = connection.execute("pragma page_count").fetchone()
        connection.execute(f"pragma max_page_count = {pages + 1}")

    sqlalchemy.event.listen(engine, "connect", full)
    engine.dispose()
    with pytest.raises(DatabaseFullError, match=r"no space left.*Nothing of this call"):
        run(client, max_trials=40)
    with sqlite3.connect(path) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    stored = experiment_of(open_client(path, "bowl")).trials
    here = experiment_of(client).trials
    assert 3 <= len(stored) <= len(here)
    sqlalchemy.event.remove(engine, "connect", full)
    engine.dispose()
    for index, parameters in client.unfinished_trials().items():
        assert parameters
        client.complete_trial(index, {"loss": (0.5, SEM)})
    run(client, max_trials=40)
    again = experiment_of(open_client(path, "bowl"))
    assert len(again.trials) == len(experiment_of(client).trials)
    assert [t.status for t in again.trials.values()] == [
        t.status for t in experiment_of(client).trials.values()
    ]
    assert again.lookup_data().df["trial_index"].is_unique


def test_a_file_that_is_gone_is_not_made_again(tmp_path):
    client = prepare(open_client(tmp_path / "a.db", "bowl"))
    (tmp_path / "a.db").rename(tmp_path / "b.db")
    client._database.engine.dispose()
    with pytest.raises(DatabaseUnreachableError, match=r"is gone.*put it back"):
        run(client, max_trials=1)
    assert not (tmp_path / "a.db").exists()
    (tmp_path / "b.db").rename(tmp_path / "a.db")
    run(client, max_trials=1)
    assert result_of(tmp_path / "a.db").keys() == {1}


def test_any_other_error_is_raised_at_once(tmp_path):
    client = prepare(open_client(tmp_path / "a.db", "bowl"))
    with client._database.engine.begin() as connection:
        connection.exec_driver_sql("drop table data_v2")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="no such table"):
        run(client, max_trials=1)
