"""A stop while a model is loaded by request: who asked for it is told so, soon, and the process ends."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("httptools")
triton = pytest.importorskip("tritonclient.grpc")
utils = pytest.importorskip("tritonclient.utils")

from tests.server.grpc_models import make_repository  # noqa: E402
from tests.server.repository_models import scale_bytes, write_model  # noqa: E402
from tests.server.running import RunningServer  # noqa: E402

DRAIN_S = 300.0
"""Nothing of this is waited for."""
END_S = 120.0
ENDLESS = """
model_warmup [{ name: "w" inputs { key: "steps" value {
  data_type: TYPE_INT64 dims: [1] input_data_file: "steps" } } }]
"""


def post(server: RunningServer, path: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", b"{}", timeout=DRAIN_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_load_that_is_under_way_is_told(tmp_path: Path) -> None:
    held = tmp_path / "held"
    write_model(held / "scale", scale_bytes(2))
    slow = (make_repository(tmp_path / "made", ("slow",)) / "slow.onnx").read_bytes()
    write_model(held / "slow", slow, config=ENDLESS)
    (held / "slow" / "warmup").mkdir()
    (held / "slow" / "warmup" / "steps").write_bytes(np.int64(10**15).tobytes())
    arguments = ("--admin-on-main-port", "--control-mode", "explicit", "--load-model", "scale")
    with RunningServer(held, *arguments, "--drain-s", str(DRAIN_S)) as server:
        found: list[tuple[int, str] | tuple[str, str]] = []

        def over_http() -> None:
            found.append(post(server, "/v2/repository/models/slow/load"))

        def over_grpc() -> None:
            with triton.InferenceServerClient(server.grpc) as client:
                try:
                    client.load_model("slow", client_timeout=DRAIN_S)
                except utils.InferenceServerException as error:
                    found.append((error.status(), error.message()))

        asking = [threading.Thread(target=ask, daemon=True) for ask in (over_http, over_grpc)]
        for thread in asking:
            thread.start()
        end = time.monotonic() + END_S
        while not any(row["state"] == "LOADING" for row in json.loads(post(server, "/v2/repository/index")[1])):
            assert time.monotonic() < end, server.log
            time.sleep(0.02)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join(END_S)
        assert sorted(str(status) for status, _ in found) == ["503", "StatusCode.UNAVAILABLE"]
        assert all("shutting down" in text for _, text in found)
        assert server.process.wait(END_S) == 0
        assert "Traceback" not in server.log, server.log
