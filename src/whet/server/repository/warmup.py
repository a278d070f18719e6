"""Runs that are made before a model is said to be ready: those that its configuration asks for, and the shapes that
an earlier load of it was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whet import dtypes
from whet.errors import InvalidArgument, NoSuchFile, ResourceExhausted, did_you_mean
from whet.server.datatypes import BYTES, Datatype
from whet.server.model_config import ModelConfig, Warmup, WarmupInput
from whet.server.request import Array
from whet.server.tensor_bytes import from_bytes
from whet.session.feeds import NodeArg
from whet.session.inference_session import InferenceSession
from whet.session.options import RunOptions

FOLDER = "warmup"
"""Where the files of warm-up data lie, in the model's folder."""
MAX_BYTES = 4 << 30
"""Most bytes of one input of a warm-up."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""A run's inputs with their shapes."""


def warm_up(
    session: InferenceSession, config: ModelConfig, folder: Path, seen: Iterable[Shapes] = (),
    options: RunOptions | None = None,
) -> int:  # fmt: skip
    """Make the runs of the configuration, and one for each of the shapes seen; returns how many there were.

    `options` are those of the runs, by which they may be stopped. Raises what a run of the configuration raises, with
    the warm-up named. Shapes that the model takes no more are left out.
    """
    runs = 0
    for warmup in config.warmups:
        feed = warmup_feed(config, warmup, session.get_inputs(), folder)
        for _ in range(warmup.count):
            session.run(None, feed, options)
            runs += 1
    for shapes in seen:
        again = _feed_of(shapes, session.get_inputs())
        if again is not None:
            session.run(None, again, options)
            runs += 1
    return runs


def warmup_feed(config: ModelConfig, warmup: Warmup, inputs: Sequence[NodeArg], folder: Path) -> dict[str, Array]:
    """The model's inputs for a warm-up. Those that the server fills itself (controls, states) are zeros.

    Raises InvalidArgument and NoSuchFile naming warm-up and input.
    """
    title = f"model {config.name!r}, warm-up {warmup.name!r}"
    rows = max(warmup.rows, 1) if config.max_batch_rows else 0
    if rows > config.max_batch_rows or (warmup.rows and not config.max_batch_rows):
        raise InvalidArgument(
            f"{title}: batch_size is not in the model's range", found=warmup.rows, expected=config.max_batch_rows
        )
    known = {t.name: t for t in config.inputs}
    args = {a.name: a for a in inputs}
    feed: dict[str, Array] = {}
    for entry in warmup.inputs:
        if entry.name not in args:
            raise InvalidArgument(
                f"{title}: the model has no such input", value=entry.name, hint=did_you_mean(entry.name, args)
            )
        tensor = known.get(entry.name)
        if tensor is not None and tensor.datatype is not entry.datatype:
            raise InvalidArgument(
                f"{title}: the type of an input is not the model's", value=entry.name,
                found=entry.datatype.config_name, expected=tensor.datatype.config_name,
            )  # fmt: skip
        array = _tensor(title, entry, rows, folder)
        if tensor is not None and tensor.reshape is not None:
            array = array.reshape((rows, *tensor.reshape) if rows else tensor.reshape)
        feed[entry.name] = array
    optional = {t.name for t in config.inputs if t.is_optional}
    for name, arg in args.items():
        if name in feed or name in optional:
            continue
        if name in known:
            raise InvalidArgument(f"{title}: an input is missing", value=name)
        shape = [e if isinstance(e, int) else 1 for e in arg.shape]
        if rows and shape:
            shape[0] = rows
        feed[name] = np.zeros(shape, _numpy_type(arg))
    return feed


def _tensor(title: str, entry: WarmupInput, rows: int, folder: Path) -> Array:
    if min(entry.dims, default=0) < 0:
        raise InvalidArgument(f"{title}: the extents of a run are known", value=entry.name, found=list(entry.dims))
    shape = (rows, *entry.dims) if rows else entry.dims
    size = math.prod(shape) * max(entry.datatype.element_bytes, 8 if entry.datatype is BYTES else 1)
    if size > MAX_BYTES:
        raise ResourceExhausted(f"{title}: an input is too large", value=entry.name, found=f"{list(shape)}")
    if entry.source == "file":
        return _from_file(title, entry, shape, rows, folder)
    if entry.source == "zero":
        if entry.datatype is BYTES:
            return np.full(shape, "", object)
        return np.zeros(shape, entry.datatype.dtype.numpy)
    return _random(entry.datatype, shape)


def _random(datatype: Datatype, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(0)
    numpy_type = datatype.dtype.numpy
    if datatype is BYTES:
        return np.array([str(v) for v in rng.integers(0, 1000, math.prod(shape))], object).reshape(shape)
    if datatype.name == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if datatype.name.startswith(("INT", "UINT")):
        return rng.integers(0, 100, shape).astype(numpy_type)
    return rng.random(shape).astype(numpy_type)


def _from_file(title: str, entry: WarmupInput, shape: tuple[int, ...], rows: int, folder: Path) -> Array:
    """The elements in row-major order: of all rows, or of one, which then stands for each."""
    file = folder / FOLDER / entry.file
    try:
        content = file.read_bytes()
    except OSError as error:
        raise NoSuchFile(
            f"{title}: the data cannot be read", file=str(file), value=entry.name, found=error.strerror
        ) from error
    try:
        try:
            array = from_bytes(content, entry.datatype, shape, entry.name)
        except InvalidArgument:
            if rows < 2:
                raise
            array = np.broadcast_to(from_bytes(content, entry.datatype, entry.dims, entry.name), shape).copy()
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{title}: the file does not hold the input's elements", file=str(file), value=entry.name,
            found=f"{len(content)} bytes", expected=f"{entry.datatype.name} {list(shape)}",
        ) from error  # fmt: skip
    if entry.datatype is BYTES:
        text = [e.decode("utf-8", "replace") for e in array.reshape(-1)]
        array = np.array(text, object).reshape(shape)
    return array


def _numpy_type(arg: NodeArg) -> Any:
    inner = arg.type.removeprefix("tensor(").removesuffix(")")
    return dtypes.BY_ORT_NAME[inner].numpy


def _feed_of(shapes: Shapes, inputs: Sequence[NodeArg]) -> Mapping[str, Array] | None:
    """Zeros of these shapes; None where the model takes other inputs now."""
    wanted = dict(shapes)
    feed = {}
    for arg in inputs:
        shape = wanted.pop(arg.name, None)
        if shape is None or len(shape) != len(arg.shape):
            return None
        if any(isinstance(e, int) and e != s for e, s in zip(arg.shape, shape, strict=True)):
            return None
        feed[arg.name] = (
            np.full(shape, "", object) if arg.type == "tensor(string)" else np.zeros(shape, _numpy_type(arg))
        )
    return feed if not wanted else None
