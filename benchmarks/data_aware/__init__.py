"""Factors fitted to what layers see, beside those of the weights alone."""
