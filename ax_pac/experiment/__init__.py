"""What an Ax experiment holds: observations, settings, certificate records."""
