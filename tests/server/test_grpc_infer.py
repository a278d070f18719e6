"""ModelInfer and ModelStreamInfer beyond the simple case: types, parameters, errors, deadlines, cancellation, order."""

from __future__ import annotations

import queue
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.conftest import BODY_BYTES
from tests.server.grpc_models import RAW_ONLY, TYPES, random_tensor
from tests.server.options_server import OptionsServer
from whet.server.protocol.messages import message

triton = pytest.importorskip("tritonclient.grpc")
utils = pytest.importorskip("tritonclient.utils")

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
StreamResponse = message("inference.ModelStreamInferResponse")
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def server(grpc_server: OptionsServer) -> OptionsServer:
    return grpc_server


@pytest.fixture(scope="module")
def client(server: OptionsServer) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc) as found:
        yield found


@pytest.fixture
def channel(server: OptionsServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as found:
        yield found


def raw_infer(channel: grpc.Channel) -> Callable[..., Any]:
    return channel.unary_unary(INFER, Request.SerializeToString, Response.FromString)


def scale_request(x: Any, **fields: Any) -> Any:
    x = np.asarray(x, np.float32)
    request = Request(model_name="scale", raw_input_contents=[x.tobytes()], **fields)
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request


def slow_request(steps: int, **fields: Any) -> Any:
    request = Request(model_name="slow", raw_input_contents=[struct.pack("<q", steps)], **fields)
    request.inputs.add(name="steps", datatype="INT64", shape=[1])
    return request


def slow_failures(client: Any) -> int:
    return int(client.get_inference_statistics("slow").model_stats[0].inference_stats.fail.count)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def check_echo(found: dict[str, Any], sent: dict[str, Any]) -> None:
    for name, x in sent.items():
        if name == "BYTES":
            assert found[name].tolist() == [[e.encode() for e in row] for row in x.tolist()]
        else:
            np.testing.assert_array_equal(found[name], x, strict=True)


def test_every_type_in_raw_bytes(client: Any) -> None:
    rng = np.random.default_rng(4)
    sent = {name: random_tensor(name, (3, 5), rng) for name, _, _ in TYPES}
    tensors = []
    for name, x in sent.items():
        tensors.append(triton.InferInput(f"in_{name}", x.shape, name))
        tensors[-1].set_data_from_numpy(x)
    answer = client.infer("echo", tensors)
    check_echo({name: answer.as_numpy(f"out_{name}") for name in sent}, sent)


# Types that have a field of their own; the other integers travel in int_contents and uint_contents.
FIELDS = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
          "INT64": "int64_contents", "UINT64": "uint64_contents"}  # fmt: skip


def test_every_type_in_fields(channel: grpc.Channel) -> None:
    rng = np.random.default_rng(7)
    sent = {name: random_tensor(name, (2, 7), rng) for name, _, _ in TYPES if name not in RAW_ONLY}
    request = Request(model_name="plain")
    for name, x in sent.items():
        entry = request.inputs.add(name=f"in_{name}", datatype=name, shape=x.shape)
        field = FIELDS.get(name) or ("uint_contents" if name.startswith("U") else "int_contents")
        values = x.reshape(-1).tolist()
        getattr(entry.contents, field).extend([v.encode() for v in values] if name == "BYTES" else values)
    answer = triton.InferResult(raw_infer(channel)(request))
    check_echo({name: answer.as_numpy(f"out_{name}") for name in sent}, sent)


@pytest.mark.parametrize("name", RAW_ONLY)
def test_types_without_a_field(channel: grpc.Channel, name: str) -> None:
    request = Request(model_name="echo")
    request.inputs.add(name=f"in_{name}", datatype=name, shape=[1, 1]).contents.fp32_contents.append(1)
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(channel)(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{name} travels as raw_input_contents only" in caught.value.details()


def test_contents(channel: grpc.Channel) -> None:
    request = Request(model_name="scale")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, -4.5])
    answer = raw_infer(channel)(request)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [3, 5, 7, -8]
    assert list(answer.outputs[0].shape) == [1, 4]


