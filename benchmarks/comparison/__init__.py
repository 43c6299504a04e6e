"""All methods on the same evaluations, with the statistics and pages of the results."""
