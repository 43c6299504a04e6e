"""Two implementations of Fabolas, and what one of its proposals costs."""
