"""The surrogate: likelihood fit, posterior of hyperparameters, smoothed noise."""
