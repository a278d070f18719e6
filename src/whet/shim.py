"""Lets programs that say `import onnxruntime` run on Whet: `import whet; whet.install_as_onnxruntime()` first."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from whet.providers.delegates.genuine import PACKAGE, replace_modules

STAND_INS: dict[str, str] = {
    "onnxruntime": "whet",
    "onnxruntime.capi": "whet.capi",
    "onnxruntime.capi._pybind_state": "whet.capi._pybind_state",
    "onnxruntime.capi.onnxruntime_inference_collection": "whet.capi.onnxruntime_inference_collection",
    "onnxruntime.capi.onnxruntime_pybind11_state": "whet.capi.onnxruntime_pybind11_state",
    "onnxruntime.transformers": "whet.transformers",
    "onnxruntime.transformers.optimizer": "whet.transformers.optimizer",
}
"""Every module name of ONNX Runtime that Whet answers to, and its own module for it."""


def install_as_onnxruntime() -> ModuleType:
    """Make every later `import onnxruntime` give Whet, and return it.

    Modules that hold the real package already keep it; the `onnxruntime` delegate goes on using the real one. Calling
    this again changes nothing.
    """
    modules = {name: importlib.import_module(home) for name, home in STAND_INS.items()}
    if sys.modules.get(PACKAGE) is not modules[PACKAGE]:
        replace_modules(modules)
    return modules[PACKAGE]
