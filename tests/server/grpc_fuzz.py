"""Random and mutated requests for the gRPC server: it may refuse them, and must not fail, crash or hang.

usage: python -m tests.server.grpc_fuzz [--seconds 600] [--seed 0]
Starts a server of `tests.server.grpc_models.make_repository` with the administrative calls closed. Between the wrong
requests there are right ones, whose answers are checked, and the server has to stay ready and as small as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from whet.server.protocol.messages import message, service_methods

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
CALL_S = 60.0
CHECK_EVERY = 40
"""Calls between two checks of right requests."""
GROWTH_BYTES = 64 << 20
"""What the server's memory may grow by after the first tenth of a run."""

# What a server answers to a request that is wrong. The others are faults of the server.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "PERMISSION_DENIED"}
UNAVAILABLE = "does not serve"
"""Part of what is said of the model that is broken."""
EXPECTED_WITH_DEADLINES = {"DEADLINE_EXCEEDED", "CANCELLED"}

NAMES = (
    "scale",
    "echo",
    "plain",
    "scores",
    "broken",
    "x",
    "y",
    "in_BOOL",
    "in_BYTES",
    "out_BYTES",
    "",
    "..",
    "a/b",
    "\0",
    "é" * 9,
)
WORDS = ("FP32", "FP16", "BF16", "BYTES", "BOOL", "INT64", "UINT8", "1", "-1", "0", "18446744073709551616", "id", "%2f")
PARAMETERS = (
    "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "classification", "binary_data",
    "shared_memory_region", "triton_enable_empty_final_response", "config", "unload_dependents", "other",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 8, 33, -1, 255, 1 << 31, (1 << 31) - 1, (1 << 40) + 1, (1 << 63) - 1, -(1 << 63), 1 << 63)
BLOBS = (b"", b"\0" * 16, b"\1\0\0\0a", b"\xff" * 16, b"\xff\xff\xff\xff", b"\0\0\xc0\x7f" * 4)


