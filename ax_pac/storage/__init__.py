"""Ax's storage registries, and a client whose experiment is in a database."""
