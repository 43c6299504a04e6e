"""Searches: options, client, loop, database, workers, targets, result."""

# First, because it keeps Ax from greeting when Ax is imported.
import ax_pac as ax_pac
