"""Random and mutated requests for the gRPC server: it may refuse them, and must not fail, crash or hang.

usage: python -m tests.server.grpc_fuzz ADDRESS [SECONDS] [SEED]
The server is one that serves `tests.server.grpc_models.make_repository` with the administrative calls closed.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

from whet.server.protocol.messages import message, service_methods

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
CALL_S = 10.0

# What a server answers to a request that is wrong. The others are faults of the server.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "PERMISSION_DENIED"}
EXPECTED_WITH_DEADLINES = {"DEADLINE_EXCEEDED", "CANCELLED"}

NAMES = (
    "scale",
    "echo",
    "plain",
    "scores",
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
        while time.monotonic() < end:
            path, request, answer, streams = fuzzer.random.choice(infer if fuzzer.random.random() < 0.7 else methods)
            contents = [fuzzer.content(request) for _ in range(fuzzer.random.randrange(1, 8) if streams else 1)]
            code, details = _call(channel, path, contents, answer, streams)
            counts[code] += 1
            if code in EXPECTED_WITH_DEADLINES:
                # A `timeout` of microseconds in the request may pass; the client's own of ten seconds may not.
                assert b"timeout" in contents[0], (seed, path, contents, details)
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


if __name__ == "__main__":
    given = sys.argv[1:]
    print(fuzz(given[0], float(given[1]) if len(given) > 1 else 60, int(given[2]) if len(given) > 2 else 0))
