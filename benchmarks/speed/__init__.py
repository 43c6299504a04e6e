"""Networks that are faster: measured time as the size, and as a target."""
