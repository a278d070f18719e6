"""The three gRPC messages that a load generator needs, as bytes.

Requests are encoded once and sent many times, and answers are not looked into, so protobuf's classes would only add
their registration. Encoding: https://protobuf.dev/programming-guides/encoding/; fields: the published
`grpc_service.proto` of KServe v2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from whet.errors import InvalidArgument

INFER = "/inference.GRPCInferenceService/ModelInfer"
METADATA = "/inference.GRPCInferenceService/ModelMetadata"


def varint(value: int) -> bytes:
    """A non-negative number, seven bits a byte, lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def metadata_request(model: str) -> bytes:
    """ModelMetadataRequest."""
    return field(1, model.encode())


def infer_request(model: str, tensors: Sequence[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    """ModelInferRequest with raw tensors: name, datatype, shape, bytes."""
    parts = [field(1, model.encode())]
    for name, datatype, shape, _ in tensors:
        packed = b"".join(varint(extent) for extent in shape)
        parts.append(field(5, field(1, name.encode()) + field(2, datatype.encode()) + field(3, packed)))
    parts += [field(7, content) for *_, content in tensors]
    return b"".join(parts)


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        key, at = _read_varint(content, at)
        if key & 7 == 0:
            value, at = _read_varint(content, at)
            yield key >> 3, value
        elif key & 7 == 2:
            size, at = _read_varint(content, at)
            yield key >> 3, content[at : at + size]
            at += size
        else:
            raise InvalidArgument(
                "the server's metadata has a field of an unknown kind", found=key & 7, expected="0, 2"
            )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def metadata_inputs(content: bytes) -> list[tuple[str, str, list[int]]]:
    """The inputs that a ModelMetadataResponse lists: name, datatype, shape."""
    found = []
    for number, value in _fields(content):
        if number != 4 or not isinstance(value, bytes):
            continue
        name = datatype = ""
        shape: list[int] = []
        for inner, part in _fields(value):
            if isinstance(part, int):
                shape += [_signed(part)] if inner == 3 else []
            elif inner == 1:
                name = part.decode()
            elif inner == 2:
                datatype = part.decode()
            elif inner == 3:
                at = 0
                while at < len(part):
                    extent, at = _read_varint(part, at)
                    shape.append(_signed(extent))
        found.append((name, datatype, shape))
    return found
