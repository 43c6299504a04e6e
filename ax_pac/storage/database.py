"""A database for Ax experiments: its tables, its transactions, exact numbers."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pandas as pd
import sqlalchemy
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.core.generator_run import GeneratorRun
from ax.core.metric import Metric
from ax.core.trial import Trial
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.storage.metric_registry import CORE_METRIC_REGISTRY
from ax.storage.registry_bundle import RegistryBundle
from ax.storage.runner_registry import CORE_RUNNER_REGISTRY
from ax.storage.sqa_store import db
from ax.storage.sqa_store.decoder import Decoder
from ax.storage.sqa_store.encoder import Encoder
from ax.storage.sqa_store.json import (
    JSONEncodedLongText,
    JSONEncodedMediumText,
    JSONEncodedText,
)
from ax.storage.sqa_store.save import (
    _bulk_merge_into_session,
    _save_experiment,
    _save_generation_strategy,
    _update_generation_strategy,
    update_properties_on_experiment,
)
from ax.storage.sqa_store.sqa_classes import (
    SQAData,
    SQAExperiment,
    SQAGeneratorRun,
    SQATrial,
)
from ax.storage.sqa_store.sqa_enum import IntEnum, StringEnum
from ax.utils.common.base import Base
from sqlalchemy.orm import scoped_session, sessionmaker

from ax_pac.ax_internals import new_runs, properties
from ax_pac.storage.errors import DatabaseFullError, DatabaseUnreachableError
from ax_pac.storage.lease import LEASES, is_gone, sqlite_file

# Ax leaves open whether statements with these types may be cached, so that SQLAlchemy
# warns and does not cache them. Nor should it: all enumerations would share one entry.
for _type in (
    *(JSONEncodedText, JSONEncodedMediumText, JSONEncodedLongText),
    *(IntEnum, StringEnum),
):
    _type.cache_ok = False


# The property of an experiment that says who wrote it last. A stored name.
LAST_WRITE = "ax_pac_last_write"

_SQLITE_HEADER = b"SQLite format 3\x00"

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

# Seconds for which SQLite waits for another process to end its transaction.
SQLITE_TIMEOUT = 60.0

# What SQLite says of a disk that is full, and of one that may come back. PostgreSQL has
# codes: 53100 is a full disk.
_FULL = ("disk is full", "no space left")
_AWAY = ("locked", "busy", "disk i/o error", "unable to open database file")

# Columns of a trial that are set when it is first saved.
_KEYS = ("id", "experiment_id")


class ExactEncoder(Encoder):
    """Ax's encoder, with observations as they were reported.

    Ax writes ten decimals, so that a mean of 1e-7 keeps three digits.
    """

    def data_to_sqa(self, data: Data, trial_index: int | None, timestamp: int) -> Any:
        """Encode observations; see Ax."""
        columns = {
            str(name): {str(i): _plain(value) for i, value in enumerate(values)}
            for name, values in data.full_df.items()
        }
        return SQAData(
            data_json=json.dumps(columns),
            time_created=timestamp,
            trial_index=trial_index,
        )

    def get_metric_type_and_properties(self, metric: Metric) -> Any:
        """Encode a metric; one that fetches its values, by its name.

        Ax refuses a class that it does not know. How such a metric fetches is code, and
        is given again by the process that goes on (`configure_metrics`).
        """
        if type(metric) not in self.config.metric_registry:
            metric = Metric(metric.name, lower_is_better=metric.lower_is_better)
        return super().get_metric_type_and_properties(metric)


class ExactDecoder(Decoder):
    """Ax's decoder, which reads what `ExactEncoder` wrote exactly, and in its order."""

    def experiment_from_sqa(
        self, experiment_sqa: Any, *arguments: Any, **options: Any
    ) -> Any:
        """Decode an experiment, its rows in the order in which they were written.

        Ax asks for no order. SQLite happens to give that of writing; PostgreSQL moves a
        row that is updated, and with trials or parameters in another order the next
        proposal would be another one.
        """
        _sort_rows(experiment_sqa)
        return super().experiment_from_sqa(experiment_sqa, *arguments, **options)

    def data_from_sqa(self, data_sqa: Any) -> Data:
        """Decode observations; see Ax."""
        columns = json.loads(data_sqa.data_json)
        frame = pd.DataFrame(
            {name: list(rows.values()) for name, rows in columns.items()}
        )
        numbers = [name for name in ("mean", "sem") if name in frame]
        data = Data(df=frame.astype(dict.fromkeys(numbers, float)))
        data.db_id = data_sqa.id
        return data


