"""Values at run time: tensors over borrowed or owned buffers, sequences, optionals and maps."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from whet import dtypes
from whet.dtypes import DType

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Device:
    """Where a buffer lies: ONNX Runtime's device type name and index."""

    type: str = "cpu"
    id: int = 0

    def __str__(self) -> str:
        return f"{self.type}:{self.id}"


CPU = Device()


@dataclass(frozen=True, slots=True)
class Buffer:
    """A span of memory on a device. `owner` keeps it alive; borrowed inputs are `read_only`."""

    device: Device
    address: int
    nbytes: int
    owner: object
    read_only: bool


class Tensor:
    """An n-dimensional array over a buffer: element type, shape, and strides in bytes (None: C order).

    On the CPU a tensor wraps a numpy array without copying; string tensors hold Python objects and have no address.
    """

    __slots__ = ("_array", "_buffer", "dtype", "shape", "strides")

    def __init__(self, buffer: Buffer, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
        self._buffer: Buffer | None = buffer
        self._array: Array | None = buffer.owner if isinstance(buffer.owner, np.ndarray) else None
        self.dtype = dtype
        self.shape = shape
        self.strides = strides

    @classmethod
    def from_numpy(cls, array: Array, dtype: DType | None = None) -> Tensor:
        """Wrap a native-endian array; nothing is copied. Raises TypeError for an array that has no ONNX type."""
        found = dtype or dtypes.from_numpy(array.dtype)
        if found is None:
            raise TypeError(f"no ONNX element type for numpy {array.dtype}")
        tensor = cls.__new__(cls)
        tensor._buffer = None
        tensor._array = array
        tensor.dtype = found
        tensor.shape = array.shape
        tensor.strides = None if array.flags.c_contiguous else array.strides
        return tensor

    @property
    def buffer(self) -> Buffer:
        """The memory below; the address is looked up on first use."""
        if self._buffer is None:
            assert self._array is not None
            address = 0 if self.dtype is dtypes.STRING else self._array.ctypes.data
            self._buffer = Buffer(CPU, address, self._array.nbytes, self._array, not self._array.flags.writeable)
        return self._buffer

    def numpy(self) -> Array:
        """The tensor as an array over the same memory (CPU only)."""
        if self._array is None:
            buffer = self.buffer
            if buffer.device.type != "cpu":
                raise TypeError(f"a tensor on {buffer.device} has no numpy view; copy it to the CPU first")
            memory = (ctypes.c_uint8 * buffer.nbytes).from_address(buffer.address)
            array: Array = np.ctypeslib.as_array(memory).view(self.dtype.numpy)
            if self.strides is None:
                array = array.reshape(self.shape)
            else:
                array = np.lib.stride_tricks.as_strided(array, self.shape, self.strides)
            array.flags.writeable = not buffer.read_only
            self._array = array
        return self._array

    @property
    def nbytes(self) -> int:
        return self.dtype.storage_bytes(int(np.prod(self.shape, dtype=np.int64)))

    def __repr__(self) -> str:
        return f"Tensor({self.dtype.name}{list(self.shape)})"


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence value."""

    items: tuple[RuntimeValue, ...]


@dataclass(frozen=True, slots=True)
class Optional:
    """An optional value: something, or nothing (`value` is None)."""

    value: RuntimeValue | None


@dataclass(frozen=True, slots=True)
class Map:
    """A map from integers or strings to numbers or strings (classical models' probabilities)."""

    items: dict[Any, Any]


RuntimeValue = Union[Tensor, Sequence, Optional, Map]
