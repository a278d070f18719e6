"""The `whet` command."""

from whet.cli.app import main

__all__ = ["main"]