class ExactBundle(RegistryBundle):
    """Ax's storage registries with the exact encoder and decoder."""

    def __init__(self) -> None:
        super().__init__(
            metric_clss=dict(CORE_METRIC_REGISTRY),
            runner_clss=dict(CORE_RUNNER_REGISTRY),
        )
        self._encoder = ExactEncoder(self._sqa_config)
        self._decoder = ExactDecoder(self._sqa_config)


def _sort_rows(row: Any) -> None:
    """Sort what belongs to a row by its key, and what belongs to that."""
    state = sqlalchemy.inspect(row)
    for relation in state.mapper.relationships:
        if relation.key in state.unloaded or not relation.uselist:
            continue
        rows = getattr(row, relation.key)
        rows.sort(key=lambda each: each.id)
        for each in rows:
            _sort_rows(each)


def _plain(value: Any) -> Any:
    """Turn a NumPy number into Python's, to the last bit; NaN into null, as Ax does."""
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


class Database:
    """Tables of Ax in one database, and transactions in it.

    Ax keeps one database per process, the first that was used; here each call is
    explicit about its database.

    Args:
        url: An SQLAlchemy URL. Missing tables are made.
        patience: Seconds for which a write is tried again while the database cannot be
            reached.

    Raises:
        ValueError: When the URL cannot be read, its driver is not installed, or the
            database cannot be opened.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._patience = patience
        try:
            self.engine = sqlalchemy.create_engine(url, **_engine_options(url))
        except sqlalchemy.exc.ArgumentError as error:
            raise ValueError(
                "expected a database as a URL, such as sqlite:///search.db or "
                f"postgresql+psycopg://user@host/name; SQLAlchemy's error: {error}"
            ) from error
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the database's driver {error.name!r} is not installed: install the "
                f"package that brings it (pip install {error.name}), or use a file, "
                "sqlite:///search.db"
            ) from error
        _refuse_other_files(self.engine.url)
        # Pooled connections end with the client, not when they are found lying about.
        weakref.finalize(self, self.engine.dispose)
        self.name = self.engine.url.render_as_string(hide_password=True)
        try:
            _make_tables(self.engine)
        except sqlalchemy.exc.DatabaseError as error:
            raise ValueError(
                f"the database {self.name} cannot be opened: {error.orig}. Check that "
                "its folder or server exists, that it is a database, and that you may "
                "write to it"
            ) from error

    @contextlib.contextmanager
    def sessions(self) -> Iterator[None]:
        """Make Ax's functions use this database."""
        with _sessions_on(self.engine):
            yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlalchemy.Connection]:
        """The same, everything that is written being one transaction."""
        with self.engine.begin() as connection, _sessions_on(connection):
            yield connection

    def write(
        self,
        write: Callable[[sqlalchemy.Connection], _Result],
        undo: Callable[[], None],
    ) -> _Result:
        """Write within one transaction, again for as long as the database is away.

        Pauses between two attempts grow from a tenth of a second to five.

        Args:
            write: Writes; it may be called several times.
            undo: Called after each attempt that failed.

        Raises:
            DatabaseFullError: When there is no space left.
            DatabaseUnreachableError: When the patience is over.
        """
        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                if is_gone(self.engine.url):
                    raise DatabaseUnreachableError(
                        f"the file of the database {self.name} is gone. Nothing was "
                        "written; put it back, and call again"
                    )
                with self.transaction() as connection:
                    return write(connection)
            except sqlalchemy.exc.DBAPIError as error:
                undo()
                self._refuse_to_wait(error, time.monotonic() - began)
                _logger.warning(
                    "the database %s is away (%s), trying again", self.name, error.orig
                )
            except BaseException:
                undo()
                raise
            time.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE)

    def _refuse_to_wait(self, error: sqlalchemy.exc.DBAPIError, seconds: float) -> None:
        """Raise unless it is of use to try again."""
        if _is_full(error):
            raise DatabaseFullError(
                f"there is no space left for the database {self.name}: {error.orig}. "
                "Nothing of this call was written, and the database is as it was "
                "before. Make space, and call again or start the search again"
            ) from error
        if not _is_away(error, self.engine.dialect.name):
            raise error
        if seconds >= self._patience:
            raise DatabaseUnreachableError(
                f"the database {self.name} could not be reached for {seconds:.1f} s: "
                f"{error.orig}. Nothing of this call was written. Once it is back, "
                "call again or start the search again"
            ) from error

    def names(self) -> list[str]:
        """Return the names of the experiments in this database, sorted."""
        with self.engine.connect() as connection:
            rows = connection.execute(sqlalchemy.select(SQAExperiment.name))
            return sorted(str(name) for (name,) in rows)


