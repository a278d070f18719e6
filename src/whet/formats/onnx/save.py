"""Writing a model to disk: streamed, published whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import onnx

from whet.errors import Fail, InvalidArgument, NoSuchFile
from whet.formats.onnx.wire import LIFT_BYTES, Payloads, restore
from whet.formats.onnx.write import Writer
from whet.graph import Model

EMBEDDED_BYTES = (1 << 31) - 1
"""Largest file that protobuf readers take; a larger model keeps its weights in a second file."""
ALIGNMENT = 4096
"""External tensors begin at multiples of this many bytes (a page, so that each can be mapped by itself)."""


def save_model(
    model: Model,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    external_data: bool | None = None,
    embedded_bytes: int = EMBEDDED_BYTES,
    data_name: str | None = None,
    data_min_bytes: int = LIFT_BYTES,
) -> None:
    """Write the model to `path` (see `to_proto` for the opset).

    With `external_data`, and by default for models past `embedded_bytes` (2 GB), tensors of `data_min_bytes` and more
    go to a file beside it, called `data_name` or else `<path>.data`. Files appear whole under their names, or not at
    all; weights are streamed, so no second copy of them is made. A model may be saved over the file that it was loaded
    from.

    Raises InvalidGraph (an operator that the opset lacks), InvalidArgument (too large to embed, or a `data_name` that
    is no name of its own), NoSuchFile (the folder cannot be written) and Fail (the disk is full, or the like).
    """
    target = os.path.abspath(os.fspath(path))
    folder, own_name = os.path.split(target)
    location = data_name if data_name is not None else f"{own_name}.data"
    if os.path.basename(location) != location or location in ("", own_name, ".", ".."):
        raise InvalidArgument("external data lies in a file beside the model", file=target, value=location)
    payloads = Payloads()
    proto = Writer(model, opset, payloads).model()
    rest = proto.SerializeToString()
    total = len(rest) + sum(len(p) for p in payloads.items)
    # Each lifted payload adds a few bytes of framing around it.
    too_large = total + 64 * len(payloads.items) > embedded_bytes
    if external_data is False and too_large:
        raise InvalidArgument(
            "the model is too large for one file",
            file=target,
            found=f"{total} bytes",
            expected=f"at most {embedded_bytes}",
        )
    if not (external_data or too_large):
        with _publish(target) as (file,):
            _write_message(file, rest, payloads)
        return
    with _publish(os.path.join(folder, location), target) as (data_file, file):
        _write_external(data_file, proto, payloads, location, data_min_bytes)
        # Tensors inside node attributes stay embedded, as readers expect.
        _write_message(file, proto.SerializeToString(), payloads)


def _write_external(file: BinaryIO, proto: onnx.ModelProto, payloads: Payloads, location: str, min_bytes: int) -> None:
    offset = 0
    for tensor in proto.graph.initializer:
        if not tensor.HasField("raw_data"):
            continue
        payload = payloads.find(tensor.raw_data)
        if payload is None:
            payload = memoryview(tensor.raw_data)
        if len(payload) < max(min_bytes, 1):
            continue
        padding = -offset % ALIGNMENT
        file.write(b"\0" * padding)
        offset += padding
        file.write(payload)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", str(offset)), ("length", str(len(payload)))):
            tensor.external_data.add(key=key, value=text)
        offset += len(payload)


def _write_message(file: BinaryIO, message: bytes, payloads: Payloads) -> None:
    pieces, _ = restore(memoryview(message), payloads)
    for piece in pieces:
        file.write(piece)


@contextmanager
def _publish(*targets: str) -> Iterator[list[BinaryIO]]:
    """Files that take their names, in order, when the block ends well, and vanish otherwise."""
    opened: list[tuple[str, BinaryIO]] = []
    try:
        for target in targets:
            opened.append(_open_beside(target))
        yield [file for _, file in opened]
        for _, file in opened:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for (temporary, _), target in zip(opened, targets, strict=True):
            os.replace(temporary, target)
    except BaseException as error:
        for temporary, file in opened:
            _discard(temporary, file)
        if isinstance(error, OSError):
            raise Fail(f"cannot write the model: {error.strerror}", file=targets[-1]) from error
        raise


def _open_beside(target: str) -> tuple[str, BinaryIO]:
    temporary = os.path.join(os.path.dirname(target), f".whet-{uuid.uuid4().hex}.part")
    try:
        # Opened exclusively and with plain permissions, so that the result is like any file the user makes.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise NoSuchFile(f"cannot write a model here: {error.strerror}", file=target) from error
    return temporary, os.fdopen(descriptor, "wb")


def _discard(temporary: str, file: BinaryIO) -> None:
    # Closing flushes what is buffered, which fails again on a full disk; the file goes all the same.
    with suppress(OSError):
        file.close()
    with suppress(FileNotFoundError):
        os.unlink(temporary)
