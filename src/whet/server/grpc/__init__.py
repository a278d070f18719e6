"""KServe v2 over gRPC: the published service on grpcio's asyncio server."""
