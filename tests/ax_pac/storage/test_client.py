"""A client in a database: round trips in new processes, exact, atomic, separate."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig, StorageConfig
from ax.api.protocols import IMetric, IRunner
from ax.core.trial_status import TrialStatus

from ax_pac import (
    SearchChangedError,
    StoredClient,
    certificate_records,
    certify_experiment,
    latest_certificate,
    open_client,
    pac_generation_strategy,
)
from ax_pac.storage.client import database_url
from tests.helpers.ax_loops import (
    SEM,
    SETTINGS,
    experiment_of,
    new_client,
    run,
    squared_distance,
)

pytest.importorskip("sqlalchemy")
logging.getLogger("ax.storage.sqa_store.with_db_settings_base").setLevel(logging.ERROR)

ROOT = Path(__file__).parents[3]
EDGES = {"x0": [0.0, 0.1, 0.3, 0.6, 1.0], "x1": [0.0, 0.25, 0.5, 0.75, 1.0]}

CONTINUE = """
import json, sys
import ax_pac
from ax.api.client import Client
from ax.api.configs import StorageConfig
from tests.helpers.ax_loops import experiment_of, run

*databases, axs_own = sys.argv[1:]
clients = [ax_pac.open_client(path, "bowl") for path in databases]
storage = StorageConfig(url="sqlite:///" + axs_own)
clients.append(Client.load_from_database("bowl", storage_config=storage))
results = []
for client in clients:
    records = len(ax_pac.certificate_records(experiment_of(client)))
    proposals = run(client)
    certificate = ax_pac.latest_certificate(client).to_dict()
    results.append([proposals, certificate, records])
print(json.dumps(results))
"""


def prepare(client: Client, **settings: object) -> Client:
    """Set a client up as `tests.ax_loops.new_client` does."""
    client.configure_experiment(
        name="bowl",
        parameters=[
            RangeParameterConfig(name=f"x{i}", parameter_type="float", bounds=(0, 1))
            for i in range(2)
        ],
    )
    client.configure_optimization(objective="-loss")
    strategy = pac_generation_strategy(**{**SETTINGS, **settings})
    client.set_generation_strategy(strategy)
    return client


def new_process(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_searches_in_databases_continue_in_a_new_process(tmp_path, finished):
    """Ours, ours with cells, and one in Ax's own storage."""
    from ax_pac.storage.database import db

    settings = {"cells": EDGES, "noise": "raw"}
    with_cells = new_client(**settings)
    whole = [finished, (with_cells, run(with_cells)), finished]
    paths = [tmp_path / name for name in ("a.db", "b.db", "ax.db")]
    clients = [
        prepare(StoredClient(paths[0])),
        prepare(StoredClient(paths[1]), **settings),
    ]
    done = [run(client, max_trials=7) for client in clients]
    url = f"sqlite:///{paths[2]}"
    with db.session_context(url=url):
        db.create_all_tables(db.get_engine())
        clients.append(prepare(Client(storage_config=StorageConfig(url=url))))
        done.append(run(clients[2], max_trials=8))
    kept = [len(certificate_records(experiment_of(client))) for client in clients]
    for client in clients[:2]:
        client.release()  # this process still has them
    results = json.loads(new_process(CONTINUE, *paths))
    for (reference, expected), first, number, (rest, certificate, records) in zip(
        whole, done, kept, results, strict=True
    ):
        assert records == number > 0
        assert len(first + rest) == len(expected)
        for one, two in zip(first + rest, expected, strict=True):
            assert one == pytest.approx(two, abs=1e-6)
        assert certificate["holds"]
        for name in ("score", "failure_probability"):
            value = getattr(latest_certificate(reference), name)
            assert certificate[name] == pytest.approx(value, abs=1e-6)


