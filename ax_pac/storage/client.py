"""An Ax client whose experiment is kept in a database."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ax.api.client import Client
from ax.api.configs import StorageConfig
from ax.core.base_trial import BaseTrial
from ax.core.experiment import Experiment
from ax.core.runner import Runner
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.orchestration.orchestrator_options import OrchestratorOptions

from ax_pac.ax_internals import (
    experiment_of,
    maybe_experiment_of,
    properties,
    put_back,
    resume,
    strategy_of,
)
from ax_pac.experiment.records import save_records_by
from ax_pac.storage.errors import PATIENCE, SearchChangedError

if TYPE_CHECKING:
    import sqlalchemy

    from ax_pac.storage.database import Database, ExactBundle, Stamp
    from ax_pac.storage.lease import Lease


def database_url(db: str | Path) -> str:
    """Return the URL of a database; a path is that of an SQLite file.

    Args:
        db: A path, or an SQLAlchemy URL such as `postgresql+psycopg://user@host/name`.
            In a path every character stands for itself.

    Raises:
        ValueError: When it is empty.

    Example:
        >>> database_url("runs/search.db")
        'sqlite:///runs/search.db'
    """
    if not str(db).strip():
        raise ValueError("expected a path or the URL of a database, got nothing")
    if "://" in str(db):
        return str(db)
    # In a URL they begin the options, and the code of a character.
    return f"sqlite:///{str(db).replace('%', '%25').replace('?', '%3F')}"


def open_client(
    db: str | Path, name: str, *, hold: bool = False, patience: float = PATIENCE
) -> StoredClient:
    """Open the experiment of a name in a database, or start one.

    Args:
        db: A path or a URL, see `database_url`.
        name: Name of the experiment. One database holds any number of them.
        hold: Whether to take the search before it is read, see `StoredClient.hold`. It
            is taken by the first write otherwise.
        patience: Seconds for which a write is tried again while the database cannot be
            reached.

    Returns:
        A client. If the database has the experiment, it is as it was at its last
        change, certificates and generation strategy included; trials that were
        running are running still, see `StoredClient.unfinished_trials`. If not, it
        waits for `configure_experiment`.

    Raises:
        ImportError: When SQLAlchemy, the extra `sql`, is not installed.
        ValueError: When the name is empty, when the database cannot be opened, or when
            there is a file that is not a database.
        SearchHeldError: When another process holds the search, with `hold`.
    """
    if not (isinstance(name, str) and name.strip()):
        raise ValueError(f"expected the name of a search, got {name!r}")
    client = StoredClient(db, patience=patience)
    if hold:
        client.hold(name)
    client._load(name)
    return client


def _saved_at_once(method: Callable[..., Any]) -> Any:
    """Return a method of Ax's client with one save at its end."""

    @functools.wraps(method)
    def call(self: StoredClient, *args: Any, **kwargs: Any) -> Any:
        with self.one_save():
            return method(self, *args, **kwargs)

    return call


