"""The figures of NVIDIA GPUs, through nvidia-ml-py (`pip install 'whet[gpu-metrics]'`)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOGGER = logging.getLogger("whet.server.metrics")


@dataclass(frozen=True, slots=True)
class GpuSample:
    """Figures of one GPU; None where the driver does not tell. Utilization 0 to 1, bytes, watts, joules, degrees C."""

    uuid: str
    utilization: float | None
    memory_total: int | None
    memory_used: int | None
    power: float | None
    power_limit: float | None
    energy: float | None
    temperature: float | None


class Gpus:
    """The GPUs that NVML sees. `nvml` is the module `pynvml`, or in tests a fake.

    `sample` may take milliseconds: call it outside of the event loop, from one thread at a time.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        self._uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in self._handles]

    def sample(self) -> list[GpuSample]:
        """The figures now, GPU by GPU. A GPU that has gone away has no figures; it is no error."""
        return [self._of(uuid, handle) for uuid, handle in zip(self._uuids, self._handles, strict=True)]

    def close(self) -> None:
        """Let NVML go."""
        self._nvml.nvmlShutdown()

    def _of(self, uuid: str, handle: Any) -> GpuSample:
        nvml = self._nvml

        def read(function: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return function(handle, *arguments)
            except nvml.NVMLError:
                return None

        rates, memory = read(nvml.nvmlDeviceGetUtilizationRates), read(nvml.nvmlDeviceGetMemoryInfo)
        return GpuSample(
            uuid,
            _scaled(getattr(rates, "gpu", None), 0.01),
            getattr(memory, "total", None),
            getattr(memory, "used", None),
            _scaled(read(nvml.nvmlDeviceGetPowerUsage), 0.001),
            _scaled(read(nvml.nvmlDeviceGetEnforcedPowerLimit), 0.001),
            _scaled(read(nvml.nvmlDeviceGetTotalEnergyConsumption), 0.001),
            _scaled(read(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU), 1.0),
        )


def find_gpus() -> Gpus | None:
    """The GPUs, or None where there is no driver, no GPU, or nvidia-ml-py is not installed."""
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        return Gpus(nvml)
    except nvml.NVMLError as error:
        LOGGER.debug("no GPU figures: %s", error)
        return None


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else round(value * factor, 6)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
