"""Acquisition functions on the difference to the incumbent, and their maximiser."""
