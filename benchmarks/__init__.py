"""Measurements behind the figures in the documents; nobody imports this package."""
