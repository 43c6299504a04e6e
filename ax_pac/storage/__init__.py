"""Ax's storage registries, and a client that lives in a database."""
