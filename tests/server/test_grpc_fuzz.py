"""A short run of the gRPC fuzzer."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc")

from tests.server.grpc_fuzz import fuzz
from tests.server.options_server import OptionsServer

SECONDS = 4


def test_nothing_fails_or_hangs(grpc_server: OptionsServer) -> None:
    counts = fuzz(grpc_server.grpc, SECONDS, seed=20)
    # Both sides are reached: requests that are answered, and every kind of refusal.
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED"} <= set(counts), counts
    assert "Traceback" not in grpc_server.log, grpc_server.log
