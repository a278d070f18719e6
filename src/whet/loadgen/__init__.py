"""A load generator for servers that speak KServe v2 (Open Inference Protocol), over HTTP and gRPC."""
