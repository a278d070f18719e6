"""A short run of the gRPC fuzzer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.server.grpc_fuzz import fuzz
from tests.server.grpc_models import make_repository
from tests.server.options_server import OptionsServer

triton = pytest.importorskip("tritonclient.grpc")

SECONDS = 5


def test_nothing_fails_or_hangs(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "models")
    with OptionsServer(folder, strict_readiness=False) as server:
        counts = fuzz(server.grpc, SECONDS, seed=20)
        # Both sides are reached: requests that are answered, and every kind of refusal.
        assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED"} <= set(counts), counts
        x = np.float32([[1, 2, 3, 4]])
        tensor = triton.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        with triton.InferenceServerClient(server.grpc) as client:
            np.testing.assert_array_equal(client.infer("scale", [tensor]).as_numpy("y"), 2 * x + 1)
        assert "Traceback" not in server.log, server.log
