"""Which layers of a network take part, and by which decomposition."""
