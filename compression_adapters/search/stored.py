"""Searches in a database: start, find, check."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from ax.api.client import Client
from ax.generation_strategy.generation_strategy import GenerationStrategy

from ax_pac import StoredClient, open_client
from ax_pac.ax_internals import (
    experiment_of,
    maybe_experiment_of,
    maybe_strategy_of,
    properties,
)
from compression_adapters.evaluation.problem import CompressionProblem
from compression_adapters.options import SearchOptions
from compression_adapters.search.client import configure_client, quiet_ax
from compression_adapters.search.settings import first_difference, problem_settings

FORMAT_VERSION: Final = 1


SEARCH_PROPERTY: Final = "compression_search"
"""Key of the experiment property with the settings of its search. Never renamed."""


_LONGEST_NAME = 100
_KEPT_OPTIONS = (
    *("delta", "epsilon", "level", "relative", "num_initial_trials", "sampling"),
    "seed",
)
"""What of the options a search that is continued must have in common. Stored names."""


def open_search(
    problem: CompressionProblem,
    strategy: GenerationStrategy,
    options: SearchOptions,
    *,
    start: Client | None = None,
) -> tuple[StoredClient, int]:
    """Find a search in a database, or start it there.

    Args:
        problem: What is searched.
        strategy: Of a search that begins; one that is found has its own.
        options: How; `db` and `name` say where, see `ax_pac.open_client`.
        start: A client whose trials a search that begins takes over.

    Returns:
        The client, and the number of its initial trials.

    Raises:
        ValueError: when the database cannot be opened, or contains another search, or
            something else, under this name. The message names the difference.
        SearchHeldError: when another process is at work on it.
    """
    if options.db is None:
        raise ValueError("expected a database, got None")
    name = options.name
    if not 0 < len(name) <= _LONGEST_NAME:
        raise ValueError(
            f"Expected a name of 1 to {_LONGEST_NAME} characters; got {name!r}."
        )
    asked = problem_settings(problem) | {n: getattr(options, n) for n in _KEPT_OPTIONS}
    with quiet_ax():
        client = open_client(options.db, name, hold=True)
        if maybe_experiment_of(client) is None:
            return client, _begin(client, problem, strategy, asked, name, start)
    where = f"{name!r} in {client.database}"
    try:
        return client, _check(client, asked, where)
    except BaseException:
        client.release()
        raise


@contextlib.contextmanager
def released(client: Client) -> Iterator[None]:
    """Let other processes have a search in a database, once this one is done with it.

    Args:
        client: Of the search, in a database or not.
    """
    try:
        yield
    finally:
        if isinstance(client, StoredClient):
            client.release()


def _begin(
    client: StoredClient,
    problem: CompressionProblem,
    strategy: GenerationStrategy,
    asked: dict[str, Any],
    name: str,
    start: Client | None,
) -> int:
    """Start a search, in one transaction."""
    with client.one_save():
        if start is None:
            configure_client(client, problem, name)
        else:
            experiment_of(start).name = name
            client.set_experiment(experiment_of(start))
        known = len(experiment_of(client).trials)
        properties(experiment_of(client))[SEARCH_PROPERTY] = {
            "format_version": FORMAT_VERSION,
            "known": known,
            "settings": asked,
        }
        client.set_generation_strategy(strategy)
    return known


def _check(client: StoredClient, asked: dict[str, Any], where: str) -> int:
    """Refuse to continue a search with other settings."""
    kept = properties(experiment_of(client)).get(SEARCH_PROPERTY)
    other = "Give another name (name=, --name) or another database."
    if not isinstance(kept, dict) or maybe_strategy_of(client) is None:
        raise ValueError(f"The experiment {where} is not a search of ax-pac. {other}")
    if kept.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"The search {where} has format {kept.get('format_version')!r}, this "
            f"version reads {FORMAT_VERSION}: update ax-pac. {other}"
        )
    difference = first_difference(kept["settings"], asked)
    if difference is not None:
        setting, before, now = difference
        raise ValueError(
            f"The search {where} was made with {setting} = {before}, now {setting} = "
            f"{now}. To continue it, pass {setting} as before. For a new search: "
            f"{other[0].lower()}{other[1:]}"
        )
    return int(kept["known"])
