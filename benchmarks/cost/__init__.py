"""What a search costs beside its evaluations: time, storage, and workers."""
