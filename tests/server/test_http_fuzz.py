"""A short run of the HTTP fuzzer, and its faults: each must be seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.server.http_fuzz import Answer, Request, check, fuzz, parse, save_wide
from tests.server.options_server import OptionsServer
from tests.server.running import free_port

SECONDS = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OptionsServer, int]]:
    folder = tmp_path_factory.mktemp("http_fuzz")
    save_wide(folder / "wide.onnx")
    port = free_port()
    with OptionsServer(folder, http_port=port, body_s=1.0) as running:
        yield running, port


def test_nothing_is_lost_or_wrong(server: tuple[OptionsServer, int]) -> None:
    running, port = server
    counts = fuzz(port, SECONDS, seed=20)
    # Both sides are reached: what is right, and what is refused.
    assert counts["right"] > 10, counts
    assert counts["damaged"] > 5, counts
    assert counts["400"] > 0, counts
    assert "Traceback" not in running.log, running.log


OUTPUT = b'{"outputs":[{"name":"y","shape":[1,2],"data":[1,3]}]}'
HEAD = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 53\r\n\r\n"


def test_wrong_answers_are_seen() -> None:
    (answer,), left = parse(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + OUTPUT + b"HTTP", [False])
    assert left == b"HTTP"
    request = Request(b"", 200, output=np.float32([[1, 3]]))
    check(request, answer)
    for status, output in ((200, [[1, 4]]), (200, [[1, 3, 3]]), (400, [[1, 3]])):
        with pytest.raises(AssertionError):
            check(Request(b"", status, output=np.float32(output)), answer)
    with pytest.raises(AssertionError):
        check(request, Answer(200, {}, OUTPUT))
