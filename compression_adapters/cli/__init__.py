"""The `ax-pac` command."""

from compression_adapters.cli.commands import main

__all__ = ["main"]
