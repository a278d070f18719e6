"""OrtValue: values that live between runs, and DLPack both ways."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence as AbstractSequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.config import DEFAULT_LIMITS
from whet.dtypes import DType
from whet.errors import InvalidArgument, NotImplemented, ResourceExhausted
from whet.runtime.values import Map, Optional, RuntimeValue, Sequence, Tensor
from whet.session.device import OrtDevice, OrtMemoryInfo

Array = np.ndarray[Any, np.dtype[Any]]

_NO_SPARSE = "sparse tensors are not supported as values between runs"
_DLPACK_TYPES = frozenset(np.dtype(t) for t in "bBhHiIlLqQefdFD")


class OrtValue:
    """A tensor, sequence, map or optional that the runtime holds. On the CPU its memory is numpy's."""

    __slots__ = ("_value",)

    def __init__(self, value: RuntimeValue) -> None:
        self._value = value

    # Construction

    @classmethod
    def ortvalue_from_numpy(
        cls, numpy_obj: Array, /, device_type: str = "cpu", device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """Borrow the array's memory: a later change to the array shows in this value.

        Fixed-width strings, and arrays that are not in C order, aligned and native-endian, are copied. Raises
        InvalidArgument for a dtype without ONNX equivalent, NotImplemented for a device other than the CPU.
        """
        _require_cpu(device_type, device_id, vendor_id)
        return cls(to_tensor(numpy_obj, "numpy_obj"))

    @classmethod
    def ortvalue_from_numpy_with_onnx_type(cls, data: Array, /, onnx_element_type: int) -> OrtValue:
        """Borrow the array's memory as the ONNX element type with this number, of the same size in bits."""
        dtype = _dtype_from(onnx_element_type)
        array = np.require(np.asarray(data), requirements=["C", "ALIGNED"])
        if array.dtype == dtype.numpy:
            return cls(Tensor.from_numpy(array, dtype))
        if array.dtype.hasobject or dtype is dtypes.STRING or array.dtype.itemsize != dtype.numpy.itemsize:
            raise InvalidArgument("element sizes differ", found=array.dtype, expected=dtype.name)
        return cls(Tensor.from_numpy(array.view(dtype.numpy), dtype))

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: AbstractSequence[int], element_type: Any, device_type: str = "cpu", device_id: int = 0,
        vendor_id: int = -1, memory_info: OrtMemoryInfo | None = None,
    ) -> OrtValue:  # fmt: skip
        """A new, zero-filled tensor. `element_type` is a numpy type or an ONNX element type's number."""
        if memory_info is None:
            _require_cpu(device_type, device_id, vendor_id)
        dtype = _dtype_from(element_type)
        extents = tuple(operator.index(d) for d in shape)
        if any(d < 0 for d in extents):
            raise InvalidArgument("a shape holds non-negative extents", found=list(shape))
        nbytes = dtype.numpy.itemsize * math.prod(extents)
        if nbytes > DEFAULT_LIMITS.tensor_bytes:
            raise ResourceExhausted(
                "the tensor is too large", found=f"{nbytes} bytes",
                expected=f"at most {DEFAULT_LIMITS.tensor_bytes} (Limits.tensor_bytes)",
            )  # fmt: skip
        array = np.full(extents, "", np.object_) if dtype is dtypes.STRING else np.zeros(extents, dtype.numpy)
        return cls(Tensor.from_numpy(array, dtype))

    @classmethod
    def from_dlpack(cls, data: Any, /) -> OrtValue:
        """Borrow the memory of a CPU tensor: any object with `__dlpack__` (numpy, torch, jax, ...), or a capsule.

        What is not in C order is copied. A capsule whose booleans are marked as bytes gives uint8.
        Raises InvalidArgument for anything else.
        """
        if isinstance(data, OrtValue):
            return cls(data._value)
        array = import_dlpack(data, "data")
        # Old producers mark booleans as bytes; what they call the type tells.
        stated = data.data_type() if callable(getattr(data, "data_type", None)) else getattr(data, "dtype", "")
        if array.dtype == np.uint8 and "bool" in str(stated):
            array = array.view(np.bool_)
        return cls(to_tensor(array, "data"))

    @classmethod
    def ort_value_from_sparse_tensor(cls, sparse_tensor: SparseTensor) -> OrtValue:
        """Raises NotImplemented: sparse tensors are not supported as values between runs."""
        raise NotImplemented(_NO_SPARSE, found=type(sparse_tensor).__name__)

    # Inspection

    def numpy(self) -> Array:
        """The tensor as an array over the same memory. Raises InvalidArgument for sequences, maps and other devices."""
        return self._tensor().numpy()

    def shape(self) -> list[int]:
        return list(self._tensor().shape)

    def data_type(self) -> str:
        """`tensor(float)`, `seq(tensor(int64))`, ..."""
        return type_name(self._value)

    def element_type(self) -> int:
        """The ONNX number of the element type."""
        return self._tensor().dtype.onnx_code

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self._tensor().buffer.address

    def tensor_size_in_bytes(self) -> int:
        return self._tensor().nbytes

    def device_name(self) -> str:
        return self._value.buffer.device.type if isinstance(self._value, Tensor) else "cpu"

    def has_value(self) -> bool:
        """False only for an optional that holds nothing."""
        return not (isinstance(self._value, Optional) and self._value.value is None)

    def is_tensor(self) -> bool:
        return isinstance(self._value, Tensor)

    def is_sparse_tensor(self) -> bool:
        return False

    def is_tensor_sequence(self) -> bool:
        return isinstance(self._value, Sequence) and all(isinstance(i, Tensor) for i in self._value.items)

    def update_inplace(self, data: Array | OrtValue, /) -> None:
        """Copy an array's or another value's content into this tensor; element type and shape must be the same."""
        if not isinstance(data, (np.ndarray, OrtValue)):
            raise InvalidArgument("not an array or OrtValue", value="data", found=type(data).__name__)
        target = self._tensor()
        source = data._tensor() if isinstance(data, OrtValue) else to_tensor(data, "data")
        if source.shape != target.shape or source.dtype is not target.dtype:
            raise InvalidArgument("the data does not fit this OrtValue", value="data", found=source, expected=target)
        if not target.numpy().flags.writeable:
            raise InvalidArgument("this OrtValue borrows read-only memory", found=target)
        np.copyto(target.numpy(), source.numpy())

    def as_sparse_tensor(self) -> SparseTensor:
        raise NotImplemented(_NO_SPARSE, found=self.data_type())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """What `numpy.asarray(value)` gives: an array over the same memory unless a cast or copy is asked for."""
        array = self.numpy()
        if copy is not None:
            return np.array(array, dtype=dtype, copy=copy)
        return array if dtype is None else np.asarray(array, dtype=dtype)

    # DLPack export

    def __dlpack__(self, *, stream: object = None, **options: Any) -> Any:
        """A DLPack capsule over this tensor's memory (a copy of read-only memory, which the protocol cannot mark)."""
        array = self.numpy()
        if array.dtype != np.bool_ and array.dtype not in _DLPACK_TYPES:
            raise InvalidArgument("DLPack export of this element type is not supported", found=self._tensor().dtype)
        if not array.flags.writeable:
            array = array.copy()
        return array.__dlpack__(**{k: v for k, v in options.items() if v is not None})

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def to_dlpack(self) -> Any:
        """A DLPack capsule over this tensor's memory."""
        return self.__dlpack__()

    @property
    def _ortvalue(self) -> OrtValue:
        """Programs reach through this attribute of ONNX Runtime's class for `to_dlpack` and for binding."""
        return self

    def _get_c_value(self) -> OrtValue:
        return self

    def _tensor(self) -> Tensor:
        if not isinstance(self._value, Tensor):
            raise InvalidArgument("this OrtValue holds no tensor", found=self.data_type(), expected="a tensor")
        return self._value

    def __repr__(self) -> str:
        return f"OrtValue({self._value!r})"


