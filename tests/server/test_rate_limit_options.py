"""--rate-limit and --rate-limit-resource: what they take, and what a server makes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")

from tests.server.grpc_models import save_scale
from whet.errors import InvalidArgument
from whet.server.data_plane import DataPlane
from whet.server.errors import Unsupported
from whet.server.options import ServerOptions
from whet.server.repository.manager import Repository
from whet.server.scheduling.rate_limit import read_resources

CONFIG = "instance_group [ { count: 2 rate_limiter { resources [ { name: 'R1' count: 3 } ] priority: 2 } } ]"


def test_resources_as_triton_writes_them() -> None:
    assert read_resources(["R1:2", "disk:0", "R1:4"]) == {"R1": 4, "disk": 0}
    assert read_resources([]) == {}


@pytest.mark.parametrize("text", ["", "R1", "R1:", ":4", "R1:x", "R1:-1", "R1:1.5", "R1:²", "R1:9999999999"])
def test_what_is_no_resource(text: str) -> None:
    with pytest.raises(InvalidArgument, match="NAME:COUNT") as caught:
        read_resources([text])
    assert "--rate-limit-resource" in str(caught.value)


def test_resources_of_a_device_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="R1:4:0"):
        read_resources(["R1:4:0"])


def test_resources_without_a_limit_are_a_contradiction() -> None:
    options = ServerOptions(Path("m"), rate_limit="off", rate_limit_resources=("R1:1",))
    with pytest.raises(InvalidArgument, match="--rate-limit-resource"):
        options.check()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limited") / "models"
    (folder / "scale" / "1").mkdir(parents=True)
    save_scale(folder / "scale" / "1" / "model.onnx", 2.0)
    (folder / "scale" / "config.pbtxt").write_text(CONFIG)
    return folder


@pytest.mark.parametrize(
    ("options", "state", "held"),
    [
        ({"rate_limit_resources": ("R1:2",)}, "UNAVAILABLE", None),
        ({"rate_limit_resources": ("R1:7",)}, "READY", 7),
        ({"rate_limit": "off"}, "READY", None),
    ],
)
def test_a_server_with_resources(models: Path, options: dict[str, Any], state: str, held: int | None) -> None:
    async def go() -> None:
        plane = DataPlane()
        repository = Repository(plane, ServerOptions(models, **options))
        plane.repository = repository
        await repository.start()
        try:
            (entry,) = repository.index()
            assert entry["state"] == state, entry
            if state == "READY":
                ticket = plane.model("scale")._scheduling.ticket
                assert (ticket and ticket._limiter.available("R1")) == held
            else:
                assert "'R1'" in entry["reason"] or "R1" in entry["reason"]
                assert "at most 2" in entry["reason"]
        finally:
            await repository.close()

    asyncio.run(go())
