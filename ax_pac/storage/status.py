"""How the searches in a database stand, read beside whoever writes them."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import sqlite3
import statistics
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy
from ax.core.trial_status import TrialStatus
from ax.storage.sqa_store.sqa_classes import SQAExperiment, SQATrial

from ax_pac.experiment.records import PROPERTY
from ax_pac.storage.client import database_url
from ax_pac.storage.database import SQLITE_TIMEOUT
from ax_pac.storage.lease import LEASES, described, is_over, now, sqlite_file

State = Literal["running", "certified", "interrupted", "stopped"]

# Certificates that the trend is read from, and how many it takes.
_TREND, _FEWEST = 10, 4
# A trend that takes this many times as long as the search so far is none.
_FARTHEST: Final = 5.0


@dataclasses.dataclass(frozen=True)
class SearchStatus:
    """How one search stands.

    Args:
        name: Of the search.
        state: `running`, a process is at work; `certified`; `interrupted`, trials were
            running when their process ended; or `stopped`, without a certificate.
        held_by: Which process is at work, and since when; None if none is.
        trials: Number of trials by status, such as `{"COMPLETED": 12}`.
        best_mean: Posterior mean of the objective at the incumbent. Objective units.
            None before the first certificate.
        best_sd: Its standard deviation.
        best_trial: Arm of the incumbent.
        level: Of the certificate; None before the first.
        delta: Its tolerance.
        epsilon: Its allowed failure probability.
        failure_probability: Of the latest certificate.
        reason: Why it holds or does not.
        history: Trials and failure probability of every certificate, oldest first.
        means: Trials, posterior mean and standard deviation at the incumbent, of every
            certificate.
        seconds_left: A guess: how long it takes until the certificate holds, if the
            failure probability goes on falling as in the last certificates and trials
            take as long as the last ones. None where there is no such trend.
        last_change: When a trial last began or ended, local time in ISO form.
    """

    name: str
    state: State
    held_by: str | None
    trials: dict[str, int]
    best_mean: float | None
    best_sd: float | None
    best_trial: str | None
    level: str | None
    delta: float | None
    epsilon: float | None
    failure_probability: float | None
    reason: str | None
    history: list[tuple[int, float]]
    means: list[tuple[int, float, float]]
    seconds_left: float | None
    last_change: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the status as plain JSON values."""
        return dataclasses.asdict(self)


def read_status(db: str | Path) -> list[SearchStatus]:
    """Read how the searches in a database stand. Nothing is written.

    Whoever writes a search meanwhile is not disturbed, nor waited for.

    Args:
        db: A path or a URL, see `database_url`.

    Returns:
        One status per search, by name.

    Raises:
        ValueError: when there is no such database, or no search in it.
    """
    engine = _reading_engine(db)
    where = shown_name(db)
    try:
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(connection).get_table_names()
            if SQAExperiment.__tablename__ not in tables:
                raise ValueError(
                    f"the database {where} holds no search: expected one that ax-pac "
                    "or Ax wrote"
                )
            time = now(connection)
            leases = {}
            if LEASES.name in tables:
                rows = connection.execute(sqlalchemy.select(LEASES)).mappings()
                leases = {row["name"]: row for row in rows}
            held = {
                name: described(row, time)
                for name, row in leases.items()
                if not is_over(row, time)
            }
            table = SQAExperiment.__table__
            columns = (table.c.id, table.c.name, table.c.properties)
            found = connection.execute(sqlalchemy.select(*columns)).all()
            return [
                _status(connection, key, name, properties or {}, held.get(name))
                for key, name, properties in sorted(found, key=lambda row: str(row[1]))
            ]
    except sqlalchemy.exc.DBAPIError as error:
        raise ValueError(
            f"the database {where} cannot be read: {error.orig}. Expected one that "
            "ax-pac or Ax wrote"
        ) from error
    finally:
        engine.dispose()


def shown_name(db: str | Path) -> str:
    """Return a path or a URL as it may be shown: without its password.

    Args:
        db: See `database_url`.

    Raises:
        ValueError: when it is not a URL that can be read.
    """
    return str(db) if "://" not in str(db) else _url(db).render_as_string()


