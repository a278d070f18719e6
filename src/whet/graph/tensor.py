"""Constant tensors of a graph: element type, shape and bytes, decoded only when somebody looks."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from whet import dtypes
from whet.dtypes import DType

Array = np.ndarray[Any, np.dtype[Any]]


class TensorData:
    """An immutable constant tensor.

    Holds the storage bytes as the model file has them (little-endian, 2- and 4-bit elements packed), often a memory
    map, or an array; the array form is made on first use and is always read-only.
    """

    __slots__ = ("_array", "_digest", "_raw", "dtype", "shape")

    def __init__(self, dtype: DType, shape: tuple[int, ...], raw: memoryview | None, array: Array | None) -> None:
        self.dtype = dtype
        self.shape = shape
        self._raw = raw
        self._array = array
        self._digest: bytes | None = None

    @classmethod
    def from_array(cls, array: Any, dtype: DType | None = None) -> TensorData:
        """Wrap an array (not copied where it is contiguous and native-endian already)."""
        array = np.asarray(array)
        found = dtype or dtypes.from_numpy(array.dtype)
        if found is None:
            raise TypeError(f"no ONNX element type for numpy {array.dtype}")
        array = np.asarray(array, dtype=found.numpy, order="C")
        view = array.view()
        view.flags.writeable = False
        return cls(found, array.shape, None, view)

    @classmethod
    def from_raw(cls, dtype: DType, shape: tuple[int, ...], raw: memoryview) -> TensorData:
        """Wrap storage bytes; `raw` must hold exactly `dtype.storage_bytes(product of shape)` bytes."""
        return cls(dtype, shape, raw, None)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in storage (for strings, of the text)."""
        if self.dtype is dtypes.STRING:
            return sum(len(str(s)) for s in self.numpy().ravel())
        return self.dtype.storage_bytes(self.size)

    def numpy(self) -> Array:
        """The tensor as a read-only array (packed types one element a byte, strings as objects)."""
        if self._array is None:
            assert self._raw is not None
            self._array = unpack(self._raw, self.dtype, self.shape)
        return self._array

    def raw(self) -> memoryview:
        """The storage bytes: little-endian, packed types packed. Not for strings."""
        if self._raw is not None:
            return self._raw
        assert self._array is not None
        return (
            memoryview(pack(self._array, self.dtype).reshape(-1).view(np.uint8).data) if self.size else memoryview(b"")
        )

    @property
    def mapping(self) -> object | None:
        """What owns the storage bytes where they are a view: a mapped file or the caller's bytes."""
        return None if self._raw is None else self._raw.obj

    def digest(self) -> bytes:
        """A digest of element type, shape and content; equal tensors have equal digests."""
        if self._digest is None:
            h = hashlib.blake2b(f"{self.dtype.name}{self.shape}".encode(), digest_size=20)
            if self.dtype is dtypes.STRING:
                for s in self.numpy().ravel():
                    h.update(f"{len(s)}:{s}".encode("utf-8", "surrogatepass"))
            else:
                h.update(self.raw())
            self._digest = h.digest()
        return self._digest

    def identity(self) -> tuple[object, ...]:
        """What tells this tensor from every other one in this process, found without reading a mapped file."""
        owner: Any = self.mapping
        file = getattr(owner, "identity", None)
        if file is None or self._raw is None or not self.nbytes:
            return ("content", self.digest())
        address = np.frombuffer(self._raw, np.uint8).ctypes.data
        return ("file", file, address - owner.address, self.dtype.name, self.shape)

    def scalar(self) -> Any:
        """The only element as a Python number. Raises ValueError unless there is exactly one."""
        if self.size != 1:
            raise ValueError(f"expected one element, found shape {self.shape}")
        return self.numpy().reshape(()).item()

    def __repr__(self) -> str:
        text = ""
        if 0 < self.size <= 8:
            text = " " + np.array2string(self.numpy(), separator=",").replace("\n", "")
        return f"TensorData({self.dtype.name}{list(self.shape)}{text})"


def unpack(raw: memoryview, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Storage bytes as a read-only array; a view of `raw` except for packed types."""
    count = math.prod(shape)
    if dtype.is_packed:
        per_byte = 8 // dtype.bits
        packed = np.frombuffer(raw, np.uint8, count=dtype.storage_bytes(count))
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(dtype.bits)
        codes = ((packed[:, None] >> shifts) & np.uint8((1 << dtype.bits) - 1)).reshape(-1)[:count]
        if dtype.kind == "int":
            sign = np.uint8(1 << (dtype.bits - 1))
            array = ((codes ^ sign).astype(np.int8) - np.int8(sign)).astype(dtype.numpy)
        elif dtype.kind == "uint":
            array = codes.astype(dtype.numpy)
        else:
            array = codes.view(dtype.numpy)
    else:
        array = np.frombuffer(raw, dtype.numpy, count=count)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def pack(array: Array, dtype: DType) -> Array:
    """The storage form of an array: itself (C order), or packed bytes for 2- and 4-bit types."""
    array = np.ascontiguousarray(array)
    if not dtype.is_packed:
        return array
    per_byte = 8 // dtype.bits
    mask = np.uint8((1 << dtype.bits) - 1)
    if dtype.kind == "float":
        codes = array.reshape(-1).view(np.uint8) & mask
    else:
        codes = array.reshape(-1).astype(np.int8).view(np.uint8) & mask
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(dtype.bits)
    packed: Array = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).astype(np.uint8)
    return packed
