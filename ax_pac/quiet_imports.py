"""Imports of Ax and torch without messages that a user can do nothing about."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

_SQL_LOGGER = "ax.storage.sqa_store.with_db_settings_base"


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide two messages while modules are imported, and restore what was set before.

    Ax 1.3.1 logs that SQLAlchemy is installed when its client is imported, and
    linear_operator 0.6 compiles a function with TorchScript, which torch deprecates.
    Every other message passes.

    Example:
        >>> with quiet_imports():
        ...     import ax.api.client
    """
    logger = logging.getLogger(_SQL_LOGGER)
    logger.addFilter(_is_not_greeting)
    # Not `catch_warnings`, which would drop the filters that the modules themselves
    # set.
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    before = list(filters)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", r"`torch\.jit", category)
    own = [entry for entry in filters if entry not in before]
    try:
        yield
    finally:
        logger.removeFilter(_is_not_greeting)
        filters[:] = [entry for entry in filters if entry not in own]


def _is_not_greeting(record: logging.LogRecord) -> bool:
    """Whether a log record is to be kept."""
    return "SQL storage initialized" not in record.getMessage()
