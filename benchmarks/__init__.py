"""Measurements behind the figures in the documents; no other package imports this."""
