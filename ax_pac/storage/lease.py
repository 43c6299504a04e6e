"""Which process writes a search: a lease in the database, with a heartbeat."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import pathlib
import socket
import threading
import uuid
import weakref
from typing import Final

import sqlalchemy

from ax_pac.storage.errors import SearchHeldError

BEAT_SECONDS: Final = 10.0
"""Seconds between two heartbeats."""
EXPIRES_AFTER: Final = 90.0
"""Seconds without a heartbeat after which another process takes a search over."""

Row = sqlalchemy.RowMapping
"""A row of `LEASES`."""

_METADATA = sqlalchemy.MetaData()
LEASES: Final = sqlalchemy.Table(
    "ax_pac_leases",
    _METADATA,
    sqlalchemy.Column("name", sqlalchemy.Text, primary_key=True),
    sqlalchemy.Column("token", sqlalchemy.Text, nullable=False),
    sqlalchemy.Column("process", sqlalchemy.Integer, nullable=False),
    sqlalchemy.Column("host", sqlalchemy.Text, nullable=False),
    sqlalchemy.Column("machine", sqlalchemy.Text, nullable=False),
    sqlalchemy.Column("started", sqlalchemy.Text, nullable=False),
    sqlalchemy.Column("since", sqlalchemy.Float, nullable=False),
    sqlalchemy.Column("beat", sqlalchemy.Float, nullable=False),
)
"""One row per search that is held. Stored names: never renamed.

`since` and `beat` are seconds since 1970 by the clock of the database, so that the
clocks of two machines are never compared.
"""

_CLOCKS: Final = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process, as a lease names it.

    Args:
        token: Its own, drawn at random; never that of another process.
        process: Its id.
        host: Name of its machine, for people.
        machine: What processes that see each other's ids have in common; empty where
            that is not known.
        started: When the process started, by the machine: an id is given out again.
    """

    token: str
    process: int
    host: str
    machine: str
    started: str

    @classmethod
    def this_process(cls) -> Holder:
        """Return the process that asks; a fork is another one."""
        return _holder(os.getpid())


@functools.cache
def _holder(process: int) -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        process=process,
        host=socket.gethostname(),
        machine=_machine(),
        started=_started(process) or "",
    )


def _machine() -> str:
    """Name what processes that see each other have in common; empty if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {pathlib.Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str | None:
    """Return when a process of this machine started; None if there is none."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # After the name, which is in brackets and may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in ("Z", "X") else fields[18]


def now(connection: sqlalchemy.Connection) -> float:
    """Return seconds since 1970 by the clock of the database."""
    clock = _CLOCKS.get(connection.dialect.name)
    if clock is None:
        return datetime.datetime.now(datetime.UTC).timestamp()
    return float(connection.execute(sqlalchemy.text(f"select {clock}")).scalar_one())


def is_over(row: Row, time: float) -> bool:
    """Whether the process of a lease is dead, or has not been heard of for long.

    Args:
        row: Of `LEASES`.
        time: Of the database, now.
    """
    if time - float(row["beat"]) > EXPIRES_AFTER:
        return True
    own = Holder.this_process()
    if not own.machine or row["machine"] != own.machine:
        return False
    return _started(int(row["process"])) != row["started"]


def described(row: Row, time: float) -> str:
    """Say who holds a lease and since when."""
    since = datetime.datetime.fromtimestamp(float(row["since"]), datetime.UTC)
    ago = max(0.0, time - float(row["beat"]))
    return (
        f"process {row['process']} on {row['host']} since "
        f"{since.isoformat(sep=' ', timespec='seconds')}, last heard of {ago:.0f} s ago"
    )


