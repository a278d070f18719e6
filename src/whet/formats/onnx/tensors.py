"""TensorProto and SparseTensorProto to and from constant tensors, with every encoding that ONNX allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from whet import dtypes
from whet.config import Limits
from whet.dtypes import DType
from whet.errors import InvalidGraph, NotImplemented, ResourceExhausted
from whet.formats.onnx.external import ExternalData
from whet.formats.onnx.strings import require_text
from whet.formats.onnx.types import element_type
from whet.formats.onnx.wire import LIFT_BYTES, Payloads
from whet.graph.tensor import Array, TensorData

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

# Which repeated field holds the elements of each type when they are not raw (onnx.proto, TensorProto).
_FIELD: dict[str, str] = {
    "float32": "float_data", "complex64": "float_data", "float64": "double_data", "complex128": "double_data",
    "int64": "int64_data", "uint32": "uint64_data", "uint64": "uint64_data", "string": "string_data",
}  # fmt: skip
_MAX_ELEMENTS = (1 << 63) - 1


class TensorReader:
    """Decodes the tensors of one model: payloads lifted out of its bytes, external files, limits."""

    def __init__(self, payloads: Payloads, external: ExternalData, limits: Limits) -> None:
        self._payloads = payloads
        self._external = external
        self._limits = limits

    def dense(self, proto: onnx.TensorProto, name: str) -> TensorData:
        """The tensor that `proto` holds; its bytes are not copied. Raises InvalidGraph, naming it `name`."""
        dtype, shape = self.stated(proto, name)
        count = math.prod(shape)
        if proto.HasField("segment"):
            raise NotImplemented("a tensor in segments", value=name, hint="Write it as one tensor.")
        typed = [f for f in _TYPED_FIELDS if len(getattr(proto, f))]
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._external_tensor(proto, dtype, shape, typed, name)
        if proto.HasField("raw_data"):
            raw: bytes = proto.raw_data
            if typed and (raw or count):
                raise InvalidGraph(
                    "a tensor with both raw and typed data",
                    value=name,
                    found=f"raw_data and {typed[0]}",
                    expected="one of them",
                )
            if dtype is dtypes.STRING:
                raise InvalidGraph("strings as raw data", value=name, found="raw_data", expected="string_data")
            if not typed:
                payload = self._payloads.find(raw)
                return self._raw(dtype, shape, memoryview(raw) if payload is None else payload, name)
        return _typed_tensor(proto, dtype, shape, typed, name)

    def stated(self, proto: onnx.TensorProto, name: str) -> tuple[DType, tuple[int, ...]]:
        """The element type and shape that `proto` states; its contents are not looked at."""
        dtype = element_type(proto.data_type, name)
        if dtype is None:
            raise InvalidGraph("a tensor without an element type", value=name, found="data type 0")
        return dtype, self._shape(proto.dims, name)

    def sparse(self, proto: onnx.SparseTensorProto, name: str) -> TensorData:
        """The sparse tensor that `proto` holds, densified (within `Limits.tensor_bytes`)."""
        shape = self._shape(proto.dims, name)
        values = self.dense(proto.values, name).numpy()
        count = math.prod(shape)
        dtype = dtypes.from_numpy(values.dtype)
        assert dtype is not None
        nbytes = count * values.dtype.itemsize
        if nbytes > self._limits.tensor_bytes:
            raise ResourceExhausted(
                "a sparse tensor is too large to be made dense",
                value=name,
                found=f"{nbytes} bytes",
                expected=f"at most {self._limits.tensor_bytes} (Limits.tensor_bytes)",
            )
        if values.ndim != 1:
            raise InvalidGraph(
                "sparse values of the wrong rank", value=name, found=values.shape, expected="1 dimension"
            )
        linear = self._sparse_positions(proto, shape, len(values), name)
        dense: Array = np.zeros(count, values.dtype)
        if dtype is dtypes.STRING:
            dense[:] = ""
        dense[linear] = values
        return TensorData.from_array(dense.reshape(shape), dtype)

    def _sparse_positions(self, proto: onnx.SparseTensorProto, shape: tuple[int, ...], nnz: int, name: str) -> Array:
        indices = self.dense(proto.indices, name).numpy()
        if indices.dtype != np.int64 or indices.shape not in ((nnz,), (nnz, len(shape))):
            raise InvalidGraph(
                "sparse indices of the wrong type or shape",
                value=name,
                found=f"{indices.dtype}{list(indices.shape)}",
                expected=f"int64[{nnz}] or int64[{nnz},{len(shape)}]",
            )
        bounds = np.array([math.prod(shape)] if indices.ndim == 1 else shape, np.int64)
        table = indices.reshape(nnz, -1) if indices.ndim == 1 else indices
        if nnz and ((table < 0).any() or (table >= bounds).any()):
            raise InvalidGraph(
                "a sparse index outside the tensor", value=name, expected=f"indices inside {list(shape)}"
            )
        if indices.ndim == 1:
            return indices
        strides = np.array([math.prod(shape[i + 1 :]) for i in range(len(shape))], np.int64)
        linear: Array = indices @ strides
        return linear

    def _shape(self, dims: Sequence[int], name: str) -> tuple[int, ...]:
        shape = tuple(int(d) for d in dims)
        if any(d < 0 for d in shape):
            raise InvalidGraph("a tensor with a negative dimension", value=name, found=list(shape))
        if len(shape) > self._limits.rank:
            raise InvalidGraph(
                "a tensor of too many dimensions",
                value=name,
                found=len(shape),
                expected=f"at most {self._limits.rank} (Limits.rank)",
            )
        if math.prod(d for d in shape if d) > _MAX_ELEMENTS:
            raise InvalidGraph("a tensor whose element count does not fit 63 bits", value=name, found=list(shape))
        return shape

    def _external_tensor(
        self, proto: onnx.TensorProto, dtype: DType, shape: tuple[int, ...], typed: list[str], name: str
    ) -> TensorData:
        if dtype is dtypes.STRING:
            raise InvalidGraph("strings as external data", value=name, expected="string_data")
        if typed or proto.raw_data:
            raise InvalidGraph("a tensor with both external and embedded data", value=name, expected="one of them")
        require_text(*(text for e in proto.external_data for text in (e.key, e.value)), where=name)
        entries = {e.key: e.value for e in proto.external_data}
        nbytes = dtype.storage_bytes(math.prod(shape))
        return self._raw(dtype, shape, self._external.read(entries, nbytes, name), name)

    def _raw(self, dtype: DType, shape: tuple[int, ...], raw: memoryview, name: str) -> TensorData:
        expected = dtype.storage_bytes(math.prod(shape))
        if len(raw) != expected:
            what = "too short" if len(raw) < expected else "too long"
            element_bytes = max(dtype.bits // 8, 1)
            odd = f", not a multiple of the element size {element_bytes}" if len(raw) % element_bytes else ""
            raise InvalidGraph(
                f"raw data that is {what}",
                value=name,
                found=f"{len(raw)} bytes{odd}",
                expected=f"{expected} bytes for {dtype.name}{list(shape)}",
            )
        if dtype is dtypes.BOOL and expected:
            # Any byte but 0 means true; numpy's bool must hold 0 or 1.
            codes = np.frombuffer(raw, np.uint8)
            if codes.max() > 1:
                return TensorData.from_array((codes != 0).reshape(shape))
        return TensorData.from_raw(dtype, shape, raw)


def _typed_tensor(
    proto: onnx.TensorProto, dtype: DType, shape: tuple[int, ...], typed: list[str], name: str
) -> TensorData:
    field = _FIELD.get(dtype.name, "int32_data")
    if typed and typed != [field]:
        raise InvalidGraph(
            f"{dtype.name} elements in the wrong field", value=name, found=", ".join(typed), expected=field
        )
    data = getattr(proto, field)
    count = math.prod(shape)
    needed = count * 2 if dtype.kind == "complex" else dtype.storage_bytes(count) if dtype.is_packed else count
    if len(data) != needed:
        raise InvalidGraph(
            "a tensor with the wrong number of elements",
            value=name,
            found=f"{len(data)} in {field}",
            expected=f"{needed} for {dtype.name}{list(shape)}",
        )
    if dtype is dtypes.STRING:
        return TensorData.from_array(np.array([_text(s) for s in data] + [None], object)[:-1].reshape(shape), dtype)
    if field in ("float_data", "double_data"):
        return TensorData.from_array(
            np.array(data, np.float32 if field == "float_data" else np.float64).view(dtype.numpy).reshape(shape)
        )
    if field == "int64_data":
        return TensorData.from_array(np.array(data, np.int64).reshape(shape))
    return _from_integers(np.array(data, np.uint64 if field == "uint64_data" else np.int64), dtype, shape, name)


def _from_integers(numbers: Array, dtype: DType, shape: tuple[int, ...], name: str) -> TensorData:
    """Elements from integer fields: values of integer types, bit patterns of the others, bytes of packed types."""
    if dtype.is_integer and not dtype.is_packed:
        info = np.iinfo(dtype.numpy)
        low, high = int(info.min), int(info.max)
    elif dtype is dtypes.BOOL:
        return TensorData.from_array((numbers != 0).reshape(shape))
    else:
        low, high = 0, (1 << max(dtype.bits, 8)) - 1
    if numbers.size and (int(numbers.min()) < low or int(numbers.max()) > high):
        raise InvalidGraph(
            f"an element that does not fit {dtype.name}",
            value=name,
            found=f"{int(numbers.min())} to {int(numbers.max())}",
            expected=f"{low} to {high}",
        )
    if dtype.is_packed:
        return TensorData.from_raw(dtype, shape, memoryview(numbers.astype(np.uint8).tobytes()))
    if dtype.is_integer:
        return TensorData.from_array(numbers.astype(dtype.numpy).reshape(shape))
    bits = numbers.astype(np.uint16 if dtype.bits == 16 else np.uint8)
    return TensorData.from_array(bits.view(dtype.numpy).reshape(shape), dtype)


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def encode_tensor(data: TensorData, name: str, payloads: Payloads | None) -> onnx.TensorProto:
    """The proto of a constant. Long data is left out and kept in `payloads` when that is given."""
    proto = onnx.TensorProto(name=name, data_type=data.dtype.onnx_code, dims=data.shape)
    if data.dtype is dtypes.STRING:
        proto.string_data.extend(_bytes(s) for s in data.numpy().ravel())
        return proto
    raw = data.raw()
    if payloads is not None and len(raw) >= LIFT_BYTES:
        proto.raw_data = payloads.add(raw)
    else:
        proto.raw_data = bytes(raw)
    return proto


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")
