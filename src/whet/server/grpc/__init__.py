"""KServe v2 over gRPC: the published service on grpcio's asyncio server."""

from __future__ import annotations

import os

# The server starts child processes by fork and exec and never uses gRPC in them. Without this gRPC stops its threads
# at each fork, and writes a line where it cannot. It is read when grpcio is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
