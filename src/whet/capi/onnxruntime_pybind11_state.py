"""The exceptions and classes that programs import from `onnxruntime.capi.onnxruntime_pybind11_state`."""

from __future__ import annotations

from whet.errors import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoModel,
    NoSuchFile,
    NotImplemented,
    RuntimeException,
    WhetError,
)
from whet.providers.catalog import get_all_providers, get_available_providers
from whet.session.device import OrtAllocatorType, OrtDevice, OrtMemoryInfo, OrtMemType
from whet.session.environment import (
    disable_telemetry_events,
    enable_telemetry_events,
    get_build_info,
    get_device,
    get_version_string,
    set_default_logger_severity,
    set_default_logger_verbosity,
)
from whet.session.feeds import ModelMetadata, NodeArg
from whet.session.inference_session import InferenceSession, OrtEpAssignedNode, OrtEpAssignedSubgraph
from whet.session.options import ExecutionMode, ExecutionOrder, GraphOptimizationLevel, RunOptions, SessionOptions
from whet.session.ortvalue import OrtValue, OrtValueVector, SparseTensor
from whet.session.seed import set_seed


class EngineError(WhetError):
    """Named for programs that catch it; Whet never raises it."""


class ModelLoaded(WhetError):
    """Named for programs that catch it; Whet never raises it."""


class ModelLoadCanceled(WhetError):
    """Named for programs that catch it; Whet never raises it."""


class ModelRequiresCompilation(WhetError):
    """Named for programs that catch it; Whet never raises it."""


class NotFound(WhetError):
    """Named for programs that catch it; Whet never raises it."""


class DeviceReset(WhetError):
    """Named for programs that catch it; Whet never raises it."""


__all__ = [
    "DeviceReset",
    "EPFail",
    "EngineError",
    "ExecutionMode",
    "ExecutionOrder",
    "Fail",
    "GraphOptimizationLevel",
    "InferenceSession",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "ModelLoadCanceled",
    "ModelLoaded",
    "ModelMetadata",
    "ModelRequiresCompilation",
    "NoModel",
    "NoSuchFile",
    "NodeArg",
    "NotFound",
    "NotImplemented",
    "OrtAllocatorType",
    "OrtDevice",
    "OrtEpAssignedNode",
    "OrtEpAssignedSubgraph",
    "OrtMemType",
    "OrtMemoryInfo",
    "OrtValue",
    "OrtValueVector",
    "RunOptions",
    "RuntimeException",
    "SessionOptions",
    "SparseTensor",
    "disable_telemetry_events",
    "enable_telemetry_events",
    "get_all_providers",
    "get_available_providers",
    "get_build_info",
    "get_device",
    "get_version_string",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
    "set_seed",
]
