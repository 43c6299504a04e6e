"""What can keep a client from writing a search to its database."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 300.0
"""Seconds for which a database that is away is tried again, by default."""


class SearchChangedError(RuntimeError):
    """Another client wrote a search after this one had read it; nothing was written."""


class SearchHeldError(RuntimeError):
    """Another process is at work on a search; nothing was written."""


class DatabaseUnreachableError(RuntimeError):
    """A database could not be reached for as long as a client is patient.

    Nothing of the last call was written; the client still has it, and its next call
    writes both.
    """


class DatabaseFullError(RuntimeError):
    """There is no space left for a database; nothing of the last call was written.

    The database is as it was before the call. The client still has it, and its next
    call writes both.
    """
