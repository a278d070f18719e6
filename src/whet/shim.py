"""Lets programs that say `import onnxruntime` run on Whet: `import whet; whet.install_as_onnxruntime()` first."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from whet.providers.delegates.genuine import PACKAGE, replace_modules

INTERFACE_VERSION = "1.31.1"
"""The release of ONNX Runtime whose interface Whet follows: what the stand-in gives as its `__version__`."""

STAND_INS: dict[str, str] = {
    "onnxruntime.capi": "whet.capi",
    "onnxruntime.capi._pybind_state": "whet.capi._pybind_state",
    "onnxruntime.capi.onnxruntime_inference_collection": "whet.capi.onnxruntime_inference_collection",
    "onnxruntime.capi.onnxruntime_pybind11_state": "whet.capi.onnxruntime_pybind11_state",
    "onnxruntime.transformers": "whet.transformers",
    "onnxruntime.transformers.optimizer": "whet.transformers.optimizer",
}
"""Every submodule of ONNX Runtime that Whet answers to, and its own module for it."""


class _StandIn(ModuleType):
    """`whet` under ONNX Runtime's name: every attribute is Whet's, but the version is the interface's.

    Programs compare `onnxruntime.__version__` with the release that they need.
    """

    def __init__(self) -> None:
        super().__init__("whet", __doc__)
        self.__version__ = INTERFACE_VERSION
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("whet"), name)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module("whet"))


def install_as_onnxruntime() -> ModuleType:
    """Make every later `import onnxruntime` give Whet, and return that stand-in.

    Modules that hold the real package already keep it; the `onnxruntime` delegate goes on using the real one. Calling
    this again changes nothing.
    """
    present = sys.modules.get(PACKAGE)
    if isinstance(present, _StandIn):
        return present
    stand_in = _StandIn()
    modules: dict[str, ModuleType] = {PACKAGE: stand_in}
    modules |= {name: importlib.import_module(home) for name, home in STAND_INS.items()}
    replace_modules(modules)
    return stand_in
