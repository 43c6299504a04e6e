"""Evaluations on several workers, on Ray."""
