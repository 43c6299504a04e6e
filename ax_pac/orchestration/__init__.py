"""Evaluations on several workers with Ray."""
