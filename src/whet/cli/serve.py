"""`whet serve`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from whet.errors import EPFail


def serve(repository: Path, host: str, http_port: int, grpc_port: int) -> None:
    """Serve until told to stop. Raises EPFail where the server's packages are not installed."""
    try:
        from whet.server.options import ServerOptions
        from whet.server.serve import serve as run
    except ModuleNotFoundError as error:
        raise EPFail(
            "a package that the server needs is not installed", found=error.name, hint="pip install 'whet[server]'"
        ) from error
    options = ServerOptions(
        repository=repository,
        host=host,
        http_port=http_port if http_port >= 0 else None,
        grpc_port=grpc_port if grpc_port >= 0 else None,
    )
    if sys.platform == "win32":
        asyncio.run(run(options))
    else:
        import uvloop

        uvloop.run(run(options))
