"""Large JSON bodies: read in small steps, they give what small ones give, and the server answers others meanwhile."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from tests.server.options_server import OptionsServer
from tests.server.running import free_port
from tests.server.test_thin_path import save_scale_model
from whet.errors import WhetError
from whet.server.errors import PayloadTooLarge
from whet.server.http import json_request, large_json
from whet.server.http.json_request import read_request
from whet.server.http.json_response import write_response
from whet.server.http.large_json import MAX_VALUES, cut_lists
from whet.server.request import InferResponse, OutputTensor

BODY_BYTES = 20 << 20
STEP_S = 0.1
"""The most processor time of one step; it takes a tenth of that, and everything at once takes many times that."""


def read(body: bytes) -> Any:
    """Inputs by name, or the kind of the error."""
    try:
        request, _, _ = read_request("m", "", body, None)
    except WhetError as error:
        return type(error)
    return [(t.name, t.datatype.name, t.array.shape, t.array.tolist()) for t in request.inputs]


def nested(values: list[Any], dims: list[int]) -> list[Any]:
    for size in reversed(dims[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def random_body(rng: random.Random) -> bytes:
    """Two inputs with flat or nested data."""
    inputs = []
    for name in ("x", rng.choice(["y", 'd"data":[', "data", "\\"])):
        kind = rng.choice(["FP32", "FP64", "INT64", "INT8", "UINT8", "FP16"])
        dims = [rng.randint(1, 6) for _ in range(rng.randint(1, 4))]
        low = 0 if kind == "UINT8" else -99
        whole = "INT" in kind
        values = [rng.randint(low, 99) if whole else rng.choice([1, -2.5, 1e-7, 60000]) for _ in range(np.prod(dims))]
        data = nested(values, dims) if rng.random() < 0.7 else values
        fields = [("name", name), ("shape", dims), ("datatype", kind), ("data", data)]
        rng.shuffle(fields)
        inputs.append(dict(fields))
    document = {"inputs": inputs, "id": rng.choice(["", '"data":[1,2', 'a\\"data":[1]'])}
    return json.dumps(document, separators=rng.choice([(",", ":"), (", ", ": "), (" ,\n", " :\t")])).encode()


def mutated(body: bytes, rng: random.Random) -> bytes:
    out = bytearray(body)
    if rng.random() < 0.3:
        at = rng.choice([i for i, sign in enumerate(body[:-1]) if sign in b"[]"])
        out[at : at + 2] = out[at + 1], out[at]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        at = rng.randrange(len(out))
        end = at + rng.choice([0, 1, 1, 2])
        out[at:end] = rng.choice(
            [b"", b"", b",", b"[", b"]", b"],[", b",]", b"[,", b" ", b"1", b"-", b".", b"e", b'"', b"}"]
        )
    return bytes(out)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("seed", range(3))
def test_large_bodies_are_read_as_small_ones_are(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    bodies = [mutated(random_body(rng), rng) for _ in range(500)]
    expected = [read(body) for body in bodies]
    monkeypatch.setattr(large_json, "PIECE", 24)
    monkeypatch.setattr(large_json, "STEP", 16)
    monkeypatch.setattr(large_json, "give_way", lambda: None)
    monkeypatch.setattr(json_request, "LARGE", 0)
    cut = 0
    for body, small in zip(bodies, expected, strict=True):
        cut += bool(cut_lists(body)[1])
        assert read(body) == small, body
    good = sum(isinstance(e, list) for e in expected)
    assert cut > 250
    assert 50 < good < 400


@pytest.mark.parametrize("dims", [(), (4,), (2, 2)])
def test_steps_are_short(dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In processor time, which other programs do not change."""
    x = np.random.default_rng().standard_normal((1_200_000 // int(np.prod(dims)), *dims), np.float32)
    body = large_body(x)
    steps = []
    last = time.thread_time()

    def give_way() -> None:
        nonlocal last
        now = time.thread_time()
        steps.append(now - last)
        last = now

    monkeypatch.setattr(large_json, "give_way", give_way)
    request, _, _ = read_request("m", "", body, None)
    give_way()
    np.testing.assert_array_equal(request.inputs[0].array, x)
    assert len(steps) > len(body) / large_json.PIECE
    response = InferResponse("m", "1", "", [OutputTensor("y", request.inputs[0].datatype, x)])
    last = time.thread_time()
    content, _ = write_response(response, {}, False)
    give_way()
    np.testing.assert_array_equal(np.float32(orjson.loads(content)["outputs"][0]["data"]), x.reshape(-1))
    assert max(steps) < STEP_S, sorted(steps)[-5:]


def test_lists_are_cut_out_where_they_are_large() -> None:
    x = np.arange(200_000, dtype=np.float32)
    body = orjson.dumps({"inputs": [{"data": x}, {"data": [1, 2]}]}, option=orjson.OPT_SERIALIZE_NUMPY)
    rest, lists = cut_lists(body)
    assert len(lists) == 1
    assert len(rest) < 200


@pytest.mark.parametrize(
    "rest",
    ['"data":["a",' + "0," * 40_000, '"data":' + "[" * 200_000, '"data":[1' + "]" * 200_000,
     '"data":[' + "1" * 200_000,
     '"data":[1,2]' + " " * 200_000, '"data":[' + " " * 200_000, '"data":[' * 20_000,
     "[" * 150 + '"data":[' + "1," * 99_999],
)  # fmt: skip
def test_what_is_cut_off_is_an_error(rest: str) -> None:
    assert issubclass(read(b'{"id":"%b",%b' % (b" " * large_json.LARGE, rest.encode())), WhetError)


def test_deep_lists_of_numbers_are_refused_soon() -> None:
    tensor = {"name": "x", "shape": [100_000], "datatype": "FP32", "data": 0}
    body = orjson.dumps({"inputs": [tensor], "id": " " * large_json.LARGE})
    data = b"[" * 50_000 + b"1" + b",1" * 99_999 + b"]" * 50_000
    began = time.process_time()
    assert issubclass(read(body.replace(b'"data":0', b'"data":' + data)), WhetError)
    assert time.process_time() - began < 5


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("large") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    (folder / "any" / "1").mkdir(parents=True)
    save_scale_model(folder / "any" / "1" / "model.onnx")
    (folder / "any" / "config.pbtxt").write_text("max_batch_size: 1000000")
    found = free_port()
    with OptionsServer(folder, http_port=found, body_bytes=BODY_BYTES) as running:
        running.http_port = found
        yield found


def post(port: int, model: str, body: bytes) -> tuple[int, bytes]:
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


def large_body(x: np.ndarray) -> bytes:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x}
    return orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)