def test_classification(client: Any) -> None:
    x = np.float32([[-1, -3, -2], [5, 6, 4]])
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    answer = client.infer("scores", [tensor], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    assert answer.as_numpy("y").tolist() == [
        [b"3.000000:1:birch", b"2.000000:2:cedar"],
        [b"-4.000000:2:cedar", b"-5.000000:0:ash"],
    ]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Any, algorithm: str) -> None:
    x = np.random.default_rng(5).integers(0, 3, (32, 4)).astype(np.float32)
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    found = client.infer("scale", [tensor], compression_algorithm=algorithm)
    np.testing.assert_array_equal(found.as_numpy("y"), 2 * x + 1)


def _wrong(change: Callable[[Any], Any]) -> Any:
    request = scale_request([[1, 2, 3, 4]])
    change(request)
    return request


def _parameter(name: str, **value: Any) -> Any:
    return _wrong(lambda r: r.parameters[name].MergeFrom(message("inference.InferParameter")(**value)))


WRONG: tuple[tuple[str, Any, str, str], ...] = (
    ("model", _wrong(lambda r: setattr(r, "model_name", "scal")), "NOT_FOUND", "'scale'"),
    ("no model", _wrong(lambda r: setattr(r, "model_name", "")), "NOT_FOUND", ""),
    ("version", _wrong(lambda r: setattr(r, "model_version", "18446744073709551616")), "NOT_FOUND", "184467"),
    ("version -1", _wrong(lambda r: setattr(r, "model_version", "-1")), "NOT_FOUND", "-1"),
    ("name with ..", _wrong(lambda r: setattr(r, "model_name", "../scale")), "NOT_FOUND", ".."),
    ("name with NUL", _wrong(lambda r: setattr(r, "model_name", "scale\0")), "NOT_FOUND", "scale\\x00"),
    ("name of 10 kB", _wrong(lambda r: setattr(r, "model_name", "a" * 10_000)), "NOT_FOUND", "more characters"),
    ("input", _wrong(lambda r: setattr(r.inputs[0], "name", "z")), "INVALID_ARGUMENT", "z"),
    ("input twice", _wrong(lambda r: (r.inputs.extend(list(r.inputs)), r.raw_input_contents.extend([bytes(16)]))),
     "INVALID_ARGUMENT", "twice"),
    ("no input", Request(model_name="scale"), "INVALID_ARGUMENT", "missing"),
    ("datatype", _wrong(lambda r: setattr(r.inputs[0], "datatype", "FP33")), "INVALID_ARGUMENT", "FP33"),
    ("other datatype", _wrong(lambda r: setattr(r.inputs[0], "datatype", "INT32")), "INVALID_ARGUMENT", "INT32"),
    ("shape", _wrong(lambda r: r.inputs[0].shape.append(2)), "INVALID_ARGUMENT", "bytes"),
    ("negative", _wrong(lambda r: r.inputs[0].shape.__setitem__(0, -1)), "INVALID_ARGUMENT", "-1"),
    ("huge", _wrong(lambda r: r.inputs[0].shape.__setitem__(0, 1 << 62)), "RESOURCE_EXHAUSTED", "4611686"),
    ("overflow", _wrong(lambda r: r.inputs[0].shape.extend([1 << 32, 1 << 32])), "RESOURCE_EXHAUSTED", "elements"),
    ("huge and empty", _wrong(lambda r: r.inputs[0].shape.extend([0, 1 << 40])), "RESOURCE_EXHAUSTED", "elements"),
    ("33 dims", _wrong(lambda r: r.inputs[0].shape.extend([1] * 31)), "INVALID_ARGUMENT", "dimensions"),
    ("raw too short", _wrong(lambda r: r.raw_input_contents.__setitem__(0, b"123")), "INVALID_ARGUMENT", "3 bytes"),
    ("raw for no input", _wrong(lambda r: r.raw_input_contents.append(b"")), "INVALID_ARGUMENT", "2 of 1"),
    ("both", _wrong(lambda r: r.inputs[0].contents.fp32_contents.append(1)), "INVALID_ARGUMENT", "raw"),
    ("rows", scale_request(np.zeros((33, 4))), "INVALID_ARGUMENT", "33"),
    ("no rows", scale_request(np.zeros((0, 4))), "INVALID_ARGUMENT", "0"),
    ("output", _wrong(lambda r: r.outputs.add(name="why")), "INVALID_ARGUMENT", "why"),
    ("output twice", _wrong(lambda r: [r.outputs.add(name="y") for _ in "ab"]), "INVALID_ARGUMENT", "twice"),
    ("priority", _parameter("priority", string_param="high"), "INVALID_ARGUMENT", "priority"),
    ("negative timeout", _parameter("timeout", int64_param=-5), "INVALID_ARGUMENT", "timeout"),
    ("sequence_start", _parameter("sequence_start", bool_param=True), "INVALID_ARGUMENT", "sequence_id"),
    ("no value", _parameter("mine"), "INVALID_ARGUMENT", "mine"),
)  # fmt: skip


