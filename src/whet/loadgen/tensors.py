"""Inputs for a model, made from the server's metadata, and their encodings."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ml_dtypes
import numpy as np
import numpy.typing as npt

from whet.errors import InvalidArgument, NoSuchFile, did_you_mean
from whet.loadgen.plan import ModelLoad, Target
from whet.loadgen.wire import infer_request

DTYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


@dataclass(frozen=True)
class InputSpec:
    """An input as the server describes it; -1 is a free extent."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input's values."""

    name: str
    datatype: str
    array: npt.NDArray[Any]


def feeds(model: ModelLoad, inputs: list[InputSpec]) -> list[list[Tensor]]:
    """The requests that take turns, each with a tensor for every input. Raises InvalidArgument, NoSuchFile."""
    unknown = [name for name in model.shapes or {} if name not in {spec.name for spec in inputs}]
    if unknown:
        raise InvalidArgument(
            f"model {model.name!r} has no such input", found=unknown[0], expected=", ".join(i.name for i in inputs),
            hint=did_you_mean(unknown[0], [i.name for i in inputs]),
        )  # fmt: skip
    if model.inputs not in ("random", "zeros"):
        return [_from_file(model, inputs)]
    rng = np.random.default_rng(model.seed)
    count = model.variants if model.inputs == "random" else 1
    return [[Tensor(s.name, s.datatype, _values(model, s, rng)) for s in inputs] for _ in range(count)]


def _shape(model: ModelLoad, spec: InputSpec) -> tuple[int, ...]:
    given = (model.shapes or {}).get(spec.name)
    if given is not None:
        fits = len(given) == len(spec.shape) and all(w in (-1, g) for w, g in zip(spec.shape, given, strict=True))
        if not fits:
            raise InvalidArgument(
                f"the shape given for input {spec.name!r} of model {model.name!r} does not fit",
                found=list(given),
                expected=list(spec.shape),
            )
        return given
    shape = list(spec.shape)
    if shape and shape[0] == -1:
        shape[0] = model.batch
    if -1 in shape:
        raise InvalidArgument(
            f"input {spec.name!r} of model {model.name!r} has free extents after the first",
            found=list(spec.shape),
            expected="a size for each",
            hint=f"Give one with --shape {spec.name}=" + "x".join("N" if d == -1 else str(d) for d in shape) + ".",
        )
    return tuple(shape)


def _values(model: ModelLoad, spec: InputSpec, rng: np.random.Generator) -> npt.NDArray[Any]:
    shape = _shape(model, spec)
    if spec.datatype not in DTYPES:
        raise InvalidArgument(
            f"input {spec.name!r} of model {model.name!r} has a datatype that this tool cannot make",
            found=spec.datatype,
            expected=", ".join(DTYPES),
        )
    dtype = np.dtype(DTYPES[spec.datatype])
    if spec.datatype == "BYTES":
        texts = np.empty(shape, np.object_)
        texts.reshape(-1)[:] = [
            b"" if model.inputs == "zeros" else rng.bytes(6).hex().encode() for _ in range(texts.size)
        ]
        return texts
    if model.inputs == "zeros":
        return np.zeros(shape, dtype)
    if spec.datatype == "BOOL":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        # Most integers are indices: zero and one are within every table.
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.random(shape, np.float32).astype(dtype)


def _from_file(model: ModelLoad, inputs: list[InputSpec]) -> list[Tensor]:
    path = Path(model.inputs)
    if not path.is_file():
        raise NoSuchFile("there is no such file of inputs", file=str(path), expected="random, zeros, .npz or .npy")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidArgument("the file holds no arrays", file=str(path), expected=".npz or .npy") from error
    arrays = {inputs[0].name: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    tensors = []
    for spec in inputs:
        if spec.name not in arrays:
            raise InvalidArgument(
                f"the file lacks an input of model {model.name!r}",
                file=str(path),
                value=spec.name,
                found=", ".join(arrays),
                expected=", ".join(i.name for i in inputs),
            )
        array = arrays[spec.name]
        if spec.datatype == "BYTES":
            array = np.char.encode(array, "utf-8").astype(np.object_) if array.dtype.kind == "U" else array.astype("O")
        elif array.dtype != np.dtype(DTYPES[spec.datatype]):
            raise InvalidArgument(
                "an array of the file has another type than the input",
                file=str(path),
                value=spec.name,
                found=array.dtype,
                expected=spec.datatype,
            )
        tensors.append(Tensor(spec.name, spec.datatype, array))
    return tensors


def raw(tensor: Tensor) -> bytes:
    """Little-endian elements in row-major order; BYTES with a length before each."""
    if tensor.datatype != "BYTES":
        little = tensor.array.astype(tensor.array.dtype.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(little).tobytes()
    return b"".join(struct.pack("<I", len(e)) + bytes(e) for e in tensor.array.reshape(-1).tolist())


def _numbers(tensor: Tensor) -> list[Any]:
    flat = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        return [element.decode() for element in flat.tolist()]
    return flat.astype(np.float32).tolist() if tensor.datatype in ("FP16", "BF16") else flat.tolist()


def encode(target: Target, model: str, tensors: list[Tensor]) -> bytes:
    """What goes over the connection for one request: a whole HTTP request, or a gRPC message."""
    if target.protocol == "grpc":
        return infer_request(model, [(t.name, t.datatype, t.array.shape, raw(t)) for t in tensors])
    described: list[dict[str, Any]] = []
    contents = []
    for tensor in tensors:
        entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.array.shape), "datatype": tensor.datatype}
        if target.binary:
            contents.append(raw(tensor))
            entry["parameters"] = {"binary_data_size": len(contents[-1])}
        else:
            entry["data"] = _numbers(tensor)
        described.append(entry)
    document: dict[str, Any] = {"inputs": described}
    if target.binary:
        document["parameters"] = {"binary_data_output": True}
    header = json.dumps(document, separators=(",", ":")).encode()
    kind = (
        f"application/octet-stream\r\nInference-Header-Content-Length: {len(header)}"
        if target.binary
        else "application/json"
    )
    return http_request(target, f"/v2/models/{quote(model, safe='')}/infer", b"".join([header, *contents]), kind)


def http_request(target: Target, path: str, body: bytes, content_type: str) -> bytes:
    """A POST as it goes over the connection."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
