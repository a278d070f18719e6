"""Whet: run any ONNX model, optimized in levels, through execution providers. `import whet as ort` runs existing code.

Names are imported on first use, so that `import whet` stays quick: a program that only asks for the version pays
nothing for the engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from whet.version import __version__

if TYPE_CHECKING:
    from whet.errors import WhetError
    from whet.ops.custom import CustomOp
    from whet.providers.catalog import get_all_providers, get_available_providers
    from whet.session.device import OrtAllocatorType, OrtDevice, OrtDeviceVendorId, OrtMemoryInfo, OrtMemType
    from whet.session.environment import (
        disable_telemetry_events,
        enable_telemetry_events,
        get_build_info,
        get_device,
        get_version_string,
        has_collective_ops,
        preload_dlls,
        print_debug_info,
        set_default_logger_severity,
        set_default_logger_verbosity,
    )
    from whet.session.feeds import ModelMetadata, NodeArg
    from whet.session.inference_session import InferenceSession, OrtEpAssignedNode, OrtEpAssignedSubgraph
    from whet.session.io_binding import IOBinding
    from whet.session.options import ExecutionMode, ExecutionOrder, GraphOptimizationLevel, RunOptions, SessionOptions
    from whet.session.ortvalue import OrtValue, SparseTensor, copy_tensors
    from whet.session.seed import set_seed
    from whet.shim import install_as_onnxruntime

_HOMES: dict[str, str] = {
    "CustomOp": "whet.ops.custom",
    "ExecutionMode": "whet.session.options",
    "ExecutionOrder": "whet.session.options",
    "GraphOptimizationLevel": "whet.session.options",
    "IOBinding": "whet.session.io_binding",
    "InferenceSession": "whet.session.inference_session",
    "ModelMetadata": "whet.session.feeds",
    "NodeArg": "whet.session.feeds",
    "OrtAllocatorType": "whet.session.device",
    "OrtDevice": "whet.session.device",
    "OrtDeviceVendorId": "whet.session.device",
    "OrtEpAssignedNode": "whet.session.inference_session",
    "OrtEpAssignedSubgraph": "whet.session.inference_session",
    "OrtMemType": "whet.session.device",
    "OrtMemoryInfo": "whet.session.device",
    "OrtValue": "whet.session.ortvalue",
    "RunOptions": "whet.session.options",
    "SessionOptions": "whet.session.options",
    "SparseTensor": "whet.session.ortvalue",
    "WhetError": "whet.errors",
    "copy_tensors": "whet.session.ortvalue",
    "disable_telemetry_events": "whet.session.environment",
    "enable_telemetry_events": "whet.session.environment",
    "get_all_providers": "whet.providers.catalog",
    "get_available_providers": "whet.providers.catalog",
    "get_build_info": "whet.session.environment",
    "get_device": "whet.session.environment",
    "get_version_string": "whet.session.environment",
    "has_collective_ops": "whet.session.environment",
    "install_as_onnxruntime": "whet.shim",
    "preload_dlls": "whet.session.environment",
    "print_debug_info": "whet.session.environment",
    "set_default_logger_severity": "whet.session.environment",
    "set_default_logger_verbosity": "whet.session.environment",
    "set_seed": "whet.session.seed",
}
_SUBMODULES: frozenset[str] = frozenset({"capi", "errors", "transformers"})

__all__ = [
    "__version__",
    "CustomOp",
    "ExecutionMode",
    "ExecutionOrder",
    "GraphOptimizationLevel",
    "IOBinding",
    "InferenceSession",
    "ModelMetadata",
    "NodeArg",
    "OrtAllocatorType",
    "OrtDevice",
    "OrtDeviceVendorId",
    "OrtEpAssignedNode",
    "OrtEpAssignedSubgraph",
    "OrtMemType",
    "OrtMemoryInfo",
    "OrtValue",
    "RunOptions",
    "SessionOptions",
    "SparseTensor",
    "WhetError",
    "copy_tensors",
    "disable_telemetry_events",
    "enable_telemetry_events",
    "get_all_providers",
    "get_available_providers",
    "get_build_info",
    "get_device",
    "get_version_string",
    "has_collective_ops",
    "install_as_onnxruntime",
    "preload_dlls",
    "print_debug_info",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
    "set_seed",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"whet.{name}")
    raise AttributeError(f"module 'whet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})
