"""The `whet` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `whet`. Exit status: 0 well, 1 a typed error or a difference, 2 wrong usage, 130 interrupted."""
    try:
        # Imported here, so that an interrupt while the engine is still loading ends as quietly as a later one.
        from whet.cli.app import run_app

        status = run_app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = 130
    sys.exit(status)
