"""Protobuf's wire format, as far as it takes to lift tensors' raw data out of a model and to put it back.

A model's weights are almost all of its bytes. Lifting them out first lets protobuf parse only the small rest, lets
weights stay where they are (in the mapped file), and lets a model be written without a second copy of its weights.
Each lifted payload leaves a short token in its place: the random key of this call and a number.

Wire format: https://protobuf.dev/programming-guides/encoding. Field numbers: onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from whet.errors import InvalidProtobuf

LIFT_BYTES = 1024
"""Raw data of fewer bytes than this stays in the message."""
MAX_DEPTH = 100
"""Nesting at which protobuf itself gives up."""
KEY_BYTES = 16
TOKEN_BYTES = KEY_BYTES + 8

Chunks = list[memoryview]
Replace = Callable[[memoryview], memoryview | None]

# Which fields of each message may hold tensors, and what kind of message stands there.
_MODEL = {7: "graph", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_FUNCTION = {7: "node", 11: "attribute"}
_NODE = {5: "attribute"}
_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_SPARSE = {1: "tensor", 2: "tensor"}
_RAW_DATA = 9
_CHILDREN: dict[str, dict[int, str]] = {
    "model": _MODEL,
    "graph": _GRAPH,
    "function": _FUNCTION,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "sparse": _SPARSE,
    "tensor": {},
}


class Payloads:
    """The payloads lifted out of one model, found again by the token that stands in their place."""

    def __init__(self) -> None:
        self.key = os.urandom(KEY_BYTES)
        self.items: list[memoryview] = []

    def add(self, payload: memoryview) -> bytes:
        """Keep a payload; returns the token that stands for it."""
        self.items.append(payload)
        return self.key + (len(self.items) - 1).to_bytes(8, "little")

    def find(self, raw: bytes | memoryview) -> memoryview | None:
        """The payload that `raw` is the token of, or None when it is no token of ours."""
        if len(raw) != TOKEN_BYTES or bytes(raw[:KEY_BYTES]) != self.key:
            return None
        index = int.from_bytes(raw[KEY_BYTES:], "little")
        return self.items[index] if index < len(self.items) else None


def lift(data: memoryview, file: str | None) -> tuple[bytes, Payloads]:
    """A ModelProto's bytes without long raw data, and the lifted payloads as views of `data`.

    Raises InvalidProtobuf with the offset where the bytes stop being a well-formed message.
    """
    payloads = Payloads()

    def replace(raw: memoryview) -> memoryview | None:
        return memoryview(payloads.add(raw)) if len(raw) >= LIFT_BYTES else None

    chunks, size = _rewrite(data, 0, len(data), "model", 0, replace, LIFT_BYTES, file)
    return (bytes(data) if size < 0 else b"".join(chunks)), payloads


def restore(data: memoryview, payloads: Payloads) -> tuple[Sequence[memoryview], int]:
    """The pieces of a ModelProto with every token replaced by its payload, and their total size in bytes."""
    chunks, size = _rewrite(data, 0, len(data), "model", 0, payloads.find, TOKEN_BYTES, None)
    return ([data], len(data)) if size < 0 else (chunks, size)


def _rewrite(
    data: memoryview, start: int, end: int, kind: str, depth: int, replace: Replace, least: int, file: str | None
) -> tuple[Chunks, int]:
    """The pieces of one message after replacement and their total size; size -1 and no pieces when nothing changed."""
    if depth > MAX_DEPTH:
        raise InvalidProtobuf(
            "messages are nested too deeply",
            file=file,
            found=f"more than {MAX_DEPTH} levels at byte {start}",
            expected="at most protobuf's own limit",
        )
    children = _CHILDREN[kind]
    is_tensor = kind == "tensor"
    chunks: Chunks = []
    size = 0
    copied = start
    position = start
    while position < end:
        field_start = position
        tag = data[position]
        position += 1
        if tag & 0x80:
            tag, position = _varint(data, field_start, end, file)
        wire = tag & 7
        if wire == 2:
            if position >= end:
                raise _truncated(field_start, file)
            length = data[position]
            if length & 0x80:
                length, position = _varint(data, position, end, file)
            else:
                position += 1
            body = position
            position += length
            if position > end:
                raise _truncated(field_start, file, length, end - body)
            if length < least:
                continue
            field = tag >> 3
            if is_tensor:
                if field != _RAW_DATA:
                    continue
                replacement = replace(data[body:position])
                if replacement is None:
                    continue
                pieces, piece_size = [replacement], len(replacement)
            else:
                child = children.get(field)
                if child is None:
                    continue
                pieces, piece_size = _rewrite(data, body, position, child, depth + 1, replace, least, file)
                if piece_size < 0:
                    continue
            header = _encode(tag) + _encode(piece_size)
            chunks.append(data[copied:field_start])
            chunks.append(memoryview(header))
            chunks.extend(pieces)
            size += field_start - copied + len(header) + piece_size
            copied = position
        elif wire == 0:
            _, position = _varint(data, position, end, file)
        elif wire == 5:
            position += 4
        elif wire == 1:
            position += 8
        else:
            raise InvalidProtobuf(
                "the bytes are not an ONNX model", file=file, found=f"wire type {wire} at byte {field_start}"
            )
        if tag < 8:
            raise InvalidProtobuf("the bytes are not an ONNX model", file=file, found=f"field 0 at byte {field_start}")
    if position > end:
        raise _truncated(end, file)
    if not chunks:
        return [], -1
    chunks.append(data[copied:end])
    return chunks, size + end - copied


def _varint(data: memoryview, position: int, end: int, file: str | None) -> tuple[int, int]:
    value = shift = 0
    start = position
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise InvalidProtobuf(
                "the bytes are not an ONNX model", file=file, found=f"an integer of over 10 bytes at byte {start}"
            )
    raise _truncated(start, file)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _truncated(position: int, file: str | None, length: int | None = None, left: int = 0) -> InvalidProtobuf:
    found = f"the data ends inside the field at byte {position}"
    if length is not None:
        found = f"the field at byte {position} claims {length} bytes, {left} are left"
    return InvalidProtobuf(
        "the model is truncated or is not an ONNX model", file=file, found=found, hint="Fetch or export it again."
    )
