"""Low-rank compression without training: one table for methods to be compared in."""
