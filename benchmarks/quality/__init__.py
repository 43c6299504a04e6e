"""Targets in words: whether what they promise is so on other inputs."""