@pytest.mark.parametrize(("request_", "code", "part"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_requests(channel: grpc.Channel, request_: Any, code: str, part: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(channel)(request_, timeout=10)
    assert (caught.value.code().name, part in caught.value.details()) == (code, True), caught.value.details()


def test_contents_that_do_not_fit_their_type(channel: grpc.Channel) -> None:
    request = Request(model_name="echo")
    request.inputs.add(name="in_INT8", datatype="INT8", shape=[1, 1]).contents.int_contents.append(300)
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(channel)(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "INT8" in caught.value.details()


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    send = channel.unary_unary(INFER)
    for content in (b"\xff" * 20, b"\x0a\x05ab", b"\x0a\x02\xff\xfe"):
        with pytest.raises(grpc.RpcError) as caught:
            send(content, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_parameters_that_the_server_does_not_know_are_left_alone(client: Any) -> None:
    x = np.float32([[1, 2, 3, 4]])
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    found = client.infer("scale", [tensor], priority=1, timeout=5_000_000, parameters={"mine": 3.5, "other": "a"})
    np.testing.assert_array_equal(found.as_numpy("y"), 2 * x + 1)


def test_a_deadline_ends_the_run(client: Any, channel: grpc.Channel) -> None:
    before = slow_failures(client)
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(channel)(slow_request(1 << 40), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: slow_failures(client) == before + 1)
    # The only instance is free again.
    assert raw_infer(channel)(slow_request(3), timeout=5).raw_output_contents[0] == struct.pack("<q", 3)


def test_the_parameter_timeout_ends_the_run(channel: grpc.Channel) -> None:
    request = slow_request(1 << 40)
    request.parameters["timeout"].int64_param = 200_000
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(channel)(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "time" in caught.value.details()
    assert raw_infer(channel)(slow_request(4), timeout=5).raw_output_contents[0] == struct.pack("<q", 4)


def test_cancelling_ends_the_run(client: Any, channel: grpc.Channel) -> None:
    before = slow_failures(client)
    running = raw_infer(channel).future(slow_request(1 << 40))
    waiting = raw_infer(channel).future(slow_request(5))
    running.cancel()
    assert waiting.result(timeout=10).raw_output_contents[0] == struct.pack("<q", 5)
    until(lambda: slow_failures(client) <= before + 1)


def test_a_client_that_goes_away_ends_its_run(server: OptionsServer, channel: grpc.Channel) -> None:
    gone = grpc.insecure_channel(server.grpc)
    stream = gone.stream_stream(STREAM, Request.SerializeToString, StreamResponse.FromString)
    requests: queue.Queue[Any] = queue.Queue()
    for request in (scale_request([[1, 1, 1, 1]]), slow_request(1 << 40)):
        requests.put(request)
    call = stream(iter(requests.get, None))
    assert next(call).error_message == ""
    unary = raw_infer(gone).future(slow_request(1 << 40))
    gone.close()
    requests.put(None)
    assert unary.code() is grpc.StatusCode.CANCELLED
    assert raw_infer(channel)(slow_request(6), timeout=10).raw_output_contents[0] == struct.pack("<q", 6)


def test_a_stream_answers_in_order_and_goes_on_after_errors(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(STREAM, Request.SerializeToString, StreamResponse.FromString)
    bad = scale_request([[1, 2, 3, 4]], id="bad")
    bad.inputs[0].name = "z"
    enabled = scale_request([[5, 5, 5, 5]], id="last")
    enabled.parameters["triton_enable_empty_final_response"].bool_param = True
    sent = [slow_request(2000, id="slow"), bad, scale_request([[0, 0, 0, 0]], id="quick"), enabled]
    found = list(stream(iter(sent), timeout=20))
    assert [f.infer_response.id for f in found] == ["slow", "bad", "quick", "last"]
    assert [bool(f.error_message) for f in found] == [False, True, False, False]
    assert "'scale'" in found[1].error_message
    assert found[1].infer_response.model_name == "scale"
    # Each is the one and final answer to its request, so that no empty one follows.
    assert all(f.infer_response.parameters["triton_final_response"].bool_param for f in found)
    assert np.frombuffer(found[3].infer_response.raw_output_contents[0], np.float32).tolist() == [11] * 4


def test_a_stream_may_end_at_the_first_error(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(STREAM, Request.SerializeToString, StreamResponse.FromString)
    sent = [scale_request([[1, 1, 1, 1]]), Request(model_name="nothing"), scale_request([[2, 2, 2, 2]])]
    answers = stream(iter(sent), metadata=[("triton_grpc_error", "true")], timeout=20)
    assert np.frombuffer(next(answers).infer_response.raw_output_contents[0], np.float32).tolist() == [3] * 4
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_bytes_that_are_no_message_in_a_stream(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(STREAM, None, StreamResponse.FromString)
    good = scale_request([[1, 1, 1, 1]]).SerializeToString()
    found = list(stream(iter([b"\xff\xff", good]), timeout=10))
    assert "ModelInferRequest" in found[0].error_message
    assert found[1].error_message == ""
    assert len(found) == 2


def test_a_stream_of_many_requests(server: OptionsServer) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    rng = np.random.default_rng(6)
    sent = [rng.standard_normal((1 + i % 4, 4), np.float32) for i in range(600)]
    with grpc.insecure_channel(server.grpc) as channel:
        stream = channel.stream_stream(STREAM, Request.SerializeToString, StreamResponse.FromString)
        for answer in stream(scale_request(x) for x in sent):
            answers.put(answer)
    for x in sent:
        raw = answers.get(timeout=1).infer_response.raw_output_contents[0]
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(x.shape), 2 * x + 1)
    assert answers.empty()


def test_a_cancelled_stream_ends_its_runs(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(STREAM, Request.SerializeToString, StreamResponse.FromString)
    requests: queue.Queue[Any] = queue.Queue()
    requests.put(scale_request([[1, 1, 1, 1]]))
    requests.put(slow_request(1 << 40))
    call = stream(iter(requests.get, None))
    assert next(call).error_message == ""
    call.cancel()
    requests.put(None)
    assert raw_infer(channel)(slow_request(7), timeout=10).raw_output_contents[0] == struct.pack("<q", 7)


def test_a_message_over_the_limit(channel: grpc.Channel) -> None:
    for content, compression in (
        (bytes(BODY_BYTES + 1), grpc.Compression.NoCompression),
        (bytes(60 * BODY_BYTES), grpc.Compression.Gzip),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(content, timeout=20, compression=compression)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()
