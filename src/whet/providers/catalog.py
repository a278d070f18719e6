"""The literal list of execution providers: names, what makes each available, and how to make one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.errors import EPFail, InvalidArgument, did_you_mean
from whet.ops.custom import CustomOp
from whet.providers.base import ExecutionProvider


@dataclass(frozen=True, slots=True)
class Entry:
    """A provider: the module and class that implement it, and the distribution that must be installed for it."""

    name: str
    module: str
    cls: str
    requires: str | None = None
    install: str = ""


CATALOG: tuple[Entry, ...] = (
    Entry("CPUExecutionProvider", "whet.providers.cpu", "CPUExecutionProvider"),
    Entry(
        "onnxruntime",
        "whet.providers.delegates.onnxruntime",
        "OnnxRuntimeDelegate",
        requires="onnxruntime",
        install="pip install 'whet[onnxruntime]'",
    ),
    Entry(
        "openvino",
        "whet.providers.delegates.openvino",
        "OpenVINODelegate",
        requires="openvino",
        install="pip install 'whet[openvino]'",
    ),
    Entry("ReferenceExecutionProvider", "whet.providers.reference", "ReferenceExecutionProvider"),
)
"""In order of priority. The reference provider is the last in line on the CPU."""

CPU = "CPUExecutionProvider"
REFERENCE = "ReferenceExecutionProvider"

ONNXRUNTIME_PROVIDERS: dict[str, str] = {
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "NvTensorRTRTXExecutionProvider": "onnxruntime-trt-rtx",
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "ROCMExecutionProvider": "onnxruntime-rocm",
    "MIGraphXExecutionProvider": "onnxruntime-rocm",
    "DmlExecutionProvider": "onnxruntime-directml",
    "CoreMLExecutionProvider": "onnxruntime",
    "QNNExecutionProvider": "onnxruntime-qnn",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "VitisAIExecutionProvider": "onnxruntime-vitisai",
    "DnnlExecutionProvider": "onnxruntime",
    "XnnpackExecutionProvider": "onnxruntime",
    "ACLExecutionProvider": "onnxruntime",
    "ArmNNExecutionProvider": "onnxruntime",
    "CANNExecutionProvider": "onnxruntime-cann",
    "NnapiExecutionProvider": "onnxruntime",
    "RknpuExecutionProvider": "onnxruntime",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
    "AzureExecutionProvider": "onnxruntime",
}
"""ONNX Runtime's own providers, which the `onnxruntime` delegate runs by name; and the distribution that has each."""

_BY_NAME: dict[str, Entry] = {e.name: e for e in CATALOG}


def get_all_providers() -> list[str]:
    """Every provider name that a session accepts, installed or not, in order of priority."""
    return [*ONNXRUNTIME_PROVIDERS, *(e.name for e in CATALOG)]


def get_available_providers() -> list[str]:
    """The provider names that work on this machine now, in order of priority."""
    own = [e.name for e in CATALOG if is_installed(e)]
    return [*_onnxruntime_providers(), *own]


def is_installed(entry: Entry) -> bool:
    """Whether what the entry requires can be imported."""
    return entry.requires is None or _is_findable(entry.requires)


def install_hint(name: str) -> str:
    """What to install so that the provider called `name` works."""
    if name in ONNXRUNTIME_PROVIDERS:
        return f"Install it with: pip install {ONNXRUNTIME_PROVIDERS[name]}."
    return f"Install it with: {_BY_NAME[name].install}." if _BY_NAME[name].install else ""


def check_name(name: str) -> None:
    """Raise InvalidArgument when no provider has this name, naming the nearest."""
    if name not in _BY_NAME and name not in ONNXRUNTIME_PROVIDERS:
        known = get_all_providers()
        raise InvalidArgument(
            "unknown execution provider",
            found=name,
            hint=did_you_mean(name, known) or f"Known: {', '.join(known)}.",
        )


def is_available(name: str) -> bool:
    """Whether the (known) provider works on this machine."""
    if name in ONNXRUNTIME_PROVIDERS:
        return name in _onnxruntime_providers()
    return is_installed(_BY_NAME[name])


def make(
    name: str, options: Mapping[str, str], custom_ops: Sequence[CustomOp], custom_op_libraries: Sequence[str] = ()
) -> ExecutionProvider:
    """Make the provider called `name`.

    Raises InvalidArgument for an unknown name or option, EPFail (with what to install) for one that is not there.
    """
    check_name(name)
    if not is_available(name):
        raise EPFail("the execution provider is not installed", found=name, hint=install_hint(name))
    if name in ONNXRUNTIME_PROVIDERS:
        entry, arguments = _BY_NAME["onnxruntime"], {"provider": name}
    else:
        entry, arguments = _BY_NAME[name], {}
    cls = getattr(importlib.import_module(entry.module), entry.cls)
    if entry.name == REFERENCE:
        provider = cls(options, custom_ops)
    elif entry.name == "onnxruntime":
        provider = cls(options, custom_op_libraries=custom_op_libraries, **arguments)
    else:
        provider = cls(options)
    made: ExecutionProvider = provider
    return made


def _onnxruntime_providers() -> list[str]:
    if not _is_findable("onnxruntime"):
        return []
    from whet.providers.delegates.onnxruntime import installed_providers

    return [p for p in installed_providers() if p in ONNXRUNTIME_PROVIDERS and p != "AzureExecutionProvider"]


def _is_findable(package: str) -> bool:
    """Whether a top-level package is installed. The finders are asked, not `sys.modules`: Whet may stand in there."""
    return any(finder.find_spec(package, None) is not None for finder in sys.meta_path)
