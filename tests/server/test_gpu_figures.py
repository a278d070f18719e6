"""GPU figures through the real nvidia-ml-py, over a library of NVML that is a fake: wrong calls and units show.

The fake has the C functions with their types and units, as NVIDIA's NVML API reference has them: utilization in
percent, memory in bytes, power in milliwatts, energy in millijoules, temperature in degrees Celsius.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.test_metrics import samples

pynvml = pytest.importorskip("pynvml")

from whet.server.data_plane import DataPlane  # noqa: E402
from whet.server.metrics.collect import GPU, Metrics  # noqa: E402
from whet.server.metrics.gpu import Gpus, find_gpus  # noqa: E402

UUIDS = (b"GPU-5f1d", b"GPU-b00b")
OK, NOT_SUPPORTED, LOST = pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_GPU_IS_LOST

# What each function leaves for GPU 0: the type that its last argument points to, and the value. GPU 1 has memory only.
FIGURES: dict[str, tuple[type[Any], Any]] = {
    "nvmlDeviceGetUtilizationRates": (pynvml.c_nvmlUtilization_t, (37, 12)),
    "nvmlDeviceGetMemoryInfo": (pynvml.c_nvmlMemory_t, (85_520_809_984, 84_000_000_000, 1_520_809_984)),
    "nvmlDeviceGetPowerUsage": (ctypes.c_uint, 68_412),
    "nvmlDeviceGetEnforcedPowerLimit": (ctypes.c_uint, 700_000),
    "nvmlDeviceGetTotalEnergyConsumption": (ctypes.c_ulonglong, 1_234_567_891),
    "nvmlDeviceGetTemperature": (ctypes.c_uint, 41),
}


class NativeNvml:
    """The shared library: functions by name, which return NVML's status."""

    def __init__(self, count: int = 2, init: int = OK) -> None:
        self.count = count
        self.init = init
        self.calls: list[str] = []
        self.lost = False

    def function(self, name: str) -> Callable[..., int]:
        known: dict[str, Callable[..., int]] = {
            "nvmlInit_v2": lambda: self._noted("init", self.init),
            "nvmlInitWithFlags": lambda flags: self._noted("init", self.init),
            "nvmlShutdown": lambda: self._noted("shutdown", OK),
            "nvmlDeviceGetCount_v2": self._get_count,
            "nvmlDeviceGetHandleByIndex_v2": self._get_handle,
            "nvmlDeviceGetUUID": self._get_uuid,
        }
        if name in known:
            return known[name]
        kind, value = FIGURES[name]

        def get(handle: Any, *arguments: Any) -> int:
            *sensor, place = arguments
            assert [s.value for s in sensor] == ([0] if name == "nvmlDeviceGetTemperature" else [])
            target = place._obj
            assert type(target) is kind, (name, target)
            if self.lost:
                return int(LOST)
            index = ctypes.cast(handle, ctypes.c_void_p).value
            if index == 2 and name != "nvmlDeviceGetMemoryInfo":
                return int(NOT_SUPPORTED)
            if isinstance(value, tuple):
                for (field, _), number in zip(kind._fields_, value, strict=True):
                    setattr(target, field, number)
            else:
                target.value = value
            return int(OK)

        return get

    def _noted(self, call: str, status: int) -> int:
        self.calls.append(call)
        return int(status)

    def _get_count(self, place: Any) -> int:
        place._obj.value = self.count
        return int(OK)

    def _get_handle(self, index: Any, place: Any) -> int:
        # A handle is a pointer; that of the first GPU is 1.
        ctypes.cast(place, ctypes.POINTER(ctypes.c_void_p))[0] = index.value + 1
        return int(OK)

    def _get_uuid(self, handle: Any, place: Any, size: Any) -> int:
        index = ctypes.cast(handle, ctypes.c_void_p).value or 0
        assert size.value > len(UUIDS[index - 1])
        place.value = UUIDS[index - 1]
        return int(OK)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> NativeNvml:
    library = NativeNvml()
    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", library.function)
    return library


def scraped(gpus: Gpus) -> dict[Any, float]:
    async def answer() -> str:
        return (await Metrics(DataPlane(), gpus).scrape())[1].decode()

    return {k: v for k, v in samples(asyncio.run(answer())).items() if k[1] and k[1][0][0] == "gpu_uuid"}


def test_figures_of_gpus_have_tritons_names_and_units(native: NativeNvml) -> None:
    gpus = find_gpus()
    assert gpus is not None
    found = scraped(gpus)
    gpus.close()
    first, second = (("gpu_uuid", "GPU-5f1d"),), (("gpu_uuid", "GPU-b00b"),)
    assert found == {
        ("nv_gpu_utilization", first): 0.37,
        ("nv_gpu_memory_total_bytes", first): 85_520_809_984,
        ("nv_gpu_memory_total_bytes", second): 85_520_809_984,
        ("nv_gpu_memory_used_bytes", first): 1_520_809_984,
        ("nv_gpu_memory_used_bytes", second): 1_520_809_984,
        ("nv_gpu_power_usage", first): 68.412,
        ("nv_gpu_power_limit", first): 700.0,
        ("nv_energy_consumption", first): 1_234_567.891,
        ("whet_gpu_temperature_celsius", first): 41.0,
    }
    assert native.calls == ["init", "shutdown"]


def test_a_gpu_that_is_lost_has_no_figures(native: NativeNvml) -> None:
    gpus = find_gpus()
    assert gpus is not None
    native.lost = True
    assert scraped(gpus) == {}
    native.lost = False
    assert len(scraped(gpus)) == 2 + len(GPU)


@pytest.mark.parametrize("status", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_without_a_driver_there_are_no_figures(native: NativeNvml, status: int) -> None:
    native.init = status
    assert find_gpus() is None


def test_without_the_library_there_are_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", load)
    assert find_gpus() is None


def test_a_machine_whose_gpus_are_none(native: NativeNvml) -> None:
    native.count = 0
    gpus = find_gpus()
    assert gpus is not None
    assert scraped(gpus) == {}
