"""Element types: the one table of their names, storage sizes in bits, ONNX codes and numpy equivalents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal["float", "int", "uint", "bool", "string", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `bits` is the size in storage (2- and 4-bit elements are packed, low bits first).

    `numpy` is the type of an unpacked array: one byte an element for the packed types, objects for strings.
    """

    name: str
    onnx_code: int
    bits: int
    kind: Kind
    numpy: np.dtype[Any]

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_packed(self) -> bool:
        """Whether several elements share one byte in storage."""
        return 0 < self.bits < 8

    def storage_bytes(self, elements: int) -> int:
        """Bytes that `elements` of this type take in storage (strings: 0, their size is not fixed)."""
        return (elements * self.bits + 7) // 8

    @property
    def ort_name(self) -> str:
        """The element type's name inside ONNX Runtime's `tensor(...)`."""
        return _ORT_NAMES.get(self.name, self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


def _dtype(name: str, code: int, bits: int, kind: Kind, numpy: Any) -> DType:
    return DType(name, code, bits, kind, np.dtype(numpy))


FLOAT32 = _dtype("float32", 1, 32, "float", np.float32)
UINT8 = _dtype("uint8", 2, 8, "uint", np.uint8)
INT8 = _dtype("int8", 3, 8, "int", np.int8)
UINT16 = _dtype("uint16", 4, 16, "uint", np.uint16)
INT16 = _dtype("int16", 5, 16, "int", np.int16)
INT32 = _dtype("int32", 6, 32, "int", np.int32)
INT64 = _dtype("int64", 7, 64, "int", np.int64)
STRING = _dtype("string", 8, 0, "string", np.object_)
BOOL = _dtype("bool", 9, 8, "bool", np.bool_)
FLOAT16 = _dtype("float16", 10, 16, "float", np.float16)
FLOAT64 = _dtype("float64", 11, 64, "float", np.float64)
UINT32 = _dtype("uint32", 12, 32, "uint", np.uint32)
UINT64 = _dtype("uint64", 13, 64, "uint", np.uint64)
COMPLEX64 = _dtype("complex64", 14, 64, "complex", np.complex64)
COMPLEX128 = _dtype("complex128", 15, 128, "complex", np.complex128)
BFLOAT16 = _dtype("bfloat16", 16, 16, "float", ml_dtypes.bfloat16)
FLOAT8E4M3FN = _dtype("float8e4m3fn", 17, 8, "float", ml_dtypes.float8_e4m3fn)
FLOAT8E4M3FNUZ = _dtype("float8e4m3fnuz", 18, 8, "float", ml_dtypes.float8_e4m3fnuz)
FLOAT8E5M2 = _dtype("float8e5m2", 19, 8, "float", ml_dtypes.float8_e5m2)
FLOAT8E5M2FNUZ = _dtype("float8e5m2fnuz", 20, 8, "float", ml_dtypes.float8_e5m2fnuz)
UINT4 = _dtype("uint4", 21, 4, "uint", ml_dtypes.uint4)
INT4 = _dtype("int4", 22, 4, "int", ml_dtypes.int4)
FLOAT4E2M1 = _dtype("float4e2m1", 23, 4, "float", ml_dtypes.float4_e2m1fn)
FLOAT8E8M0 = _dtype("float8e8m0", 24, 8, "float", ml_dtypes.float8_e8m0fnu)
UINT2 = _dtype("uint2", 25, 2, "uint", ml_dtypes.uint2)
INT2 = _dtype("int2", 26, 2, "int", ml_dtypes.int2)

ALL: tuple[DType, ...] = (
    FLOAT32, UINT8, INT8, UINT16, INT16, INT32, INT64, STRING, BOOL, FLOAT16, FLOAT64, UINT32, UINT64, COMPLEX64,
    COMPLEX128, BFLOAT16, FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ, UINT4, INT4, FLOAT4E2M1,
    FLOAT8E8M0, UINT2, INT2,
)  # fmt: skip

BY_CODE: dict[int, DType] = {t.onnx_code: t for t in ALL}
BY_NAME: dict[str, DType] = {t.name: t for t in ALL}
BY_NUMPY: dict[np.dtype[Any], DType] = {t.numpy: t for t in ALL}

_ORT_NAMES = {"float32": "float", "float64": "double"}
BY_ORT_NAME: dict[str, DType] = {t.ort_name: t for t in ALL}


def from_numpy(dtype: np.dtype[Any] | type) -> DType | None:
    """The element type of a numpy array's dtype, or None where ONNX has no such type. Any byte order, any string."""
    dt = np.dtype(dtype)
    found = BY_NUMPY.get(dt)
    if found is not None:
        return found
    if dt.kind in "USO" or dt.kind == "T":
        return STRING
    if dt.kind in "biufc":
        return BY_NUMPY.get(dt.newbyteorder("="))
    return None
