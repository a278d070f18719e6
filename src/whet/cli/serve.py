"""`whet serve`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from whet.errors import EPFail


def serve(repository: Path, **options: Any) -> None:
    """Serve until told to stop; `options` are those of ServerOptions, a port of -1 is not opened.

    Raises EPFail where the server's packages are not installed, or a port is taken.
    """
    try:
        from whet.server.options import ServerOptions
        from whet.server.serve import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "whet":
            raise
        raise EPFail(
            "a package that the server needs is not installed", found=error.name, hint="pip install 'whet[server]'"
        ) from error
    given: dict[str, Any] = {
        name: None if name.endswith("_port") and value == -1 else value for name, value in options.items()
    }
    settings = ServerOptions(repository=repository, **given)
    if sys.platform == "win32":
        asyncio.run(run(settings))
    else:
        import uvloop

        uvloop.run(run(settings))