class OrtValueVector(list[OrtValue]):
    """A list of values, under the names of ONNX Runtime's class."""

    def push_back(self, value: OrtValue) -> None:
        """Append a value."""
        self.append(value)

    def reserve(self, count: int) -> None:
        """Accepted for compatibility; a list grows by itself."""

    def shrink_to_fit(self) -> None:
        """Accepted for compatibility."""

    def element_type_at(self, index: int) -> int:
        """The ONNX number of the element type of the tensor at `index`."""
        return self[index].element_type()

    def dlpack_at(self, index: int) -> Any:
        """A DLPack capsule of the tensor at `index`."""
        return self[index].to_dlpack()

    def bool_tensor_indices(self) -> list[int]:
        """Where boolean tensors stand."""
        return [i for i, value in enumerate(self) if value.data_type() == "tensor(bool)"]


class SparseTensor:
    """Present so that `isinstance` checks in existing code work; Whet densifies sparse initializers at load."""

    def __init__(self, *_: Any) -> None:
        raise NotImplemented(_NO_SPARSE)

    @classmethod
    def sparse_coo_from_numpy(cls, *_: Any) -> SparseTensor:
        """Raises NotImplemented."""
        raise NotImplemented(_NO_SPARSE)

    @classmethod
    def sparse_csr_from_numpy(cls, *_: Any) -> SparseTensor:
        """Raises NotImplemented."""
        raise NotImplemented(_NO_SPARSE)