def test_numbers_are_kept_to_the_last_bit(tmp_path):
    client = prepare(StoredClient(tmp_path / "a.db"))
    index = client.attach_trial({"x0": 0.1, "x1": 0.2})
    client.complete_trial(index, {"loss": (1.23456789e-11 / 3.0, 1e-13 / 7.0)})
    loaded = open_client(tmp_path / "a.db", "bowl")
    before, after = (
        experiment_of(c).lookup_data().df[["mean", "sem"]].to_numpy().tolist()
        for c in (client, loaded)
    )
    assert after == before


def test_two_databases_in_one_process_do_not_mix(tmp_path):
    first = prepare(StoredClient(tmp_path / "a.db"))
    second = prepare(StoredClient(tmp_path / "b.db"), delta=0.3)
    run(first, max_trials=3)
    run(second, max_trials=6)
    run(first, max_trials=2)
    certify_experiment(experiment_of(second), delta=0.2, epsilon=0.1)
    for name, trials, client in (("a.db", 5, first), ("b.db", 6, second)):
        experiment = experiment_of(open_client(tmp_path / name, "bowl"))
        assert len(experiment.trials) == trials
        records = certificate_records(experiment)
        assert len(records) == len(certificate_records(experiment_of(client)))


def test_a_trial_that_was_running_is_running_after_a_reload(tmp_path):
    client = prepare(StoredClient(tmp_path / "a.db"))
    run(client, max_trials=2)
    (asked,) = client.get_next_trials(max_trials=1).items()
    loaded = open_client(tmp_path / "a.db", "bowl")
    assert loaded.unfinished_trials() == dict([asked])
    loaded.complete_trial(asked[0], {"loss": (0.5, SEM)})
    assert open_client(tmp_path / "a.db", "bowl").unfinished_trials() == {}


def test_failures_and_their_reasons_survive(tmp_path):
    client = prepare(StoredClient(tmp_path / "a.db"))
    (index,) = client.get_next_trials(max_trials=1)
    client.mark_trial_failed(index, failed_reason="no memory " * 30)
    trial = experiment_of(open_client(tmp_path / "a.db", "bowl")).trials[index]
    assert trial.status == TrialStatus.FAILED
    assert trial.status_reason == "no memory " * 30