def _engine_options(url: str) -> dict[str, Any]:
    """Return what an engine is made with: how long SQLite waits for a lock."""
    if sqlalchemy.make_url(url).get_backend_name() != "sqlite":
        return {}
    return {"connect_args": {"timeout": SQLITE_TIMEOUT}}


def _make_tables(engine: sqlalchemy.Engine) -> None:
    """Make missing tables; another process may be making them at the same time."""
    for attempt in range(3):
        try:
            unlimited_tables().create_all(engine)
            LEASES.metadata.create_all(engine)
        except sqlalchemy.exc.DatabaseError as error:
            # PostgreSQL: the type of a table that is being made is there twice.
            is_race = any(
                words in str(error.orig) for words in ("already exists", "duplicate")
            )
            if attempt == 2 or not is_race:
                raise
            time.sleep(_FIRST_PAUSE)
        else:
            return


def _is_full(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Whether a database has no space left."""
    if getattr(error.orig, "sqlstate", None) == "53100":
        return True
    return any(words in str(error.orig).lower() for words in _FULL)


def _is_away(error: sqlalchemy.exc.DBAPIError, dialect: str) -> bool:
    """Whether a database may be there again in a while."""
    if dialect == "sqlite":
        return any(words in str(error.orig).lower() for words in _AWAY)
    return error.connection_invalidated or isinstance(
        error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError
    )


def _refuse_other_files(url: sqlalchemy.URL) -> None:
    """Refuse a file that is no SQLite database; SQLite overwrites a short one.

    Raises:
        ValueError: When there is a file with something else in it.
    """
    name = url.database or ""
    if url.get_backend_name() != "sqlite" or name in ("", ":memory:"):
        return
    path = sqlite_file(url)
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_HEADER))
    if start not in (b"", _SQLITE_HEADER):
        raise ValueError(
            f"the database {path} cannot be opened: the file is not a database, it "
            f"begins with {start!r}. Nothing was written. Give a path where there is "
            "nothing yet, or that of an SQLite database"
        )


def without_ids(*roots: Any) -> list[tuple[Base, str]]:
    """Return what of Ax's objects has no id in the database yet.

    A transaction that fails leaves the ids that it gave, so that the next one would
    update rows that are not there.

    Args:
        roots: Objects that are about to be saved.

    Returns:
        Objects, each with the name of its attribute for the id.
    """
    found: list[tuple[Base, str]] = []
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            todo += value
        elif isinstance(value, Base):
            names = {"_db_id", *(n for n in vars(value) if n.endswith("_db_id"))}
            found += [(value, n) for n in names if getattr(value, n, None) is None]
            todo += [v for n, v in vars(value).items() if n not in _NOT_SAVED_WITH]
    return found


# What an object refers to that is not saved with it.
_NOT_SAVED_WITH = ("_experiment", "_runner", "_nodes", "_curr", "_steps")


Stamp = dict[str, Any]
"""Who wrote an experiment last, and when; each one is different."""


def stamp_of(experiment: Experiment) -> Stamp | None:
    """Return who wrote an experiment last, as it was when it was read."""
    stamp = properties(experiment).get(LAST_WRITE)
    return None if stamp is None else dict(stamp)


def new_stamp(last: Stamp | None) -> Stamp:
    """Return the stamp of a write that is made now, by this process."""
    return {
        "number": 1 if last is None else int(last["number"]) + 1,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    }


def stored_stamp(
    connection: sqlalchemy.Connection, experiment: Experiment
) -> Stamp | None:
    """Return who wrote an experiment last, as it is now, and keep others from writing.

    Call it within the transaction that writes.

    Args:
        connection: In a transaction.
        experiment: The experiment, saved before or not.

    Returns:
        None where nobody has written it; an empty stamp where it was written by someone
        who left none, or is gone.
    """
    table = SQAExperiment.__table__
    expected: Stamp | None
    if experiment.db_id is None:
        row = table.c.name == experiment.name
        expected = None
    else:
        row = table.c.id == experiment.db_id
        expected = {}
        # What takes the lock: SQLite would let another one write after a mere read.
        connection.execute(table.update().where(row).values(name=table.c.name))
    found = connection.execute(sqlalchemy.select(table.c.properties).where(row)).first()
    if found is None:
        return expected
    stamp = (found[0] or {}).get(LAST_WRITE)
    if stamp is None:
        return None if experiment.db_id is not None else {}
    return dict(stamp)


def unlimited_tables() -> sqlalchemy.MetaData:
    """Return Ax's tables without their limits on the length of text.

    SQLite enforces none. PostgreSQL refuses the largest of them, and a strategy with
    the bins of a hundred layers is longer than the 4,096 characters that Ax gives it.
    """
    tables = sqlalchemy.MetaData()
    for table in db.Base.metadata.tables.values():
        for column in table.to_metadata(tables).columns:
            kind = getattr(column.type, "impl_instance", column.type)
            if isinstance(kind, sqlalchemy.String):
                column.type = sqlalchemy.Text()
    return tables


@contextlib.contextmanager
def _sessions_on(bind: Any) -> Iterator[None]:
    """Replace Ax's one session factory of the process, as its `session_context` does.

    A session on a connection that is in a transaction leaves the commit to it.
    """
    before = db.SESSION_FACTORY
    factory = scoped_session(sessionmaker(bind=bind, expire_on_commit=False))
    db.SESSION_FACTORY = factory
    try:
        yield
    finally:
        factory.remove()
        db.SESSION_FACTORY = before


def save_changes(
    experiment: Experiment,
    bundle: ExactBundle,
    *,
    whole: bool,
    strategy: GenerationStrategy | None,
    trials: Sequence[int],
) -> None:
    """Write what changed, with Ax's own functions; call it within a transaction.

    Args:
        experiment: Saved before, unless `whole`.
        bundle: How to write.
        whole: Whether all of the experiment is to be written.
        strategy: The strategy, if it changed.
        trials: Indices of trials that changed.
    """
    encoder, decoder = bundle.encoder, bundle.decoder
    unsaved = [] if strategy is None else new_runs(strategy)
    if whole:
        runner, experiment.runner = experiment.runner, None  # is code, see the client
        try:
            _save_experiment(experiment, encoder=encoder, decoder=decoder)
        finally:
            experiment.runner = runner
    else:
        update_properties_on_experiment(experiment, config=bundle.sqa_config)
        if trials:
            _save_trials(experiment, encoder, decoder, trials)
    if strategy is not None and strategy.db_id is None:
        _save_generation_strategy(strategy, encoder=encoder, decoder=decoder)
    elif strategy is not None:
        _update_strategy(strategy, unsaved, encoder, decoder)


def _update_strategy(
    strategy: GenerationStrategy,
    unsaved: Sequence[GeneratorRun],
    encoder: Encoder,
    decoder: Decoder,
) -> None:
    """Write where a strategy stands; runs that its trials brought are only linked."""
    linked = [run.db_id for run in unsaved if run.db_id is not None]
    others = [run for run in unsaved if run.db_id is None]
    _update_generation_strategy(strategy, others, encoder=encoder, decoder=decoder)
    if linked:
        with db.session_scope() as session:
            session.query(SQAGeneratorRun).filter(
                SQAGeneratorRun.id.in_(linked)
            ).update({"generation_strategy_id": strategy.db_id})


def _save_trials(
    experiment: Experiment, encoder: Encoder, decoder: Decoder, trials: Sequence[int]
) -> None:
    """Write trials and their observations, as Ax's `save_or_update_trials` does.

    Ax's function also formats all observations for an error message that it does not
    raise, which takes longer than everything else.
    """

    def of_experiment(row: Any) -> Any:
        row.experiment_id = experiment.db_id
        return row

    changed = [experiment.trials[index] for index in trials]
    known = [t for t in changed if t.db_id is not None and isinstance(t, Trial)]
    others = [trial for trial in changed if trial not in known]
    _bulk_merge_into_session(
        objs=others,
        encode_func=encoder.trial_to_sqa,
        decode_func=decoder.trial_from_sqa,
        decode_args_list=[{"experiment": experiment} for _ in others],
        modify_sqa=lambda sqa: of_experiment(sqa),
    )
    with db.session_scope() as session:
        for trial in known:
            row = encoder.trial_to_sqa(trial)
            columns = sqlalchemy.inspect(SQATrial).column_attrs.keys()
            values = {k: getattr(row, k) for k in columns if k not in _KEYS}
            session.query(SQATrial).filter_by(id=trial.db_id).update(values)
    with db.session_scope() as session:
        session.query(SQAData).filter_by(experiment_id=experiment.db_id).filter(
            SQAData.trial_index.in_(trials)
        ).delete()
        for index in trials:
            data = experiment.lookup_data(trial_indices={index})
            if not data.full_df.empty:
                row = encoder.data_to_sqa(data, trial_index=index, timestamp=0)
                session.add(of_experiment(row))
