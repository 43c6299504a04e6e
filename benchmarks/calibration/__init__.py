"""Whether certificates keep what they promise, on functions whose optimum is known."""
