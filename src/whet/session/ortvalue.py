"""OrtValue, OrtDevice and SparseTensor: values that live between runs, and DLPack both ways."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.dtypes import DType
from whet.errors import InvalidArgument, NotImplemented
from whet.runtime.values import Map, Optional, RuntimeValue, Sequence, Tensor

Array = np.ndarray[Any, np.dtype[Any]]


class OrtDevice:
    """A device by ONNX Runtime's names: `cpu`, `cuda`, `dml`, ... and an index."""

    def __init__(self, device_type: str, device_id: int = 0) -> None:
        self._type = device_type
        self._id = device_id

    @staticmethod
    def make(ort_device_name: str, device_id: int = 0, vendor_id: int = -1) -> OrtDevice:
        """The device called `ort_device_name`."""
        return OrtDevice(ort_device_name, device_id)

    def device_type(self) -> str:
        return self._type

    def device_id(self) -> int:
        return self._id

    def device_vendor_id(self) -> int:
        return 0

    def device_mem_type(self) -> int:
        return 0


class OrtValue:
    """A tensor, sequence, map or optional that the runtime holds. On the CPU its memory is numpy's."""

    __slots__ = ("_value",)

    def __init__(self, value: RuntimeValue) -> None:
        self._value = value

    # Construction

    @staticmethod
    def ortvalue_from_numpy(
        numpy_obj: Array, device_type: str = "cpu", device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """Wrap a copy of the array. Raises InvalidArgument for a dtype without ONNX equivalent or another device."""
        _require_cpu(device_type)
        return OrtValue(to_tensor(np.array(numpy_obj, order="C"), "numpy_obj"))

    @staticmethod
    def ortvalue_from_numpy_with_onnx_type(data: Array, onnx_element_type: int) -> OrtValue:
        """Wrap the array's memory (not copied) as the ONNX element type with this number and the same size in bits."""
        dtype = _dtype_from(onnx_element_type)
        array = np.asarray(data)
        if array.dtype.itemsize != dtype.numpy.itemsize:
            raise InvalidArgument("element sizes differ", found=array.dtype, expected=dtype.name)
        return OrtValue(Tensor.from_numpy(array.view(dtype.numpy), dtype))

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: AbstractSequence[int], element_type: Any = np.float32, device_type: str = "cpu", device_id: int = 0,
        vendor_id: int = -1,
    ) -> OrtValue:  # fmt: skip
        """A new, zero-filled tensor. `element_type` is a numpy type or an ONNX element type's number."""
        _require_cpu(device_type)
        dtype = _dtype_from(element_type)
        if any(int(d) < 0 for d in shape):
            raise InvalidArgument("a shape holds non-negative extents", found=list(shape))
        return OrtValue(Tensor.from_numpy(np.zeros(tuple(int(d) for d in shape), dtype.numpy), dtype))

    @classmethod
    def from_dlpack(cls, data: Any, is_bool_tensor: bool = False) -> OrtValue:
        """Borrow the memory of any object with `__dlpack__` (numpy, torch, jax, ... on the CPU); nothing is copied."""
        if not hasattr(data, "__dlpack__"):
            raise InvalidArgument(
                "not a DLPack producer", found=type(data).__name__, expected="an object with __dlpack__"
            )
        array = np.from_dlpack(data)
        if is_bool_tensor and array.dtype == np.uint8:
            array = array.view(np.bool_)
        return cls(to_tensor(array, "data"))

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

    def update_inplace(self, np_arr: Array) -> None:
        """Copy the array's content into this tensor; element type and shape must be the same."""
        target = self.numpy()
        array = np.asarray(np_arr)
        if array.shape != target.shape or array.dtype != target.dtype:
            raise InvalidArgument(
                "the array does not fit this OrtValue",
                found=f"{array.dtype}{list(array.shape)}",
                expected=f"{target.dtype}{list(target.shape)}",
            )
        if not target.flags.writeable:
            raise InvalidArgument("this OrtValue borrows read-only memory")
        np.copyto(target, array)

    def as_sparse_tensor(self) -> SparseTensor:
        raise NotImplemented("sparse tensors are not supported as values between runs")

    # DLPack export

    def __dlpack__(self, *, stream: object = None, **options: Any) -> Any:
        array = self.numpy()
        if array.dtype == np.bool_ or array.dtype.kind in "fiuc":
            if not array.flags.writeable:
                options.setdefault("copy", True)
            return array.__dlpack__(**{k: v for k, v in options.items() if v is not None})
        raise InvalidArgument("DLPack has no such element type", found=self._tensor().dtype.name)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def to_dlpack(self) -> Any:
        """A DLPack capsule over this tensor's memory."""
        return self.__dlpack__()

    def _tensor(self) -> Tensor:
        if not isinstance(self._value, Tensor):
            raise InvalidArgument("this OrtValue holds no tensor", found=self.data_type(), expected="a tensor")
        return self._value

    def __repr__(self) -> str:
        return f"OrtValue({self._value!r})"


class SparseTensor:
    """Present so that `isinstance` checks in existing code work; Whet densifies sparse initializers at load."""

    def __init__(self) -> None:
        raise NotImplemented("sparse tensors are not supported as values between runs")


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
        return Tensor.from_numpy(_strings(array, what), dtype)
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
    if isinstance(value, list):
        return Sequence(tuple(to_runtime(item, what) for item in value))
    if isinstance(value, dict):
        return Map(dict(value))
    if hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic)):
        return to_tensor(np.from_dlpack(value), what)
    return to_tensor(value, what)


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


def _require_cpu(device_type: str) -> None:
    if device_type.lower() != "cpu":
        raise NotImplemented(
            "values on this device are not supported", found=device_type, expected="cpu",
            hint="Pass CPU values; a delegate copies them to its device.",
        )  # fmt: skip
