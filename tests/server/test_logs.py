"""The server's log: what is written when, in which form, and what a request cannot do to it."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.server.running import RunningServer
from tests.server.test_thin_path import save_scale_model

pytest.importorskip("httptools")
tritonclient_http = pytest.importorskip("tritonclient.http")

from whet.errors import EPFail, InvalidArgument  # noqa: E402
from whet.server import logs  # noqa: E402
from whet.server.errors import QueueFull  # noqa: E402
from whet.server.logs import ServerLog, fields, log_answer, log_failure  # noqa: E402
from whet.server.request import InferRequest, InferResponse, RequestTimes  # noqa: E402
from whet.server.settings import LogSettings  # noqa: E402

LOGGER = logging.getLogger("whet.server.test")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def written(settings: LogSettings, stream: io.StringIO) -> list[str]:
    """The lines after one record of each level."""
    log = ServerLog(settings, stream)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        LOGGER.log(level, "level %d", level)
    log.stop()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        (LogSettings(), [20, 30, 40]),
        (LogSettings(verbose=1), [10, 20, 30, 40]),
        (LogSettings(info=False), [30, 40]),
        (LogSettings(warning=False), [20, 40]),
        (LogSettings(error=False), [20, 30]),
        (LogSettings(info=False, warning=False, error=False), []),
        (LogSettings(info=False, warning=False, error=False, verbose=1), [10]),
    ],
)
def test_each_level_has_its_switch(settings: LogSettings, levels: list[int], stream: io.StringIO) -> None:
    assert [int(line.split()[-1]) for line in written(settings, stream)] == levels


def test_forms(stream: io.StringIO) -> None:
    log = ServerLog(LogSettings(), stream)
    LOGGER.info("loaded %s", "m", extra=fields(model="a b", rows=3, seconds=0.5, nothing=None, empty=""))
    log.apply(LogSettings(format="ISO8601"))
    LOGGER.info("loaded")
    log.apply(LogSettings(format="json"))
    LOGGER.info("loaded", extra=fields(model='a "b"', rows=3))
    log.stop()
    first, second, third = stream.getvalue().splitlines()
    stamp = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(stamp + r' INFO whet\.server\.test: loaded m model="a b" rows=3 seconds=0\.5', first), first
    assert re.fullmatch(stamp + r"Z INFO whet\.server\.test: loaded", second), second
    document = json.loads(third)
    assert re.fullmatch(stamp + "Z", document.pop("time"))
    assert document == {
        "level": "info", "logger": "whet.server.test", "message": "loaded", "model": 'a "b"', "rows": 3,
    }  # fmt: skip


@pytest.mark.parametrize("style", ["default", "ISO8601", "json"])
def test_a_request_cannot_forge_lines(style: str, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "x\n2026-01-01 00:00:00.000 ERROR whet: forged\r\x1b[2J\u2028\ud800\x85"
    log = ServerLog(LogSettings(verbose=1, format=style), stream)  # type: ignore[arg-type]
    with monkeypatch.context() as alone:
        # Not to pytest's own record of the log, which cannot send a lone surrogate to another process.
        alone.setattr(logging.getLogger(), "handlers", [log])
        LOGGER.info("answered %s", evil, extra=fields(request_id=evil))
        try:
            raise InvalidArgument(evil)
        except InvalidArgument:
            LOGGER.exception("failed")
    log.stop()
    lines = stream.getvalue().split("\n")
    assert "forged" in lines[0]
    assert all(line.startswith("  ") for line in lines if "forged" in line and line not in (lines[0], lines[1]))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\ud800]", stream.getvalue())
    if style == "json":
        assert json.loads(lines[0])["request_id"] == evil
        assert "forged" in json.loads(lines[1])["traceback"]


def test_configuring_logging_elsewhere_does_not_end_the_log(stream: io.StringIO) -> None:
    log = ServerLog(LogSettings(), stream)
    # What some servers and libraries do at their start.
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    LOGGER.info("still here")
    log.stop()
    assert stream.getvalue().endswith("still here\n")


def test_a_reader_that_stands_still_delays_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            taken.set()
            go_on.wait(20)
            return super().write(text)

    taken, go_on, stream = threading.Event(), threading.Event(), Stuck()
    monkeypatch.setattr(logs, "MOST_WAITING", 5)
    log = ServerLog(LogSettings(), stream)
    LOGGER.info("line 0")
    assert taken.wait(20)
    for number in range(1, 9):
        LOGGER.info("line %d", number)
    assert log.dropped == 3
    go_on.set()
    log.stop()
    assert [line[-1] for line in stream.getvalue().splitlines()] == list("012345")


def test_only_faults_of_the_server_are_lines_by_themselves(stream: io.StringIO) -> None:
    request = InferRequest("m", [], "2", "id-7")
    response = InferResponse(
        "m", "2", "id-7", [], times=RequestTimes(10**9, 2 * 10**9, 4 * 10**9, 8 * 10**9, 9 * 10**9)
    )
    log = ServerLog(LogSettings(format="json"), stream)
    for error in (InvalidArgument("bad"), QueueFull("full"), EPFail("the run failed"), ZeroDivisionError("oops")):
        log_failure(request, error)
    log_answer(request, response)
    log.apply(LogSettings(format="json", verbose=1))
    log_failure(request, QueueFull("full"))
    log_answer(request, response)
    log.stop()
    documents = [json.loads(line) for line in stream.getvalue().splitlines()]
    seen = [(d["level"], d["message"], d["status"], d.get("error"), d.get("reason")) for d in documents]
    assert seen == [
        ("error", "failed", 500, "EPFail", "the run failed"),
        ("error", "failed", 500, "ZeroDivisionError", "oops"),
        ("debug", "failed", 503, "QueueFull", "full"),
        ("debug", "answered", 200, None, None),
    ]
    assert all((d["request_id"], d["model"], d["version"]) == ("id-7", "m", "2") for d in documents)
    assert [documents[-1][k] for k in ("latency_ms", "queue_ms", "infer_ms")] == [8000.0, 2000.0, 4000.0]


@pytest.mark.parametrize("verbose", [0, 1])
def test_lines_of_a_running_server(tmp_path: Path, verbose: int) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    with RunningServer(folder, "--log-format", "json", "--log-verbose", str(verbose)) as server:
        client = tritonclient_http.InferenceServerClient(server.http)
        x = np.random.default_rng().standard_normal((3, 4), np.float32)
        tensor = tritonclient_http.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        for number in range(3):
            client.infer("scale", [tensor], request_id=f"r-{number}")
        client.close()
    found = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    of_requests = [d for d in found if d["logger"] == "whet.server.requests"]
    assert [d["request_id"] for d in of_requests] == (["r-0", "r-1", "r-2"] if verbose else [])
    assert all(d["batch_rows"] == 3 and d["latency_ms"] > 0 for d in of_requests)
    messages = [d["message"] for d in found if d["logger"] == "whet.server"]
    assert messages[0] == "ready"
    assert messages[-1] == "stopped"
