"""Tables, figures and Ax analysis cards of a search."""