def _url(db: str | Path) -> sqlalchemy.URL:
    try:
        url = sqlalchemy.make_url(database_url(db))
        url.get_dialect()
    except sqlalchemy.exc.ArgumentError as error:
        raise ValueError(
            "expected a path, or the URL of a database such as "
            f"postgresql+psycopg://user@host/name; SQLAlchemy's error: {error}"
        ) from error
    return url


def _reading_engine(db: str | Path) -> sqlalchemy.Engine:
    """Return an engine that makes no file.

    SQLite is opened for writing, which nobody does: a reader has to take back what a
    process that was killed left half written.
    """
    url = _url(db)
    if url.get_backend_name() != "sqlite":
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    path = sqlite_file(url)
    if not path.is_file():
        raise ValueError(f"expected a database, but there is no file {path}")
    where = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=rw"
    return sqlalchemy.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(where, uri=True, timeout=SQLITE_TIMEOUT),
        poolclass=sqlalchemy.NullPool,
    )


def _status(
    connection: sqlalchemy.Connection,
    key: int,
    name: str,
    properties: dict[str, Any],
    held_by: str | None,
) -> SearchStatus:
    """Read one search."""
    table = SQATrial.__table__
    rows = connection.execute(
        sqlalchemy.select(
            table.c.status,
            table.c.time_created,
            table.c.time_run_started,
            table.c.time_completed,
        ).where(table.c.experiment_id == key)
    ).all()
    trials = Counter(TrialStatus(row.status).name for row in rows)
    ended = sorted(row.time_completed for row in rows if row.time_completed)
    times = [*ended, *(r.time_run_started or r.time_created for r in rows)]
    records = list(properties.get(PROPERTY, []))
    last = records[-1] if records else {}
    state: State = "stopped"
    if held_by is not None:
        state = "running"
    elif last.get("holds"):
        state = "certified"
    elif trials["RUNNING"]:
        state = "interrupted"
    history = [(r["num_trials"], float(r["failure_probability"])) for r in records]
    left = None
    if state != "certified" and last and not last.get("holds"):
        left = seconds_left(history, float(last["epsilon"]), ended)
    return SearchStatus(
        name=name,
        state=state,
        held_by=held_by,
        trials=dict(trials),
        best_mean=last.get("incumbent_mean"),
        best_sd=last.get("incumbent_sd"),
        best_trial=last.get("incumbent_arm"),
        level=last.get("level"),
        delta=last.get("delta"),
        epsilon=last.get("epsilon"),
        failure_probability=last.get("failure_probability"),
        reason=last.get("reason"),
        history=history,
        means=[
            (r["num_trials"], float(r["incumbent_mean"]), float(r["incumbent_sd"]))
            for r in records
            if r.get("incumbent_mean") is not None
        ],
        seconds_left=left,
        last_change=max(times).isoformat(timespec="seconds") if times else None,
    )


def seconds_left(
    history: Sequence[tuple[int, float]],
    epsilon: float,
    ended: Sequence[datetime.datetime],
) -> float | None:
    """Guess when a certificate will hold, by the trend of its failure probability.

    A straight line through the logarithm of the last ten failure probabilities gives
    the trials that are left; the median time between the ends of the last ten trials
    gives their duration. Failure probabilities fall by chance and in steps, so this is
    a guess, and no more.

    Args:
        history: Trials and failure probability of every certificate, oldest first.
        epsilon: Allowed failure probability.
        ended: When the trials ended, in order.

    Returns:
        Seconds; None where the probability does not fall, or would take more than five
        times the trials so far.

    Example:
        >>> minute = datetime.timedelta(minutes=1)
        >>> ended = [datetime.datetime(2026, 1, 1) + k * minute for k in range(9)]
        >>> round(seconds_left([(5, 0.8), (6, 0.4), (7, 0.2), (8, 0.1)], 0.05, ended))
        60
    """
    last = [(n, math.log(p)) for n, p in history[-_TREND:] if p > 0.0]
    if len(last) < _FEWEST or len(ended) < 2 or len({n for n, _ in last}) < 2:
        return None
    slope, start = statistics.linear_regression(*zip(*last, strict=True))
    if slope >= 0.0:
        return None
    here = last[-1][0]
    trials = max(1.0, (math.log(epsilon) - start) / slope - here)
    if trials > _FARTHEST * here:
        return None
    recent = list(ended)[-_TREND - 1 :]
    pauses = [
        (after - before).total_seconds() for before, after in itertools.pairwise(recent)
    ]
    return trials * statistics.median(pauses)
