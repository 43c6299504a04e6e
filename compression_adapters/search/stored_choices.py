"""What a stored search was made with, for it to go on with the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ax.api.client import Client

from ax_pac import open_client
from ax_pac.ax_internals import experiment_of, maybe_experiment_of, properties
from compression_adapters.network.latency import LatencyTable
from compression_adapters.options import PATH, CompressionOptions
from compression_adapters.search.client import PROBLEM_PROPERTY, quiet_ax
from compression_adapters.search.settings import ENCODING, SIZE_TABLE


def with_stored_choices(
    options: CompressionOptions, client: Client | None
) -> CompressionOptions:
    """Let a search that is continued go on with the times and coordinates that it has.

    Times that are measured anew differ a little, so that the search would be another:
    its ratios, its options and its certificate are those of its own table. A search
    from before layers shared coordinates by default has one for each layer.

    Args:
        options: What is asked for.
        client: Of the search to continue, if it is not in a database.

    Returns:
        The same, with the stored table as the size where there is one and
        `size="latency"` asks for measured times, and with one coordinate a layer where
        that is what is stored and nothing else is asked for.
    """
    times = options.problem.size == "latency"
    if not (times or options.problem.is_shared_by_default):
        return options
    kept = _stored_settings(options, client)
    if kept is None:
        return options
    table, problem = _table(kept), options.problem
    if times and table is not None:
        problem = replace(problem, size=table)
    if problem.is_shared_by_default and kept.get(ENCODING) != PATH:
        problem = replace(problem, tie=_own_coordinate)
    return replace(options, problem=problem)


def table_of(client: Client) -> LatencyTable | None:
    """Return the times that a client's search was made with, None without any.

    Raises:
        ValueError: when they are of a newer format, or damaged.
    """
    kept = _settings_of(client)
    return None if kept is None else _table(kept)


def _stored_settings(
    options: CompressionOptions, client: Client | None
) -> Mapping[str, Any] | None:
    """Return the settings of the search to continue, None if there is none."""
    if client is not None:
        return _settings_of(client)
    if options.search.db is None or not options.search.name:  # refused later
        return None
    # A target keeps its searches as name/1, name/2, ...
    first = "" if options.target.gamma is not None else "/1"
    with quiet_ax():
        stored = open_client(options.search.db, f"{options.search.name}{first}")
    return _settings_of(stored)


def _settings_of(client: Client) -> Mapping[str, Any] | None:
    """Return what a client's search evaluates, as it was kept."""
    if maybe_experiment_of(client) is None:
        return None
    kept: Any = properties(experiment_of(client)).get(PROBLEM_PROPERTY)
    return kept if isinstance(kept, dict) else None


def _table(kept: Mapping[str, Any]) -> LatencyTable | None:
    """Return the times among settings."""
    record = kept.get(SIZE_TABLE)
    return None if record is None else LatencyTable.from_dict(record)


def _own_coordinate(layer: str) -> str:
    """Give each layer a coordinate of its own."""
    return layer
