"""Tables, plots and Ax analysis cards of a search."""