def test_nothing_of_a_call_that_fails_to_save_is_kept_or_forgotten(
    tmp_path, monkeypatch
):
    client = prepare(StoredClient(tmp_path / "a.db"))
    (index,) = client.get_next_trials(max_trials=1)
    from ax_pac.storage import database

    with monkeypatch.context() as patch:
        patch.setattr(database.db, "session_scope", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            client.complete_trial(index, {"loss": (0.5, SEM)})
    stored = experiment_of(open_client(tmp_path / "a.db", "bowl"))
    assert stored.trials[index].status == TrialStatus.RUNNING
    assert stored.lookup_data().df.empty
    client.get_next_trials(max_trials=1)  # the next call saves both
    stored = experiment_of(open_client(tmp_path / "a.db", "bowl"))
    assert stored.trials[index].status == TrialStatus.COMPLETED
    assert len(stored.lookup_data().df) == 1


def test_only_json_is_stored(tmp_path):
    """Nothing that is loaded from a database is unpickled."""
    run(prepare(StoredClient(tmp_path / "a.db")), max_trials=6)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        tables = connection.execute("select name from sqlite_master where type='table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f"select * from {table}"):
                assert not any(isinstance(value, bytes) for value in row)
    connection.close()


@pytest.mark.parametrize(
    ("db", "message"),
    [
        ("", "expected a path or the URL"),
        ("no-such-folder/a.db", r"sqlite:///no-such-folder/a.db cannot be opened"),
        ("nosuch://", "expected a database as a URL"),
        ("postgresql+nosuchdriver://u:secret@h/d", "expected a database as a URL"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused(
    db, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        StoredClient(db)
    assert "secret" not in str(refused.value)


def test_the_tables_of_postgresql_limit_no_text():
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    from ax_pac.storage.database import unlimited_tables

    tables = unlimited_tables().sorted_tables
    dialect = postgresql.dialect()
    made = "\n".join(str(CreateTable(t).compile(dialect=dialect)) for t in tables)
    assert "generation_strategy" in made
    assert "TEXT(" not in made
    assert "VARCHAR" not in made


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match="driver 'psycopg' is not installed"):
        StoredClient("postgresql+psycopg://user:secret@host/name")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "a.db").write_text("not a database, but long enough to be read" * 99)
    with pytest.raises(ValueError, match="file is not a database"):
        StoredClient(tmp_path / "a.db")


def test_without_sqlalchemy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ax_pac.storage.database", None)
    with pytest.raises(ImportError, match=r"ax-pac\[sql\]"):
        StoredClient("a.db")


def test_a_url_is_left_alone_and_a_path_becomes_one():
    assert database_url("postgresql://u@h/n") == "postgresql://u@h/n"
    assert database_url(Path("/x/y.db")) == "sqlite:////x/y.db"


def test_the_name_of_the_search_is_that_of_the_experiment(tmp_path):
    path = tmp_path / "a.db"
    x = RangeParameterConfig(name="x", parameter_type="float", bounds=(0, 1))
    client = open_client(path, "mine")
    with pytest.raises(ValueError, match=r"opened for the search 'mine'.*'other'"):
        client.configure_experiment([x], name="other")
    assert not client.is_configured
    client.configure_experiment([x])
    assert experiment_of(client).name == "mine"
    assert open_client(path, "mine").is_configured


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_search_in_a_database_needs_a_name(tmp_path, name):
    with pytest.raises(ValueError, match="expected the name of a search"):
        open_client(tmp_path / "a.db", name)
    x = RangeParameterConfig(name="x", parameter_type="float", bounds=(0, 1))
    with pytest.raises(ValueError, match=r"needs a name.*give name="):
        StoredClient(tmp_path / "a.db").configure_experiment([x], name=name)


@pytest.mark.parametrize("names", [("d?1.db", "d?2.db"), ("d#1.db", "d%231.db")])
def test_paths_that_differ_are_different_databases(tmp_path, names):
    for number, name in enumerate(names):
        client = prepare(open_client(tmp_path / name, "bowl"))
        run(client, max_trials=number + 1)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for number, name in enumerate(names):
        again = open_client(tmp_path / name, "bowl")
        assert len(experiment_of(again).trials) == number + 1


@pytest.mark.parametrize("content", [b"x", b"a,b\n1,2\n", b"PK\x03\x04" * 5000])
@pytest.mark.parametrize("name", ["a.db", "a?.db"])
def test_another_file_is_left_as_it_is(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for db in (path, database_url(path)):
        with pytest.raises(ValueError, match=r"not a database.*Nothing was written"):
            open_client(db, "bowl")
    assert path.read_bytes() == content


def test_an_empty_file_is_a_new_database(tmp_path):
    (tmp_path / "a.db").touch()
    prepare(open_client(tmp_path / "a.db", "bowl"))
    assert open_client(tmp_path / "a.db", "bowl").is_configured


class Bowl(IRunner):
    """Evaluates at once, and remembers which trials it was asked to run."""

    def __init__(self, ran: list[int]) -> None:
        self.ran, self.values = ran, {}

    def run_trial(self, trial_index, parameterization):
        self.ran.append(trial_index)
        self.values[trial_index] = squared_distance(parameterization, trial_index)
        return {"value": self.values[trial_index]}

    def poll_trial(self, trial_index, trial_metadata):
        self.values.setdefault(trial_index, trial_metadata.get("value"))
        return TrialStatus.COMPLETED

    def stop_trial(self, trial_index, trial_metadata):
        return {}


class BowlLoss(IMetric):
    """What a `Bowl` evaluated."""

    def __init__(self, name: str, runner: Bowl) -> None:
        super().__init__(name=name)
        self.runner = runner

    def fetch(self, trial_index, trial_metadata):
        return 0, (self.runner.values[trial_index], SEM)


def with_runner(client: StoredClient) -> list[int]:
    ran: list[int] = []
    runner = Bowl(ran)
    client.configure_runner(runner)
    client.configure_metrics([BowlLoss("loss", runner)])
    return ran


def test_run_trials_saves_each_trial_before_it_runs_and_goes_on(database, monkeypatch):
    client = prepare(open_client(database, "bowl"))
    ran, stored = with_runner(client), []

    def run_trial(runner, trial_index, parameterization):
        found = experiment_of(open_client(database, "bowl")).trials
        stored.append(found[trial_index].status.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return original(runner, trial_index, parameterization)

    original = Bowl.run_trial
    monkeypatch.setattr(Bowl, "run_trial", run_trial)
    with pytest.raises(KeyboardInterrupt):
        client.run_trials(max_trials=40, initial_seconds_between_polls=0)
    assert stored == ["RUNNING"] * 4
    monkeypatch.setattr(Bowl, "run_trial", original)
    again = open_client(database, "bowl")
    assert len(result_of(database)) == 3
    with pytest.raises(ValueError, match="configure_runner and configure_metrics"):
        again.run_trials(max_trials=1)
    ran = with_runner(again)
    (left,) = again.unfinished_trials()
    experiment_of(again).trials[left].update_run_metadata({"value": 0.5})
    again.run_trials(max_trials=40, initial_seconds_between_polls=0)
    certificate = latest_certificate(open_client(database, "bowl"))
    assert certificate is not None
    assert certificate.holds
    results = result_of(database)
    assert results[left] == 0.5  # polled, not run
    assert left not in ran
    assert sorted(results) == [*range(len(results))]


def result_of(database: str) -> dict[int, float]:
    data = experiment_of(open_client(database, "bowl")).lookup_data().df
    return dict(zip(data["trial_index"], data["mean"], strict=True))


def test_a_second_client_cannot_overwrite_what_the_first_one_wrote(database):
    prepare(open_client(database, "bowl"))
    first, second = (open_client(database, "bowl") for _ in range(2))
    run(first, max_trials=2)
    written = result_of(database)
    for write in (
        lambda: second.get_next_trials(max_trials=1),
        lambda: second.attach_trial({"x0": 0.5, "x1": 0.5}),
    ):
        with pytest.raises(SearchChangedError, match=r"'bowl'.*process \d+ on "):
            write()
    assert result_of(database) == written
    assert len(experiment_of(second).trials) >= 0  # it still reads
    run(first, max_trials=1)  # which the other one did not disturb
    third = open_client(database, "bowl")
    run(third, max_trials=1)
    assert len(result_of(database)) == 4
    with pytest.raises(SearchChangedError, match="open_client"):
        run(first, max_trials=1)


def test_a_second_client_cannot_begin_a_search_of_the_same_name(database):
    first, second = (open_client(database, "bowl") for _ in range(2))
    prepare(first)
    run(first, max_trials=1)
    with pytest.raises(SearchChangedError, match="another client"):
        prepare(second)
    with pytest.raises(SearchChangedError, match="another client"):
        prepare(StoredClient(database))
    assert len(result_of(database)) == 1


def test_a_search_without_a_stamp_goes_on(database):
    """As version 0.1 wrote it."""
    client = prepare(open_client(database, "bowl"))
    run(client, max_trials=1)
    engine = client._database.engine
    with engine.begin() as connection:
        connection.exec_driver_sql("update experiment_v2 set properties = '{}'")
    again = open_client(database, "bowl")
    run(again, max_trials=1)
    assert len(result_of(database)) == 2
    with pytest.raises(SearchChangedError):
        run(client, max_trials=1)


def test_a_search_that_is_gone_is_not_written(tmp_path):
    client = prepare(open_client(tmp_path / "a.db", "bowl"))
    with client._database.engine.begin() as connection:
        connection.exec_driver_sql("delete from experiment_v2")
    with pytest.raises(SearchChangedError, match="was written by another client since"):
        run(client, max_trials=1)
