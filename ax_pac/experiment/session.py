"""What a process remembers of an experiment beside what the experiment stores."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, Protocol

import pandas as pd
from ax.core.experiment import Experiment
from ax.core.search_space import SearchSpace
from ax.generation_strategy.generation_node import GenerationNode


class SavesRecords(Protocol):
    """A client that writes an experiment to a database: see `StoredClient`."""

    def save_records(self) -> None:
        """Write the experiment's properties."""


@dataclasses.dataclass
class Session:
    """The state of one experiment in this process; nothing of it is stored.

    Args:
        observations: What observations were last read from, and the observations: Ax
            asks for them several times per trial.
        node: The PAC node that searches the experiment. Certificates with the same
            settings share its fit.
        saver: The client that writes the experiment to a database.
        number_of_points: The search space, and how many points it has.
    """

    observations: tuple[Any, pd.DataFrame] | None = None
    # Weak, because both hold the experiment, which would never be freed.
    node: weakref.ref[GenerationNode] | None = None
    saver: weakref.ref[SavesRecords] | None = None
    number_of_points: tuple[SearchSpace, float] | None = None


# By `id`, because Ax's experiments cannot be hashed; an entry ends with its experiment.
_SESSIONS: dict[int, Session] = {}


def session_of(experiment: Experiment) -> Session:
    """Return the session of an experiment, a new one at first.

    Args:
        experiment: An Ax experiment. A copy of it has a session of its own.
    """
    key = id(experiment)
    if key not in _SESSIONS:
        _SESSIONS[key] = Session()
        weakref.finalize(experiment, _SESSIONS.pop, key, None).atexit = False
    return _SESSIONS[key]