def copy_tensors(src: AbstractSequence[OrtValue], dst: AbstractSequence[OrtValue], stream: object = None) -> None:
    """Copy each value of `src` into the value of `dst` at its place, which has its type and shape."""
    if len(src) != len(dst):
        raise InvalidArgument("sources and targets differ in number", found=f"{len(src)} and {len(dst)}")
    for source, target in zip(src, dst, strict=True):
        target.update_inplace(source)


def to_tensor(array: Any, what: str) -> Tensor:
    """A contiguous, native-endian, aligned tensor of `array`, copied only where it must be.

    Raises InvalidArgument, naming `what`, for something that no ONNX element type can hold.
    """
    array = np.asarray(array)
    dtype = dtypes.from_numpy(array.dtype)
    if dtype is None:
        raise InvalidArgument(
            "no ONNX element type for this array",
            value=what,
            found=f"numpy {array.dtype}",
            expected="a numeric, bool or string array",
        )
    if dtype is dtypes.STRING:
        return Tensor.from_numpy(_strings(np.ascontiguousarray(array).reshape(array.shape), what), dtype)
    return Tensor.from_numpy(np.require(array, dtype.numpy, ["C", "ALIGNED"]), dtype)


def _strings(array: Array, what: str) -> Array:
    if array.dtype.kind != "O":
        array = array.astype(np.object_)
    for item in array.ravel():
        if not isinstance(item, (str, bytes)):
            raise InvalidArgument(
                "an object array holds something other than text",
                value=what,
                found=type(item).__name__,
                expected="str",
                hint="Convert the array to a numeric dtype or to strings.",
            )
    if any(isinstance(item, bytes) for item in array.ravel()):
        decoded = np.empty(array.shape, np.object_)
        for index, item in np.ndenumerate(array):
            decoded[index] = item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else item
        return decoded
    return array


def to_runtime(value: Any, what: str) -> RuntimeValue:
    """A runtime value from what a caller feeds: arrays, OrtValues, lists (sequences), dicts (maps), None (no value)."""
    if isinstance(value, OrtValue):
        return value._value
    if value is None:
        return Optional(None)
    if isinstance(value, (list, tuple)):
        return Sequence(tuple(to_runtime(item, what) for item in value))
    if isinstance(value, dict):
        return Map(dict(value))
    if hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic)):
        return to_tensor(import_dlpack(value, what), what)
    return to_tensor(value, what)


def import_dlpack(data: Any, what: str) -> Array:
    """The CPU tensor of a DLPack producer or capsule as an array over its memory. Raises InvalidArgument."""
    producer = data if hasattr(data, "__dlpack__") else _Capsule(data)
    try:
        array: Array = np.from_dlpack(producer)
    except Exception as error:  # each producer raises what it likes
        raise InvalidArgument(
            "this tensor cannot be read through DLPack",
            value=what,
            found=f"{type(data).__name__}: {error}",
            expected="a tensor on the CPU, of a type that numpy has, that needs no gradient",
        ) from error
    return array


class _Capsule:
    """A bare DLPack capsule as the object that numpy asks for one."""

    def __init__(self, capsule: Any) -> None:
        if type(capsule).__name__ != "PyCapsule":
            raise InvalidArgument(
                "not a DLPack producer", found=type(capsule).__name__, expected="an object with __dlpack__"
            )
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def to_python(value: RuntimeValue) -> Any:
    """What `InferenceSession.run` returns for a value: arrays, lists, None, dicts."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, Sequence):
        return [to_python(item) for item in value.items]
    if isinstance(value, Optional):
        return None if value.value is None else to_python(value.value)
    return dict(value.items)


def type_name(value: RuntimeValue) -> str:
    """The value's type as ONNX Runtime writes it."""
    if isinstance(value, Tensor):
        return f"tensor({value.dtype.ort_name})"
    if isinstance(value, Sequence):
        return f"seq({type_name(value.items[0]) if value.items else 'tensor(float)'})"
    if isinstance(value, Optional):
        return f"optional({type_name(value.value) if value.value is not None else ''})"
    return "map"


def _dtype_from(element_type: Any) -> DType:
    if isinstance(element_type, int) and not isinstance(element_type, bool):
        found = dtypes.BY_CODE.get(element_type)
    else:
        found = dtypes.from_numpy(element_type)
    if found is None:
        raise InvalidArgument(
            "no such element type", found=element_type, expected="a numpy type or an ONNX type number"
        )
    return found


def _require_cpu(device_type: str, device_id: int, vendor_id: int) -> None:
    if OrtDevice(device_type.lower(), device_id, vendor_id).device_type() != 0:
        raise NotImplemented(
            "values on this device are not supported", found=device_type, expected="cpu",
            hint="Pass CPU values; a delegate copies them to its device.",
        )  # fmt: skip
