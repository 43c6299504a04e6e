"""Searches: options, client, loop, database, workers, targets, result."""
