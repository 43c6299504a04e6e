"""Searches on real networks, and the evaluations that other benchmarks share."""
