"""Which layers of a network to compress, and by which decomposition."""
