"""The surrogate: likelihood fit, hyperparameter posterior, smoothed noise."""