class StoredClient(Client):
    """An Ax `Client` whose every call is one transaction in a database.

    As `Client(storage_config=StorageConfig(url=...))`, with four differences. What one
    call changes is written together, so that a process killed at any moment leaves the
    state before the call or after it. Only what changed is written. Numbers are stored
    exactly, where Ax stores ten decimals. Certificates are saved as they are computed.

    One process at a time writes a search. The first write takes it, and a thread sends
    a heartbeat until no client of the process has it any more (`release`); meanwhile
    another process's write raises a `SearchHeldError` that says who holds it. A process
    that is gone, or has sent no heartbeat for 90 seconds, has lost it. Two clients of
    one process are told apart by a stamp that each write leaves: a client whose search
    was written by another one since writes nothing, and raises a `SearchChangedError`.
    Reading always works. A client is not for several threads.

    While the database cannot be reached a write is tried again, see `patience`.

    Args:
        db: A path or a URL, see `database_url`. Missing tables are made.
        random_seed: See Ax's `Client`.
        patience: Seconds for which a write is tried again while the database cannot be
            reached; then a `DatabaseUnreachableError`. A full disk raises a
            `DatabaseFullError` at once.

    Raises:
        ImportError: When SQLAlchemy, the extra `sql`, is not installed.
        ValueError: When the database cannot be opened.

    Checked on Ax 1.3.1.
    """

    def __init__(
        self,
        db: str | Path,
        random_seed: int | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        url = database_url(db)
        try:
            from ax_pac.storage.database import Database, ExactBundle
        except (ImportError, TypeError) as error:
            raise ImportError(
                "keeping a search in a database needs SQLAlchemy: install the extra "
                "`sql`, pip install 'ax-pac[sql]'"
            ) from error
        self._database: Database = Database(url, patience)
        self._lease: Lease | None = None
        self._attempt: Attempt | None = None
        self._bundle: ExactBundle = ExactBundle()
        self._depth = 0
        self._whole = False
        self._strategy_changed = False
        self._records_changed = False
        self._trials: dict[int, None] = {}
        self._name: str | None = None
        self._stamp: Stamp | None = None
        with self._database.sessions():
            super().__init__(
                storage_config=StorageConfig(url=url, registry_bundle=self._bundle),
                random_seed=random_seed,
            )

    get_next_trials = _saved_at_once(Client.get_next_trials)
    complete_trial = _saved_at_once(Client.complete_trial)
    attach_data = _saved_at_once(Client.attach_data)
    attach_trial = _saved_at_once(Client.attach_trial)
    attach_baseline = _saved_at_once(Client.attach_baseline)
    mark_trial_failed = _saved_at_once(Client.mark_trial_failed)
    mark_trial_abandoned = _saved_at_once(Client.mark_trial_abandoned)
    mark_trial_early_stopped = _saved_at_once(Client.mark_trial_early_stopped)
    configure_optimization = _saved_at_once(Client.configure_optimization)

    @property
    def database(self) -> str:
        """The database's URL, without a password."""
        return self._database.name

    @property
    def is_configured(self) -> bool:
        """Whether there is an experiment, found in the database or configured."""
        return maybe_experiment_of(self) is not None

    def unfinished_trials(self) -> dict[int, dict[str, Any]]:
        """Return the trials that were running when their process ended.

        Evaluate them and complete them under their own index: a killed loop then
        continues as if it had not been interrupted.

        Returns:
            Trial index to parameterization, in order.
        """
        experiment = maybe_experiment_of(self)
        return {
            index: dict(trial.arm.parameters)
            for index, trial in (experiment.trials if experiment else {}).items()
            if trial.status.is_running
        }

    def configure_experiment(
        self,
        parameters: Sequence[Any],
        parameter_constraints: Sequence[str] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        """See Ax's `Client`; the name is the one that the client was opened with.

        Args:
            parameters: As in Ax.
            parameter_constraints: As in Ax.
            name: Name of the experiment, under which it is found again. None for the
                one given to `open_client`.
            **options: As in Ax.

        Raises:
            ValueError: When there is no name, or another one than that of
                `open_client`: the search would not be found again.
        """
        if name is None:
            name = self._name
        if name is None or not name.strip():
            raise ValueError(
                "an experiment in a database needs a name, by which it is found again: "
                f"give name=, or use open_client(db, name); got {name!r}"
            )
        if self._name is not None and name != self._name:
            raise ValueError(
                f"this client was opened for the search {self._name!r}, and the "
                f"experiment is called {name!r}: open_client({self._name!r}) would not "
                "find it again. Leave name= out, or open the client with that name"
            )
        with self.one_save():
            super().configure_experiment(
                parameters, parameter_constraints, name, **options
            )

    def hold(self, name: str | None = None) -> None:
        """Take the search for this process, as its first write would.

        Args:
            name: Of the search; None for that of the client.

        Raises:
            SearchHeldError: When another process holds it.
            ValueError: When the client has no name yet.
        """
        name = name or self._name
        if name is None:
            raise ValueError("expected the name of a search to hold, got none")
        lease = self._lease_on(name)
        if lease is not None:
            self._database.write(lease.take, lambda: None)
            lease.keep()

    def release(self) -> None:
        """Let other processes write the search. The next write takes it again."""
        if self._lease is not None:
            self._lease.release()

    def _lease_on(self, name: str) -> Lease | None:
        from ax_pac.storage.lease import lease_on

        if self._lease is None:
            self._lease = lease_on(self._database.engine, name)
        return self._lease

    def run_trials(
        self,
        max_trials: int,
        parallelism: int = 1,
        tolerated_trial_failure_rate: float = 0.5,
        initial_seconds_between_polls: int = 1,
    ) -> None:
        """See Ax's `Client`; every trial is saved before it runs and when it ends.

        Runner and metrics are code and are not stored: give them again
        (`configure_runner`, `configure_metrics`) to the client that goes on. Trials
        that were running are polled with the metadata that the runner returned for
        them.

        Args:
            max_trials: As in Ax.
            parallelism: As in Ax.
            tolerated_trial_failure_rate: As in Ax.
            initial_seconds_between_polls: As in Ax.

        Raises:
            ValueError: When the client has no runner.
        """
        from ax_pac.storage.orchestrator import SavingOrchestrator

        experiment = experiment_of(self)
        if experiment.runner is None:
            raise ValueError(
                "run_trials needs a runner and metrics, which are code and not stored: "
                "call configure_runner and configure_metrics first, also when the "
                "search goes on in another process"
            )
        options = OrchestratorOptions(
            max_pending_trials=parallelism,
            tolerated_trial_failure_rate=tolerated_trial_failure_rate,
            init_seconds_between_polls=initial_seconds_between_polls,
        )
        SavingOrchestrator(
            experiment, strategy_of(self), options, client=self
        ).run_n_trials(max_trials=max_trials)

    def _load(self, name: str) -> None:
        """Take over the experiment of a name, if the database has it."""
        from ax_pac.storage.database import stamp_of

        self._name = name
        if name not in self._database.names():
            return
        with self._database.sessions():
            experiment, strategy = self._load_experiment_and_generation_strategy(name)
        resume(self, experiment, strategy)
        save_records_by(experiment, self)
        self._stamp = stamp_of(experiment)

    # Ax calls these after each change; `_save` writes what they note.

    def _save_experiment_to_db_if_possible(self, experiment: Experiment) -> bool:
        save_records_by(experiment, self)
        with self.one_save():
            self._whole = True
        return True

    def _save_generation_strategy_to_db_if_possible(
        self, generation_strategy: GenerationStrategy | None
    ) -> bool:
        with self.one_save():
            self._strategy_changed = True
        return True

    def _save_or_update_trials_in_db_if_possible(
        self,
        experiment: Experiment,
        trials: Sequence[BaseTrial],
        reduce_state_generator_runs: bool = False,
    ) -> bool:
        with self.one_save():
            self._trials.update(dict.fromkeys(trial.index for trial in trials))
        return True

    def _update_runner_on_experiment_in_db_if_possible(
        self, experiment: Experiment, runner: Runner
    ) -> bool:
        return False  # a runner is code

    def save_trials(self, trials: Sequence[BaseTrial], *, strategy: bool) -> None:
        """Write trials that something else than a method of the client changed.

        Args:
            trials: Of the experiment.
            strategy: Whether the generation strategy proposed since the last write.
        """
        with self.one_save():
            self._trials.update(dict.fromkeys(trial.index for trial in trials))
            self._strategy_changed = self._strategy_changed or strategy

    def save_records(self) -> None:
        """Write the experiment's properties, with the certificates among them."""
        with self.one_save():
            self._records_changed = True

    @contextlib.contextmanager
    def one_save(self) -> Iterator[None]:
        """Write all that changes within it at once, when the outermost ends."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._save()

    def _save(self) -> None:
        """Write what changed since the last time; after an error it is tried again."""
        changed = self._whole or self._strategy_changed or self._records_changed
        experiment = maybe_experiment_of(self)
        if not (changed or self._trials) or experiment is None:
            return
        lease = self._lease_on(experiment.name)

        def write(connection: sqlalchemy.Connection) -> Stamp:
            if lease is not None:
                lease.take(connection)
            return self._write(connection, experiment)

        self._stamp = self._database.write(write, self._undo)
        self._attempt = None
        if lease is not None:
            lease.keep()
        self._whole = self._strategy_changed = self._records_changed = False
        self._trials = {}

    def _write(
        self, connection: sqlalchemy.Connection, experiment: Experiment
    ) -> Stamp:
        """Write what changed in a transaction, unless somebody else has written."""
        from ax_pac.storage.database import (
            LAST_WRITE,
            new_stamp,
            save_changes,
            stored_stamp,
            without_ids,
        )

        found = stored_stamp(connection, experiment)
        attempt = self._attempt
        if attempt is not None and found == attempt.stamp:
            # The connection was lost between the commit and its confirmation.
            attempt.restore()
            return attempt.stamp
        if found != self._stamp:
            raise SearchChangedError(self._changed_by(experiment.name, found))
        strategy = strategy_of(self) if self._strategy_changed else None
        trials = list(self._trials)
        whole = self._whole or experiment.db_id is None
        changed = (
            experiment.trials if whole else {i: experiment.trials[i] for i in trials}
        )
        self._attempt = Attempt(
            new_stamp(found),
            experiment,
            dict(changed),
            without_ids(experiment if whole else changed, strategy),
        )
        properties(experiment)[LAST_WRITE] = self._attempt.stamp
        save_changes(
            experiment, self._bundle, whole=whole, strategy=strategy, trials=trials
        )
        return self._attempt.stamp

    def _undo(self) -> None:
        """Take back what a transaction that failed has left in Ax's objects."""
        if self._attempt is not None:
            self._attempt.undo()

    def _changed_by(self, name: str, found: Stamp | None) -> str:
        """Say who wrote a search, and what to do."""
        who = "another client"
        if found:
            who += (
                f" (process {found['process']} on {found['host']}, write number "
                f"{found['number']} at {found['time']})"
            )
        return (
            f"the search {name!r} in {self.database} was written by {who} since this "
            "client read it. Nothing was written, because it would replace that. Open "
            "the search again with open_client and go on there, with one client at a "
            "time, or give one of the searches another name"
        )


class Attempt:
    """A write that may have failed: its stamp, and what it did to Ax's objects.

    Args:
        stamp: That it left.
        experiment: That it wrote.
        trials: The trials that it wrote, as they were before.
        without_ids: See `database.without_ids`, before the write.
    """

    def __init__(
        self,
        stamp: Stamp,
        experiment: Experiment,
        trials: dict[int, BaseTrial],
        without_ids: list[tuple[Any, str]],
    ) -> None:
        self.stamp = stamp
        self._experiment, self._trials = experiment, trials
        self._without_ids = without_ids
        self._given: list[tuple[Any, str, Any]] = []

    def undo(self) -> None:
        """Put the trials back, and forget the ids: their rows are not there."""
        put_back(self._experiment, self._trials)
        given = [(o, n, getattr(o, n, None)) for o, n in self._without_ids]
        self._given = [each for each in given if each[2] is not None] or self._given
        for one, name, _ in given:
            setattr(one, name, None)

    def restore(self) -> None:
        """Give the ids back: the rows turned out to be there."""
        for one, name, value in self._given:
            setattr(one, name, value)