class Lease:
    """This process's hold on one search, kept by a thread that sends heartbeats.

    Every client of the process that writes the search shares it; see `lease_on`. It
    ends with the last of them, or with the process.

    Args:
        engine: Of the database.
        name: Of the search.
    """

    def __init__(self, engine: sqlalchemy.Engine, name: str) -> None:
        # Connections of its own, each closed at once: the thread shares none with the
        # client, and none is left open when the client is gone.
        self._engine = sqlalchemy.create_engine(
            engine.url,
            poolclass=sqlalchemy.NullPool,
            connect_args={"timeout": 10.0} if engine.dialect.name == "sqlite" else {},
        )
        self._name = name
        self._stop: threading.Event | None = None
        self._process = 0

    def take(self, connection: sqlalchemy.Connection) -> None:
        """Take the search or keep it, in the transaction that writes it.

        Args:
            connection: In a transaction; the statement here is to be its first one,
                because it takes SQLite's lock.

        Raises:
            SearchHeldError: when another process holds the search.
        """
        holder = Holder.this_process()
        if _renewed(connection, self._name, holder.token):
            return
        time = now(connection)
        values = {**dataclasses.asdict(holder), "since": time, "beat": time}
        names = ", ".join(["name", *values])
        marks = ", ".join(f":{name}" for name in ["name", *values])
        if connection.execute(
            sqlalchemy.text(
                f"insert into {LEASES.name} ({names}) values ({marks}) "
                "on conflict (name) do nothing"
            ),
            {"name": self._name, **values},
        ).rowcount:
            return
        row = (
            connection.execute(
                sqlalchemy.select(LEASES).where(LEASES.c.name == self._name)
            )
            .mappings()
            .first()
        )
        if row is not None and is_over(row, time):
            over = _lease_of(self._name, row["token"])
            if connection.execute(
                LEASES.update().where(over).values(**values)
            ).rowcount:
                return
        raise SearchHeldError(self._held_by(row, time))

    def keep(self) -> None:
        """Send heartbeats from now on; call it once `take` has been committed."""
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        self._stop = stop = threading.Event()
        own = weakref.ref(self)
        threading.Thread(
            target=_beat, args=(own, stop), name=f"lease on {self._name}", daemon=True
        ).start()
        weakref.finalize(
            self, _end, stop, self._engine, self._name, Holder.this_process()
        )

    def release(self) -> None:
        """Let others take the search; the next write takes it again."""
        if self._process == os.getpid() and self._stop is not None:
            self._process = 0
            _end(self._stop, self._engine, self._name, Holder.this_process())

    def beat(self) -> None:
        """Say that this process is alive. What goes wrong is left to the next write."""
        with (
            contextlib.suppress(sqlalchemy.exc.SQLAlchemyError),
            self._engine.begin() as connection,
        ):
            _renewed(connection, self._name, Holder.this_process().token)

    def _held_by(self, row: Row | None, time: float) -> str:
        who = "another process" if row is None else described(row, time)
        where = self._engine.url.render_as_string(hide_password=True)
        return (
            f"the search {self._name!r} in {where} is held by {who}. Nothing was "
            "written. Wait for its end, or end it; that a process is gone is seen at "
            f"once on its own machine, elsewhere after {EXPIRES_AFTER:.0f} s without a "
            "sign of life. Reading works meanwhile: ax-pac status"
        )


def _lease_of(name: str, token: str) -> sqlalchemy.ColumnElement[bool]:
    """Pick the lease of a holder on a search."""
    return (LEASES.c.name == name) & (LEASES.c.token == token)


def _renewed(connection: sqlalchemy.Connection, name: str, token: str) -> bool:
    """Renew a lease in one statement; return whether there is one."""
    clock = _CLOCKS.get(connection.dialect.name)
    time = now(connection) if clock is None else sqlalchemy.text(clock)
    statement = LEASES.update().where(_lease_of(name, token)).values(beat=time)
    return bool(connection.execute(statement).rowcount)


def _beat(own: weakref.ref[Lease], stop: threading.Event) -> None:
    """Send heartbeats until the lease ends or nobody has it any more."""
    while not stop.wait(BEAT_SECONDS):
        lease = own()
        if lease is None:
            return
        lease.beat()
        del lease


def _end(
    stop: threading.Event, engine: sqlalchemy.Engine, name: str, holder: Holder
) -> None:
    """Delete a lease; one that cannot be deleted expires."""
    stop.set()
    # A fork ends with a copy of its parent's lease. And where an SQLite file is gone,
    # connecting would make an empty one.
    if holder.process != os.getpid() or is_gone(engine.url):
        return
    with (
        contextlib.suppress(sqlalchemy.exc.SQLAlchemyError),
        engine.begin() as connection,
    ):
        connection.execute(LEASES.delete().where(_lease_of(name, holder.token)))


def is_in_memory(url: sqlalchemy.URL) -> bool:
    """Whether a database is SQLite's in the memory of this process."""
    name = url.database or ""
    return url.get_backend_name() == "sqlite" and (
        name in ("", ":memory:") or "mode=memory" in str(url)
    )


def is_gone(url: sqlalchemy.URL) -> bool:
    """Whether the file of an SQLite database is no longer there."""
    if url.get_backend_name() != "sqlite" or is_in_memory(url):
        return False
    return not sqlite_file(url).exists()


def sqlite_file(url: sqlalchemy.URL) -> pathlib.Path:
    """Return the file of an SQLite database, which may be written as a URI."""
    return pathlib.Path((url.database or "").removeprefix("file:"))


_LEASES: weakref.WeakValueDictionary[tuple[str, str], Lease] = (
    weakref.WeakValueDictionary()
)


def lease_on(engine: sqlalchemy.Engine, name: str) -> Lease | None:
    """Return the lease of this process on a search, a new one at first.

    Args:
        engine: Of the database.
        name: Of the search.

    Returns:
        None for a database in the memory of this process, which no other one sees.
    """
    if is_in_memory(engine.url):
        return None
    key = engine.url.render_as_string(hide_password=False), name
    lease = _LEASES.get(key)
    if lease is None:
        lease = _LEASES[key] = Lease(engine, name)
    return lease
