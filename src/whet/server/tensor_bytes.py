"""Tensors in the protocol's binary form: little-endian elements in row-major order; BYTES with their lengths before."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from whet.errors import InvalidArgument
from whet.server.datatypes import BYTES, Datatype
from whet.server.errors import PayloadTooLarge
from whet.server.request import Array, OutputTensor

MAX_DIMS = 32
MAX_ELEMENTS = 1 << 40


def check_shape(given: Sequence[object], name: str) -> tuple[int, ...]:
    """A tensor's shape. Raises InvalidArgument for extents that are negative or no whole numbers."""
    if len(given) > MAX_DIMS:
        raise InvalidArgument("the tensor has too many dimensions", value=name, found=len(given), expected=MAX_DIMS)
    size = 1
    extents: list[int] = []
    for extent in given:
        if type(extent) is not int or extent < 0:
            raise InvalidArgument("an extent is a whole number that is not negative", value=name, found=extent)
        # numpy's limit leaves extents of 0 out, so that [0, 2**40, 2**40] is refused here too.
        size *= extent or 1
        extents.append(extent)
    if size > MAX_ELEMENTS or max(extents, default=0) > MAX_ELEMENTS:
        raise PayloadTooLarge("the tensor has too many elements", value=name, found=list(given), expected=MAX_ELEMENTS)
    return tuple(extents)


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    count = 1
    for extent in shape:
        count *= extent
    return count


def from_bytes(raw: memoryview | bytes, kind: Datatype, shape: tuple[int, ...], name: str) -> Array:
    """The tensor of these bytes; it shares their memory. Raises InvalidArgument where they do not fit the shape."""
    count = elements(shape)
    if kind is not BYTES:
        expected = count * kind.element_bytes
        if len(raw) != expected:
            raise InvalidArgument(
                "the binary data has the wrong size", value=name, found=f"{len(raw)} bytes",
                expected=f"{expected} bytes for {kind.name} {list(shape)}",
            )  # fmt: skip
        return np.frombuffer(raw, kind.dtype.numpy).reshape(shape)
    if count > len(raw) // 4:
        raise InvalidArgument(
            "the binary data is too short for its elements", value=name, found=f"{len(raw)} bytes",
            expected=f"{count} elements",
        )  # fmt: skip
    out = np.empty(count, object)
    at = 0
    for index in range(count):
        if len(raw) - at < 4:
            raise InvalidArgument("a BYTES element has no length", value=name, found=f"element {index}")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if length > len(raw) - at:
            found = f"element {index}: {length} bytes"
            raise InvalidArgument("a BYTES element passes the end of the data", value=name, found=found)
        out[index] = bytes(raw[at : at + length])
        at += length
    if at != len(raw):
        raise InvalidArgument("bytes are left over behind the last element", value=name, found=f"{len(raw) - at} bytes")
    return out.reshape(shape)


def to_bytes(tensor: OutputTensor) -> bytes:
    """The bytes of a tensor."""
    if tensor.datatype is not BYTES:
        return tensor.array.tobytes()
    out = bytearray()
    for element in tensor.array.reshape(-1):
        content = element if isinstance(element, bytes) else str(element).encode()
        out += struct.pack("<I", len(content))
        out += content
    return bytes(out)
