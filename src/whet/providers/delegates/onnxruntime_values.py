"""Values in and out of ONNX Runtime. Nothing is copied on the way in, except strings and packed elements."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from whet import dtypes
from whet.dtypes import DType
from whet.graph import MapType, OptionalType, SequenceType, TensorData, TensorType
from whet.graph.tensor import Array, pack, unpack
from whet.graph.types import Type
from whet.runtime.values import Map, Optional, RuntimeValue, Sequence, Tensor

PLAIN: frozenset[str] = frozenset(
    {
        "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "float64",
        "uint32", "uint64",
    }
)  # fmt: skip
"""Element types that ONNX Runtime's Python interface exchanges as numpy arrays; others go through OrtValue."""


def feed_value(value: RuntimeValue, ort: ModuleType) -> Any:
    """What `InferenceSession.run` takes for a value."""
    if isinstance(value, Tensor):
        array = value.numpy()
        if value.dtype.name in PLAIN:
            return np.ascontiguousarray(array).reshape(array.shape)
        return ort_value(array, value.dtype, ort)
    if isinstance(value, Sequence):
        return [feed_value(item, ort) for item in value.items]
    if isinstance(value, Optional):
        return None if value.value is None else feed_value(value.value, ort)
    return dict(value.items)


def ort_value(array: Array, dtype: DType, ort: ModuleType) -> Any:
    """An OrtValue over the array's memory (packed types: over a packed copy). It keeps that memory alive."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if dtype.is_packed:
        # ONNX Runtime takes the shape from the array and reads the packed bytes from its front.
        storage = np.zeros(array.shape, np.uint8)
        packed = pack(array, dtype)
        storage.reshape(-1)[: packed.size] = packed
        array = storage
    elif dtype.name not in PLAIN:
        array = array.view(np.uint16 if dtype.bits == 16 else np.uint8)
    else:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, dtype.onnx_code)


def weight_value(data: TensorData, ort: ModuleType) -> Any:
    """An OrtValue over a constant's memory."""
    return ort_value(data.numpy(), data.dtype, ort)


def from_feed(result: Any, declared: Type | None) -> RuntimeValue:
    """The runtime value of one of `InferenceSession.run`'s results."""
    if isinstance(declared, OptionalType):
        return Optional(None if result is None else from_feed(result, declared.element))
    if isinstance(result, list):
        element = declared.element if isinstance(declared, SequenceType) else None
        return Sequence(tuple(from_feed(item, element) for item in result))
    if isinstance(result, dict):
        return Map(result)
    if result is None:
        return Optional(None)
    array = np.asarray(result)
    return Tensor.from_numpy(array, dtypes.STRING if array.dtype.kind in "OUS" else None)


def from_ort_value(result: Any, declared: TensorType) -> Tensor:
    """A copy of the tensor in an OrtValue (packed elements: unpacked)."""
    dtype = declared.dtype
    assert dtype is not None
    if dtype.name in PLAIN:
        return Tensor.from_numpy(np.array(result.numpy()), dtype)
    shape = tuple(result.shape())
    nbytes = int(result.tensor_size_in_bytes())
    memory: Any = (ctypes.c_uint8 * nbytes).from_address(result.data_ptr()) if nbytes else bytearray()
    raw = memoryview(memory).cast("B")
    if dtype.is_packed:
        return Tensor.from_numpy(unpack(raw, dtype, shape).copy(), dtype)
    return Tensor.from_numpy(np.frombuffer(raw, dtype.numpy).reshape(shape).copy(), dtype)


def exotic(types: Iterable[Type | None]) -> bool:
    """Whether a tensor among these types has elements that numpy arrays cannot carry to ONNX Runtime."""
    return any(isinstance(t, TensorType) and t.dtype is not None and t.dtype.name not in PLAIN for t in types)


def is_container(declared: Type | None) -> bool:
    """Whether values of this type are sequences, optionals or maps."""
    return isinstance(declared, (SequenceType, OptionalType, MapType))
