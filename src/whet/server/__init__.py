"""The server: many models behind the KServe v2 protocol (Open Inference Protocol), over HTTP and gRPC.

`data_plane` knows no protocol; `http` and `grpc` turn bytes into its requests and its answers into bytes; `repository`
finds, checks, loads and swaps models; `scheduling` forms batches and runs them. `serve.py` wires them together.
"""
