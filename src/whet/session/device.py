"""Devices and kinds of memory, by ONNX Runtime's names and numbers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from whet.errors import InvalidArgument, did_you_mean


class OrtDeviceVendorId(enum.IntEnum):
    """PCI vendor numbers of devices."""

    NONE = 0x0000
    AMD = 0x1002
    NVIDIA = 0x10DE
    ARM = 0x13B5
    MICROSOFT = 0x1414
    HUAWEI = 0x19E5
    QUALCOMM = 0x5143
    INTEL = 0x8086


class OrtMemType(enum.IntEnum):
    """What a piece of memory is for."""

    CPU_INPUT = -2
    CPU_OUTPUT = -1
    DEFAULT = 0
    CPU = -1


class OrtAllocatorType(enum.IntEnum):
    """How memory is handed out."""

    INVALID = -1
    ORT_DEVICE_ALLOCATOR = 0
    ORT_ARENA_ALLOCATOR = 1


@dataclass(frozen=True, slots=True)
class OrtMemoryInfo:
    """The memory in which an input or output of a session lies."""

    name: str = "Cpu"
    allocator_type: OrtAllocatorType = OrtAllocatorType.ORT_DEVICE_ALLOCATOR
    device_id: int = 0
    mem_type: OrtMemType = OrtMemType.DEFAULT


_TYPES: dict[str, tuple[int, OrtDeviceVendorId]] = {
    "cpu": (0, OrtDeviceVendorId.NONE),
    "gpu": (1, OrtDeviceVendorId.NONE),
    "cuda": (1, OrtDeviceVendorId.NVIDIA),
    "dml": (1, OrtDeviceVendorId.MICROSOFT),
    "webgpu": (1, OrtDeviceVendorId.NONE),
    "npu": (3, OrtDeviceVendorId.NONE),
    "cann": (3, OrtDeviceVendorId.HUAWEI),
}
"""ONNX Runtime's device names: the number of the kind of device, and the vendor that the name implies."""


class OrtDevice:
    """A device: kind, index and vendor. Values lie on the CPU; delegates copy them to the devices they use."""

    __slots__ = ("_id", "_name", "_vendor")

    def __init__(self, name: str, device_id: int = 0, vendor_id: int = -1) -> None:
        if name not in _TYPES:
            hint = did_you_mean(str(name), _TYPES) or f"Known: {', '.join(_TYPES)}."
            raise InvalidArgument("unsupported device type", found=name, hint=hint)
        self._name = name
        self._id = device_id
        self._vendor = int(vendor_id) if vendor_id >= 0 else int(_TYPES[name][1])

    @staticmethod
    def make(ort_device_name: str, device_id: int, vendor_id: int = -1) -> OrtDevice:
        """The device called `ort_device_name`; `vendor_id` narrows "gpu" and "npu" down."""
        return OrtDevice(ort_device_name, device_id, vendor_id)

    def device_type(self) -> int:
        """0: CPU, 1: GPU, 3: NPU."""
        return _TYPES[self._name][0]

    def device_id(self) -> int:
        return self._id

    def device_vendor_id(self) -> int:
        return self._vendor

    def device_mem_type(self) -> int:
        return int(OrtMemType.DEFAULT)
