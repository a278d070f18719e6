"""The OpenAPI document: what it holds, and schemathesis with requests made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.grpc_models import make_repository
from tests.server.http_requests import ask
from tests.server.options_server import LOADABLE, OptionsServer
from tests.server.running import free_port
from whet.server.http.routes import ROUTES

pytest.importorskip("schemathesis")

CONFIG = Path(__file__).with_name("schemathesis.toml")
NAMED = 'parameters = { "path.model" = "scale", "path.version" = "1" }\n'
LOADS = ("post_v2_repository_models_model_load", "post_v2_repository_models_model_unload")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = make_repository(tmp_path_factory.mktemp("openapi") / "models")
    found = free_port()
    with OptionsServer(folder, http_port=found, admin_on_main_port=True, strict_readiness=False, **LOADABLE) as running:
        yield found
        assert "Traceback" not in running.log


def run(port: int, folder: Path, config: str, *arguments: str) -> str:
    """Schemathesis's output; fails with it where it finds anything."""
    (folder / "schemathesis.toml").write_text(config)
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "--no-color"]
    command += ["--config-file", "schemathesis.toml", "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", "all"]
    command += ["--generation-database", "none", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_any_names(port: int, tmp_path: Path) -> None:
    found = run(port, tmp_path, CONFIG.read_text(), "--seed", "1", "-n", "5", "--phases", "coverage,fuzzing")
    assert int(re.findall(r"(\d+) generated", found)[0]) > 300


def test_a_model_that_is_there(port: int, tmp_path: Path) -> None:
    leave_out = [part for name in LOADS for part in ("--exclude-operation-id", name)]
    run(port, tmp_path, NAMED + CONFIG.read_text(), "--seed", "2", "-n", "5", "--phases", "fuzzing", *leave_out)


def test_the_document_names_every_route_that_is_served(port: int) -> None:
    document = json.loads(ask(port, "GET", "/openapi.json")[2])
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {route.path for route in ROUTES if route.is_served}
    assert "post" in document["paths"]["/v2/models/{model}/infer"]
    assert "/v2/systemsharedmemory/status" not in document["paths"]
    assert not any("{repository}" in path for path in document["paths"])
