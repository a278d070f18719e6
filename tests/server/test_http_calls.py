"""HTTP without and with `tritonclient.http`: reading, inference in both forms, administration, methods, ports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.server.http_requests import INFER, ask
from tests.server.options_server import LOADABLE, OptionsServer
from tests.server.running import free_port
from tests.server.test_thin_path import save_scale_model

http = pytest.importorskip("tritonclient.http")
utils = pytest.importorskip("tritonclient.utils")

TOKEN = "a-token"


class Served:
    def __init__(self, server: OptionsServer, admin: int) -> None:
        self.port, self.admin = server.http_port, admin
        self.client = http.InferenceServerClient(server.http)
        self.admin_client = http.InferenceServerClient(f"127.0.0.1:{admin}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("http") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    admin = free_port()
    port = free_port()
    options = {"http_port": port, "admin_port": admin, "admin_token": TOKEN, "body_bytes": 100_000, "body_s": 0.5}
    with OptionsServer(folder, **options, **LOADABLE) as running:
        running.http_port = port
        yield Served(running, admin)


def test_tritonclient_reads_everything(served: Served) -> None:
    client = served.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert not client.is_model_ready("no")
    assert not client.is_model_ready("scale", "9")
    assert client.get_server_metadata()["name"] == "whet"
    assert client.get_model_metadata("scale", "1")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_config("scale")["max_batch_size"] == 32
    assert client.get_inference_statistics()["model_stats"][0]["name"] == "scale"
    assert client.get_inference_statistics("scale", "1")["model_stats"][0]["version"] == "1"
    assert [(m["name"], m["state"]) for m in client.get_model_repository_index()] == [("scale", "READY")]
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings("scale")["trace_rate"] == "1000"
    assert client.get_log_settings()["log_verbose_level"] == 0


@pytest.mark.parametrize("request_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_infer(served: Served, binary: bool, request_compression: str | None, response_compression: str | None) -> None:
    x = np.random.default_rng().standard_normal((32, 4), np.float32)
    tensor = http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    answer = served.client.infer(
        "scale", [tensor], outputs=[http.InferRequestedOutput("y", binary_data=not binary)], request_id="q",
        request_compression_algorithm=request_compression, response_compression_algorithm=response_compression,
    )  # fmt: skip
    assert answer.get_response()["id"] == "q"
    np.testing.assert_allclose(answer.as_numpy("y"), 2 * x + 1, rtol=1e-6)


def test_administration_needs_the_admin_port_and_its_token(served: Served) -> None:
    allowed = {"authorization": f"Bearer {TOKEN}"}
    for client, headers in ((served.client, allowed), (served.admin_client, None)):
        for call in (
            lambda c=client, h=headers: c.load_model("scale", headers=h),
            lambda c=client, h=headers: c.unload_model("scale", headers=h),
            lambda c=client, h=headers: c.update_log_settings({"log_info": False}, headers=h),
            lambda c=client, h=headers: c.update_trace_settings(settings={"trace_rate": "5"}, headers=h),
        ):
            with pytest.raises(utils.InferenceServerException, match="403"):
                call()
    admin = served.admin_client
    admin.unload_model("scale", headers=allowed)
    assert not served.client.is_model_ready("scale")
    admin.load_model("scale", headers=allowed)
    assert served.client.is_model_ready("scale")
    assert admin.update_log_settings({"log_verbose_level": 0}, headers=allowed)["log_verbose_level"] == 0
    changed = admin.update_trace_settings("scale", {"trace_rate": "7"}, headers=allowed)
    assert changed["trace_rate"] == "7"


@pytest.mark.parametrize(
    "headers",
    [("Origin: http://evil.example",), ("Sec-Fetch-Site: cross-site",), ("Origin: null",)],
)
def test_pages_of_other_sites_change_nothing(served: Served, headers: tuple[str, ...]) -> None:
    token = f"Authorization: Bearer {TOKEN}"
    path = "/v2/repository/models/scale/load"
    assert ask(served.admin, "POST", path, b"{}", token, *headers)[0] == 403


def test_options_head_and_allow(served: Served) -> None:
    assert ask(served.port, "OPTIONS", "/v2")[1]["allow"] == "get, head, options"
    assert ask(served.port, "PUT", INFER)[1]["allow"] == "post, options"
    status, headers, content = ask(served.port, "HEAD", "/v2")
    assert (status, content) == (200, b"")
    assert int(headers["content-length"]) > 10


def test_a_port_that_is_taken_is_an_error(served: Served, tmp_path: Path) -> None:
    save_scale_model(tmp_path / "scale.onnx")
    arguments = ["serve", str(tmp_path), "--http-port", str(served.port), "--metrics-port", "-1", "--grpc-port", "-1"]
    done = subprocess.run([sys.executable, "-m", "whet.cli", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"127.0.0.1:{served.port}" in done.stderr