def test_others_are_answered_while_a_large_body_is_read(port: int) -> None:
    x = np.random.default_rng().standard_normal((350_000, 4), np.float32)
    body = large_body(x)
    assert len(body) > 14 << 20
    post(port, "any", large_body(x[:1000]))
    answers: list[tuple[int, bytes]] = []
    sender = threading.Thread(target=lambda: answers.append(post(port, "any", body)))
    count = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sender.start()
        while sender.is_alive():
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in connection.recv(4096)
            count += 1
    sender.join()
    status, content = answers[0]
    assert status == 200, content[:500]
    found = np.asarray(orjson.loads(content)["outputs"][0]["data"], np.float32).reshape(x.shape)
    np.testing.assert_allclose(found, 2 * x + 1, rtol=1e-6, atol=1e-6)
    assert count > 1


def test_too_many_values_beside_the_lists_of_numbers(port: int) -> None:
    texts = b",".join([b'""'] * (MAX_VALUES + 10))
    status, content = post(
        port, "scale", b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":[%b]}]}' % texts
    )
    assert status == 413
    assert "binary" in json.loads(content)["error"]


def test_a_number_that_overflows_is_named(port: int) -> None:
    x = np.ones((100_000, 4), np.float32)
    body = large_body(x)
    at = body.rindex(b"1.0")
    status, content = post(port, "any", body[:at] + b"1e39" + body[at + 3 :])
    assert status == 400
    error = json.loads(content)["error"]
    assert "1e+39 (element 399999)" in error
    assert "FP32" in error


def test_too_many_values_without_a_server() -> None:
    with pytest.raises(PayloadTooLarge):
        cut_lists(b"," * (MAX_VALUES + 1))


def test_commas_in_strings_are_no_values(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["," * 1000, '",",\\', "\\", "a,\n\u20ac" * 100] * 1000
    body = json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}).encode()
    assert len(body) > large_json.LARGE
    assert body.count(b",") > MAX_VALUES
    assert read(body) == [("x", "BYTES", (len(texts),), [t.encode() for t in texts])]
    status, content = post(port, "scale", body)
    assert status == 400  # what the model wants is another type
    assert "BYTES" in json.loads(content)["error"]
    # No step of it holds others up, however the strings look.
    steps, last = [], time.thread_time()

    def give_way() -> None:
        nonlocal last
        now = time.thread_time()
        steps.append(now - last)
        last = now

    monkeypatch.setattr(large_json, "give_way", give_way)
    last = time.thread_time()
    for part in (b'",",', b"\\" * 7 + b',"', b",\\", b'"",', b","):
        large_json._has_more_commas(part * ((8 << 20) // len(part)), 1 << 40)
    assert len(steps) > 32
    assert max(steps) < STEP_S, sorted(steps)[-5:]


@pytest.mark.parametrize("seed", range(3))
def test_commas_outside_of_strings_are_counted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(large_json, "give_way", lambda: None)
    for _ in range(400):
        texts = ["".join(rng.choices('",\\a{', k=rng.randint(0, 9))) for _ in range(rng.randint(1, 20))]
        lists = [[text] * rng.randint(0, 4) for text in texts]
        body = json.dumps(lists).encode()
        commas = json.dumps([[""] * len(part) for part in lists]).count(",")
        monkeypatch.setattr(large_json, "STEP", rng.randint(1, 40))
        assert not large_json._has_more_commas(body, commas)
        assert not commas or large_json._has_more_commas(body, commas - 1)
