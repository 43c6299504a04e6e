"""From ranks to coordinates in [0, 1] and back."""
