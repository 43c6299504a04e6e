"""Optimisers behind one ask/tell interface."""
