"""How many files, and so connections, the server's process may have open."""

from __future__ import annotations

import contextlib

MOST = 1 << 16
"""Programs that walk through every number that a file may have take long with more."""


def allow_files() -> None:
    """Raise the limit to what the system lets this process have, up to MOST. Many shells give a program only 1024."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
