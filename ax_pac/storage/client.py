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

from ax_pac.ax_internals import (
    maybe_experiment_of,
    properties,
    resume,
    strategy_of,
)
from ax_pac.experiment.records import save_records_by

if TYPE_CHECKING:
    from ax_pac.storage.database import Database, ExactBundle, Stamp


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


def open_client(db: str | Path, name: str) -> StoredClient:
    """Open the experiment of a name in a database, or start one.

    Args:
        db: A path or a URL, see `database_url`.
        name: Name of the experiment. One database holds any number of them.

    Returns:
        A client. If the database has the experiment, it is as it was at its last
        change, certificates and generation strategy included; trials that were
        running are running still, see `StoredClient.unfinished_trials`. If not, it
        waits for `configure_experiment`.

    Raises:
        ImportError: When SQLAlchemy, the extra `sql`, is not installed.
        ValueError: When the name is empty, when the database cannot be opened, or when
            there is a file that is not a database.
    """
    if not (isinstance(name, str) and name.strip()):
        raise ValueError(f"expected the name of a search, got {name!r}")
    client = StoredClient(db)
    client._load(name)
    return client


class SearchChangedError(RuntimeError):
    """Another client wrote a search after this one had read it; nothing was written."""


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

    Not for several processes, nor for several threads, at a time. Each write leaves a
    stamp; a client whose search was written by another one since writes nothing, and
    raises a `SearchChangedError`. It still reads.

    Args:
        db: A path or a URL, see `database_url`. Missing tables are made.
        random_seed: See Ax's `Client`.

    Raises:
        ImportError: When SQLAlchemy, the extra `sql`, is not installed.
        ValueError: When the database cannot be opened.

    Checked on Ax 1.3.1.
    """

    def __init__(self, db: str | Path, random_seed: int | None = None) -> None:
        url = database_url(db)
        try:
            from ax_pac.storage.database import Database, ExactBundle
        except (ImportError, TypeError) as error:
            raise ImportError(
                "keeping a search in a database needs SQLAlchemy: install the extra "
                "`sql`, pip install 'ax-pac[sql]'"
            ) from error
        self._database: Database = Database(url)
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

    def configure_metrics(self, metrics: Any) -> None:
        """Refuse metrics that fetch their values, which Ax 1.3.1 cannot store.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Ax cannot store metrics that fetch their values, and run_trials needs "
            "them: in a database, write the loop with get_next_trials and "
            "complete_trial, and name further metrics by configure_tracking_metrics"
        )

    def configure_runner(self, runner: Any) -> None:
        """Refuse a runner, which Ax 1.3.1 cannot store.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Ax cannot store the runner of a client, and run_trials needs one: in a "
            "database, write the loop with get_next_trials and complete_trial"
        )

    def run_trials(self, *args: Any, **kwargs: Any) -> None:
        """See Ax's `Client`; its `Orchestrator` saves by itself, in small steps."""
        with self._database.sessions():
            super().run_trials(*args, **kwargs)

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
        return self._save_experiment_to_db_if_possible(experiment)

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
        from ax_pac.storage.database import (
            LAST_WRITE,
            new_stamp,
            save_changes,
            stored_stamp,
        )

        with self._database.transaction() as connection:
            found = stored_stamp(connection, experiment)
            if found != self._stamp:
                raise SearchChangedError(self._changed_by(experiment.name, found))
            stamp = new_stamp(found)
            properties(experiment)[LAST_WRITE] = stamp
            save_changes(
                experiment,
                self._bundle,
                whole=self._whole or experiment.db_id is None,
                strategy=strategy_of(self) if self._strategy_changed else None,
                trials=list(self._trials),
            )
        self._stamp = stamp
        self._whole = self._strategy_changed = self._records_changed = False
        self._trials = {}

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
