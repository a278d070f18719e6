"""TLS over HTTP: tritonclient with it, other clients without it or with the wrong one, files that cannot be used."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.certificates import make_certificates
from tests.server.options_server import OptionsServer
from tests.server.running import free_port
from tests.server.test_thin_path import save_scale_model
from whet.errors import InvalidArgument, NoSuchFile
from whet.server.http.server import tls_context

http = pytest.importorskip("tritonclient.http")
http_aio = pytest.importorskip("tritonclient.http.aio")
grpc = pytest.importorskip("tritonclient.grpc")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class TlsServer(OptionsServer):
    """Both protocols with TLS; `client_ca`: clients must show a certificate. Ready when HTTP answers."""

    def __init__(self, folder: Path, certificates: Path, client_ca: bool) -> None:
        files = {"tls_certificate": certificates / "server.crt", "tls_key": certificates / "server.key"}
        if client_ca:
            files["tls_client_ca"] = certificates / "ca.crt"
        super().__init__(folder, http_port=free_port(), **files)
        self.http_port = self._options["http_port"]
        self._certificates = certificates

    def context(self, client: str = "client") -> ssl.SSLContext:
        """What a client needs: whom it trusts, and its certificate."""
        found = ssl.create_default_context(cafile=self._certificates / "ca.crt")
        if client:
            found.load_cert_chain(self._certificates / f"{client}.crt", self._certificates / f"{client}.key")
        return found

    def wait_until_ready(self) -> None:
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            try:
                if b" 200 " in self.get(self.context()):
                    return
            except ConnectionRefusedError:
                time.sleep(0.05)

    def get(self, context: ssl.SSLContext, path: str = "/v2/health/ready") -> bytes:
        """The answer to a request."""
        with (
            socket.create_connection(("127.0.0.1", self.http_port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.fixture(scope="module", params=["server", "mutual"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificates: Path
) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("tls") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    with TlsServer(folder, certificates, request.param == "mutual") as running:
        yield running


def scale_input(module: Any, x: np.ndarray) -> list[Any]:
    tensor = module.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def test_tritonclient(served: TlsServer, certificates: Path) -> None:
    x = np.random.default_rng().standard_normal((3, 4), np.float32)
    address = f"localhost:{served.http_port}"
    with http.InferenceServerClient(address, ssl=True, ssl_context_factory=served.context) as client:
        found = client.infer("scale", scale_input(http, x))
        np.testing.assert_allclose(found.as_numpy("y"), 2 * x + 1, rtol=1e-6)

    async def with_aio() -> Any:
        async with http_aio.InferenceServerClient(address, ssl=True, ssl_context=served.context()) as client:
            return await client.infer("scale", scale_input(http, x))

    np.testing.assert_allclose(asyncio.run(with_aio()).as_numpy("y"), 2 * x + 1, rtol=1e-6)
    files = {
        "root_certificates": str(certificates / "ca.crt"),
        "private_key": str(certificates / "client.key"),
        "certificate_chain": str(certificates / "client.crt"),
    }
    with grpc.InferenceServerClient(f"localhost:{served.grpc_port}", ssl=True, **files) as client:
        found = client.infer("scale", scale_input(grpc, x))
        np.testing.assert_allclose(found.as_numpy("y"), 2 * x + 1, rtol=1e-6)


def test_whoever_does_not_trust_the_server_hangs_up(served: TlsServer, certificates: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        served.get(ssl.create_default_context(cafile=certificates / "stranger.crt"))
    served.wait_until_ready()


@pytest.mark.parametrize("client", ["", "stranger"])
def test_clients_without_a_known_certificate(served: TlsServer, client: str) -> None:
    context = served.context(client)
    if "tls_client_ca" not in served._options:
        assert b" 200 " in served.get(context)
        return
    # In TLS 1.3 the client learns of the refusal when it reads; the connection may be gone by then.
    try:
        answer = served.get(context)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    assert answer == b""
    served.wait_until_ready()


@pytest.mark.parametrize(
    ("version", "is_spoken"),
    [("TLSv1", False), ("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)],
)
def test_versions(served: TlsServer, version: str, is_spoken: bool) -> None:
    context = served.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    if is_spoken:
        assert b" 200 " in served.get(context)
        return
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served.get(context)
    served.wait_until_ready()


def test_no_tls_at_all(served: TlsServer) -> None:
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=30) as connection:
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        try:
            while part := connection.recv(4096):
                received += part
        except ConnectionError:
            pass
    assert b"HTTP/1.1 200" not in received
    served.wait_until_ready()


@pytest.fixture(scope="module")
def files(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates, and files that cannot be used."""
    folder = tmp_path_factory.mktemp("files")
    for file in certificates.iterdir():
        shutil.copy(file, folder)
    (folder / "garbage").write_text("no certificate")
    (folder / "empty").write_text("")
    (folder / "folder").mkdir()
    command = ["openssl", "ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


# Certificate, key and CA; the error, and what it names.
WRONG: tuple[tuple[str, str, str, type[Exception], str], ...] = (
    ("server.crt", "", "", InvalidArgument, "--tls-key"),
    ("", "server.key", "", InvalidArgument, "--tls-certificate"),
    ("", "", "ca.crt", InvalidArgument, "--tls-certificate"),
    ("nothing", "server.key", "", NoSuchFile, "nothing"),
    ("server.crt", "nothing", "", NoSuchFile, "nothing"),
    ("server.crt", "server.key", "nothing", NoSuchFile, "nothing"),
    ("folder", "server.key", "", NoSuchFile, "folder"),
    ("garbage", "server.key", "", InvalidArgument, "garbage"),
    ("empty", "server.key", "", InvalidArgument, "empty"),
    ("server.crt", "garbage", "", InvalidArgument, "garbage"),
    ("server.crt", "client.key", "", InvalidArgument, "belong to each other"),
    ("server.crt", "locked.key", "", InvalidArgument, "without a password"),
    ("server.key", "server.crt", "", InvalidArgument, "server.key"),
    ("server.crt", "server.key", "garbage", InvalidArgument, "garbage"),
)


@pytest.mark.parametrize(("certificate", "key", "ca", "kind", "part"), WRONG)
def test_files_that_cannot_be_used(
    files: Path, certificate: str, key: str, ca: str, kind: type[Exception], part: str
) -> None:
    given = [files / name if name else None for name in (certificate, key, ca)]
    with pytest.raises(kind, match=part):
        tls_context(*given)


def test_a_wrong_certificate_ends_the_command(files: Path, tmp_path: Path) -> None:
    save_scale_model(tmp_path / "scale.onnx")
    command = [sys.executable, "-m", "whet.cli", "serve", str(tmp_path), "--tls-certificate", str(files / "garbage")]
    command += ["--tls-key", str(files / "server.key"), "--http-port", str(free_port())]
    command += ["--grpc-port", "-1", "--metrics-port", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "the certificate and key cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