class Fuzzer:
    """Messages of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def message(self, kind: Any, depth: int = 0) -> Any:
        """A message with random fields, which are often the ones that a server looks at."""
        found = kind()
        for field in found.DESCRIPTOR.fields:
            if self.random.random() < 0.35 + 0.1 * depth:
                continue
            self._fill(found, field, depth)
        return found

    def _fill(self, found: Any, field: Any, depth: int) -> None:
        choose = self.random
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            target = getattr(found, field.name)
            for _ in range(choose.randrange(3)):
                one = target[choose.choice(PARAMETERS)]
                one.CopyFrom(self.message(type(one), 4))
        elif field.is_repeated:
            target = getattr(found, field.name)
            for _ in range(choose.choice((0, 1, 1, 1, 2, 4, 16))):
                if field.message_type is not None:
                    one = target.add()
                    one.CopyFrom(self.message(type(one), depth + 1))
                else:
                    self._append(target, field)
        elif field.message_type is not None:
            one = getattr(found, field.name)
            one.CopyFrom(self.message(type(one), depth + 1))
        else:
            with contextlib.suppress(ValueError):
                setattr(found, field.name, self._scalar(field))

    def _append(self, target: Any, field: Any) -> None:
        with contextlib.suppress(ValueError):
            target.append(self._scalar(field))

    def _scalar(self, field: Any) -> Any:
        choose = self.random
        match field.cpp_type:
            case field.CPPTYPE_STRING if field.type == field.TYPE_BYTES:
                return choose.choice(BLOBS) if choose.random() < 0.8 else choose.randbytes(choose.randrange(200))
            case field.CPPTYPE_STRING:
                return choose.choice(NAMES + WORDS) if choose.random() < 0.97 else "n" * 10_000
            case field.CPPTYPE_BOOL:
                return choose.random() < 0.5
            case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
                return choose.choice((0.0, 1.5, -1e30, float("nan"), float("inf")))
        return choose.choice(NUMBERS)

    def near_infer(self) -> Any:
        """A request that the server would answer, but for one change or none."""
        choose = self.random
        request = message("inference.ModelInferRequest")(model_name="scale")
        rows = choose.randrange(1, 4)
        request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
        request.raw_input_contents.append(choose.randbytes(rows * 16))
        other = self.message(message("inference.ModelInferRequest"))
        match choose.randrange(8):
            case 0:
                request.inputs[0].shape[choose.randrange(2)] = choose.choice(NUMBERS[:-1])
            case 1:
                request.raw_input_contents[0] = choose.choice(BLOBS)
            case 2:
                request.MergeFrom(other)
            case 3:
                request.parameters.MergeFrom(other.parameters)
            case 4:
                request.outputs.extend(other.outputs)
            case 5:
                request.inputs[0].datatype = choose.choice(WORDS)
            case 6:
                request.outputs.add(name="y").parameters["classification"].int64_param = choose.choice(NUMBERS[:-1])
        return request

    def content(self, kind: Any) -> bytes:
        """The bytes of a message; now and then some are changed, cut or put in."""
        is_infer = kind.DESCRIPTOR.name == "ModelInferRequest"
        found = self.near_infer() if is_infer and self.random.random() < 0.6 else self.message(kind)
        content = bytearray(found.SerializeToString())
        if content and self.random.random() < 0.3:
            for _ in range(self.random.randrange(1, 4)):
                at = self.random.randrange(len(content) + 1)
                match self.random.randrange(3):
                    case 0 if at < len(content):
                        content[at] ^= 1 << self.random.randrange(8)
                    case 1:
                        del content[at : at + self.random.randrange(1, 9)]
                    case _:
                        content[at:at] = self.random.randbytes(self.random.randrange(1, 9))
        return bytes(content)


def fuzz(address: str, seconds: float, seed: int) -> Counter[str]:
    """Call every method at random for a while; returns how often each status came. A fault is an AssertionError."""
    fuzzer = Fuzzer(seed)
    methods = [
        (f"/{service}/{name}", request, answer, streams)
        for service in (SERVICE, HEALTH)
        for name, (request, answer, streams, _) in service_methods(service).items()
    ]
    infer = [m for m in methods if m[0].endswith("Infer")]
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with grpc.insecure_channel(address) as channel:
        right = Right(channel, seed)
        while time.monotonic() < end:
            if counts.total() % CHECK_EVERY == 0:
                right.check()
            path, request, answer, streams = fuzzer.random.choice(infer if fuzzer.random.random() < 0.7 else methods)
            contents = [fuzzer.content(request) for _ in range(fuzzer.random.randrange(1, 8) if streams else 1)]
            code, details = _call(channel, path, contents, answer, streams)
            counts[code] += 1
            if code in EXPECTED_WITH_DEADLINES:
                # A `timeout` of microseconds in the request may pass; the client's own may not.
                assert b"timeout" in contents[0], (seed, path, contents, details)
            elif code == "UNAVAILABLE":
                assert UNAVAILABLE in details, (seed, path, contents, details)
                assert b"broken" in contents[0], (seed, path, contents, details)
            else:
                assert code in ALLOWED, (seed, path, contents, code, details)
    return counts


def _call(channel: grpc.Channel, path: str, contents: list[bytes], answer: Any, streams: bool) -> tuple[str, str]:
    try:
        if streams:
            answers = list(_stream(channel, path, contents, answer))
            assert len(answers) == len(contents), (path, contents, answers)
            for one in answers:
                assert "the server failed" not in one.error_message, (path, contents, one)
        else:
            channel.unary_unary(path, response_deserializer=answer.FromString)(contents[0], timeout=CALL_S)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def _stream(channel: grpc.Channel, path: str, contents: list[bytes], answer: Any) -> Iterator[Any]:
    call = channel.stream_stream(path, response_deserializer=answer.FromString)
    return call(iter(contents), timeout=CALL_S)  # type: ignore[no-any-return]


class Right:
    """Right requests, of few forms and with random elements: each answer must be its own."""

    def __init__(self, channel: grpc.Channel, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        request, answer = message("inference.ModelInferRequest"), message("inference.ModelInferResponse")
        self._infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", request.SerializeToString, answer.FromString)
        self._stream = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request.SerializeToString,
            message("inference.ModelStreamInferResponse").FromString,
        )
        ready = message("inference.ServerReadyResponse")
        self._ready = channel.unary_unary(f"/{SERVICE}/ServerReady", response_deserializer=ready.FromString)

    def check(self) -> None:
        """One of each; a wrong answer, or none, is an AssertionError or an RpcError."""
        assert self._ready(b"", timeout=CALL_S).ready
        for raw in (True, False):
            request, x = self._scale(raw)
            self._same(self._infer(request, timeout=CALL_S), x)
        made = [self._scale(True) for _ in range(3)]
        answers = list(self._stream(iter([r for r, _ in made]), timeout=CALL_S))
        for one, (_, x) in zip(answers, made, strict=True):
            assert not one.error_message, one
            self._same(one.infer_response, x)
        request = message("inference.ModelInferRequest")(model_name="slow")
        request.inputs.add(name="steps", datatype="INT64", shape=[1])
        request.raw_input_contents.append((1 << 40).to_bytes(8, "little"))
        late = self._infer.future(request, timeout=0.02)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED, late.code()

    def _scale(self, raw: bool) -> tuple[Any, Any]:
        x = self._rng.standard_normal((int(self._rng.integers(1, 4)), 4), np.float32)
        request = message("inference.ModelInferRequest")(model_name="scale")
        given = request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        if raw:
            request.raw_input_contents.append(x.tobytes())
        else:
            given.contents.fp32_contents.extend(x.reshape(-1).tolist())
        return request, x

    def _same(self, answer: Any, x: Any) -> None:
        (output,) = answer.outputs
        assert (output.name, list(output.shape)) == ("y", list(x.shape)), answer
        y = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(x.shape)
        np.testing.assert_array_equal(y, 2 * x + 1)


def long_run(seconds: float, seed: int) -> None:
    """Fuzz a server of its own, one seed after the other; print what was answered and how the server's memory went."""
    from tests.server.grpc_models import make_repository
    from tests.server.options_server import OptionsServer

    total: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        OptionsServer(make_repository(Path(folder) / "models"), strict_readiness=False) as server,
    ):
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        total += fuzz(server.grpc, seconds / 10, seed)
        before = process.memory_info().rss
        end = time.monotonic() + seconds * 0.9
        while time.monotonic() < end:
            seed += 1
            total += fuzz(server.grpc, min(30, max(1, end - time.monotonic())), seed)
            grown = process.memory_info().rss - before
            print(f"{total.total():9,} calls  {grown / 1e6:+7.1f} MB  {dict(total)}", flush=True)
            assert grown < GROWTH_BYTES, grown
        assert "Traceback" not in server.log, server.log


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    long_run(given.seconds, given.seed)
