"""What belongs to an Ax experiment: observations, settings, certificate records."""
