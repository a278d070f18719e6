"""The web page's addresses without a browser: files, guards, caching, and the documents against what clients did."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.server.repository_models import BROKEN, ENSEMBLE, scale_bytes, write_model
from tests.server.running import RunningServer, free_port

pytest.importorskip("httptools")
http = pytest.importorskip("tritonclient.http")

from whet.server.access import Access  # noqa: E402
from whet.server.data_plane import DataPlane  # noqa: E402
from whet.server.metrics.collect import Metrics  # noqa: E402
from whet.server.metrics.gpu import GpuSample  # noqa: E402
from whet.server.metrics.machine import Machine, MachineSample  # noqa: E402
from whet.server.options import ServerOptions  # noqa: E402
from whet.server.scheduling.batcher import REASONS  # noqa: E402
from whet.server.web.pages import TYPES, static_files  # noqa: E402
from whet.server.web.status import Status  # noqa: E402

ODD = "50% of #1?"
TOKEN = "t0ken"

pytestmark = pytest.mark.xdist_group("web")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


def ask(address: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{address}", method=method, headers=named)
    try:
        with OPENER.open(request, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


class Served(RunningServer):
    def __init__(self, folder: Path) -> None:
        self.admin = f"127.0.0.1:{free_port()}"
        super().__init__(folder, "--admin-port", self.admin.split(":")[1], "--admin-token", TOKEN)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(ask(f"{self.http}/ui/status")[2])
        return document

    def figures(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(m for m in self.status()["models"] if m["name"] == name)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("web") / "models"
    write_model(folder / "scale", scale_bytes(2.0))
    write_model(folder / ODD, scale_bytes(3.0))
    write_model(folder / "broken", BROKEN)
    for name in ("a", "b"):
        write_model(folder / name, scale_bytes(3.0))
    (folder / "chain").mkdir()
    (folder / "chain" / "config.pbtxt").write_text(ENSEMBLE)
    with Served(folder) as running:
        yield running


def test_the_root_leads_to_the_page(server: Served) -> None:
    for path in ("/", "/ui"):
        status, headers, body = ask(server.http + path)
        # Relative: behind a proxy, the page lies below a prefix.
        assert (status, headers["location"], body) == (307, "ui/", b"")


def test_the_page_has_its_guards_and_needs_nothing_from_elsewhere(server: Served) -> None:
    status, headers, body = ask(f"{server.http}/ui/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"

    used: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            assert not [n for n in named if n == "style" or n.startswith("on")], tag
            assert tag != "style"
            assert tag != "script" or named.get("src")
            used.extend(named[n] or "" for n in ("src", "href") if n in named)

    Page().feed(body.decode())
    files = [u for u in used if not u.startswith(("#", ".."))]
    assert len(files) >= 4
    for file in files:
        assert ask(f"{server.http}/ui/{file}")[0] == 200, file


def test_every_file_is_cached_by_its_content(server: Served) -> None:
    names = {f.name for f in (Path(__file__).parents[2] / "src/whet/server/web/static").iterdir()}
    assert set(static_files()) == names
    tags = set()
    for name in sorted(names):
        status, headers, body = ask(f"{server.http}/ui/{name}")
        assert status == 200
        assert headers["content-type"] == TYPES[Path(name).suffix]
        assert headers["cache-control"] == "no-cache"
        assert body == (Path(__file__).parents[2] / "src/whet/server/web/static" / name).read_bytes()
        tag = headers["etag"]
        tags.add(tag)
        status, again, body = ask(f"{server.http}/ui/{name}", if_none_match=f'"other", {tag}')
        assert (status, again["etag"], body) == (304, tag, b"")
        assert ask(f"{server.http}/ui/{name}", if_none_match='"other"')[0] == 200
        status, again, body = ask(f"{server.http}/ui/{name}", "HEAD")
        assert (status, again["etag"], body) == (200, tag, b"")
    assert len(tags) == len(names)


@pytest.mark.parametrize(
    "path",
    [
        "/ui/none.js", "/ui/../pages.py", "/ui/..%2fpages.py", "/ui/%2e%2e/pages.py", "/ui/__init__.py", "/ui//",
        "/ui/status/", "/ui/models/", "/ui/models/scale", "/ui/models/scale/1/x",
    ],
)  # fmt: skip
def test_nothing_else_is_there(server: Served, path: str) -> None:
    status, headers, body = ask(server.http + path)
    assert (status, headers["content-type"]) == (404, "application/json")
    assert "error" in json.loads(body)


@pytest.mark.parametrize("path", ["/", "/ui/", "/ui/main.js", "/ui/status", "/ui/models/scale/1"])
def test_the_page_is_only_read(server: Served, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        status, headers, _ = ask(server.http + path, method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_a_page_of_another_site_reads_nothing(server: Served) -> None:
    assert ask(f"{server.http}/ui/status", host="evil.example")[0] == 403
    headers = ask(f"{server.http}/ui/status", origin="http://evil.example")[1]
    assert "access-control-allow-origin" not in headers
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_figures_are_what_clients_did(server: Served) -> None:
    before = server.figures("scale")
    client = http.InferenceServerClient(server.http)
    rng = np.random.default_rng()
    count = int(rng.integers(5, 15))
    rows = 0
    for _ in range(count):
        x = rng.standard_normal((int(rng.integers(1, 9)), 4)).astype(np.float32)
        tensor = http.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        np.testing.assert_array_equal(client.infer("scale", [tensor]).as_numpy("y"), 2 * x)
        rows += len(x)
    wrong = http.InferInput("x", [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    for _ in range(3):
        with pytest.raises(http.InferenceServerException):
            client.infer("scale", [wrong])
    client.close()
    after = server.figures("scale")
    assert after["rows"] - before["rows"] == rows
    assert after["durations"]["success"][0] - before["durations"]["success"][0] == count
    assert after["failures"]["OTHER"] - before["failures"].get("OTHER", 0) == 3
    histogram = after["histograms"]["request_us"]
    assert sum(histogram["counts"]) == after["durations"]["success"][0]
    assert histogram["sum"] == pytest.approx(after["durations"]["success"][1] / 1e3, rel=1e-6)
    assert after["histograms"]["batch_rows"]["sum"] == after["rows"]
    assert sum(after["closed"].values()) == after["batches"] == sum(after["histograms"]["infer_us"]["counts"])
    assert set(after["closed"]) <= set(server.status()["batch_reasons"])
    assert (after["pending"], after["in_flight"], after["running"]) == (0, 0, 0)


def test_the_document_tells_of_the_server(server: Served) -> None:
    document = server.status()
    ports = {"HTTP": server.http_port, "gRPC": server.grpc_port, "metrics": server.metrics_port}
    assert document["ports"] == {**ports, "admin": int(server.admin.split(":")[1]), "admin gRPC": None}
    assert (document["live"], document["ready"], document["draining"]) == (True, True, False)
    states = {s["name"]: s for s in document["states"]}
    assert states["scale"]["state"] == states[ODD]["state"] == states["chain"]["state"] == "READY"
    assert states["broken"]["state"] == "UNAVAILABLE"
    assert "not an ONNX model" in states["broken"]["reason"]
    assert {m["name"] for m in document["models"]} == {"scale", ODD, "a", "b", "chain"}
    machine = document["machine"]
    assert 0 < machine["process_resident"] < machine["memory_used"] < machine["memory_total"]
    assert server.figures("scale")["memory"]["code"] > 0
    assert server.figures("chain")["memory"] == dict.fromkeys(server.figures("scale")["memory"], 0)
    assert set(document["batch_reasons"]) == set(REASONS)
    later = server.status()
    assert later["clock_ms"] > document["clock_ms"]
    assert later["started"] == document["started"]


def test_every_port_says_its_own_rule(server: Served) -> None:
    assert server.status()["admin"] == "off"
    assert json.loads(ask(f"{server.admin}/ui/status")[2])["admin"] == "token"
    assert ask(f"{server.admin}/ui/")[0] == 200
    assert TOKEN.encode() not in ask(f"{server.admin}/ui/status")[2]


@pytest.mark.parametrize("name", ["scale", ODD])
def test_a_model_is_described(server: Served, name: str) -> None:
    status, _, body = ask(f"{server.http}/ui/models/{urllib.parse.quote(name)}/1")
    document = json.loads(body)
    assert status == 200
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4], "is_optional": False}]
    output = {"name": "y", "datatype": "FP32", "shape": [-1, 4], "is_optional": False, "labels": []}
    assert document["outputs"] == [output]
    client = http.InferenceServerClient(server.http)
    config = client.get_model_config(name)
    client.close()
    assert document["config"] == config
    assert document["max_batch_rows"] == config["max_batch_size"]
    assert document["is_stateful"] is False


@pytest.mark.parametrize(("path", "status"), [("scale/7", 404), ("none/1", 404), ("broken/1", 503)])
def test_a_model_that_is_not_served_is_not_described(server: Served, path: str, status: int) -> None:
    found, _, body = ask(f"{server.http}/ui/models/{path}")
    assert found == status
    assert path.split("/")[0] in json.loads(body)["error"] or "7" in json.loads(body)["error"]


class _CountedMetrics(Metrics):
    reads = 0

    async def read(self, machine: Machine) -> tuple[MachineSample, list[GpuSample]]:
        self.reads += 1
        return await super().read(machine)


def test_the_machine_is_read_only_while_somebody_looks_and_once_for_all_who_do() -> None:
    async def look() -> tuple[int, int, list[dict[str, Any]]]:
        plane = DataPlane()
        metrics = _CountedMetrics(plane)
        status = Status(plane, metrics, ServerOptions(Path()))
        before = metrics.reads
        documents = [json.loads(d) for d in await asyncio.gather(*(status.live(Access()) for _ in range(5)))]
        return before, metrics.reads, documents

    before, after, documents = asyncio.run(look())
    assert (before, after) == (0, 1)
    assert all(d["machine"]["process_resident"] > 0 for d in documents)


class _Lacking:
    """A repository whose start had to serve `late`."""

    unserved: ClassVar = ["late"]

    def __init__(self, is_strict: bool) -> None:
        self.blocks_readiness = is_strict

    def index(self, ready: bool = False) -> list[dict[str, str]]:
        return [{"name": "late", "version": "1", "state": "UNAVAILABLE", "reason": "it is broken"}]


@pytest.mark.parametrize("is_strict", [True, False])
def test_what_keeps_the_server_from_being_ready_is_named(is_strict: bool) -> None:
    async def look() -> dict[str, Any]:
        plane = DataPlane()
        plane.repository = _Lacking(is_strict)
        return json.loads(await Status(plane, Metrics(plane), ServerOptions(Path())).live(Access()))

    document = asyncio.run(look())
    assert (document["ready"], document["lacks"]) == ((False, ["late"]) if is_strict else (True, []))
    assert document["states"][0]["reason"] == "it is broken"
