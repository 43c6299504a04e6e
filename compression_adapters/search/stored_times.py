"""The times that a stored search was made with, for it to go on with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ax.api.client import Client

from ax_pac import open_client
from ax_pac.ax_internals import experiment_of, maybe_experiment_of, properties
from compression_adapters.network.latency import LatencyTable
from compression_adapters.options import CompressionOptions
from compression_adapters.search.client import PROBLEM_PROPERTY, quiet_ax
from compression_adapters.search.settings import SIZE_TABLE


def with_stored_times(
    options: CompressionOptions, client: Client | None
) -> CompressionOptions:
    """Let a search by latency that is continued go on with the times that it has.

    Times that are measured anew differ a little, so that the search would be another:
    its ratios, its options and its certificate are those of its own table.

    Args:
        options: What is asked for.
        client: Of the search to continue, if it is not in a database.

    Returns:
        The same, with the stored table as the size where there is one and
        `size="latency"` asks for measured times.
    """
    if options.problem.size != "latency":
        return options
    table = None
    if client is not None:
        table = table_of(client)
    elif options.search.db is not None:
        # A target keeps its searches as name/1, name/2, ...
        first = "" if options.target.gamma is not None else "/1"
        with quiet_ax():
            stored = open_client(options.search.db, f"{options.search.name}{first}")
        table = table_of(stored)
    if table is None:
        return options
    return replace(options, problem=replace(options.problem, size=table))


def table_of(client: Client) -> LatencyTable | None:
    """Return the times that a client's search was made with, None without any.

    Raises:
        ValueError: when they are of a newer format, or damaged.
    """
    if maybe_experiment_of(client) is None:
        return None
    kept: Any = properties(experiment_of(client)).get(PROBLEM_PROPERTY)
    record = kept.get(SIZE_TABLE) if isinstance(kept, dict) else None
    return None if record is None else LatencyTable.from_dict(record)
