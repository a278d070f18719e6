"""Makes `src/whet/server/protocol/proto/inference.binpb` of the interface files beside it. Needs grpcio-tools.

usage: python tools/make_protocol.py
"""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

FOLDER = Path(__file__).parent.parent / "src" / "whet" / "server" / "protocol" / "proto"


def main() -> None:
    target = FOLDER / "inference.binpb"
    arguments = ["protoc", f"-I{FOLDER}", "--include_imports", f"--descriptor_set_out={target}"]
    status = protoc.main([*arguments, "grpc_service.proto", "health.proto"])
    if status:
        raise SystemExit(status)
    print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
