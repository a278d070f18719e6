"""Imports the real `onnxruntime` package, also where Whet stands in its place in `sys.modules` (see whet.shim)."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Mapping
from types import ModuleType

from whet.errors import EPFail

PACKAGE = "onnxruntime"

_lock = threading.RLock()
_held: dict[str, ModuleType] = {}
"""The real package's modules, while others bear their names."""


def replace_modules(stand_ins: Mapping[str, ModuleType]) -> None:
    """Put `stand_ins` (name → module) in `sys.modules` in place of the real package, whose modules are kept here."""
    with _lock:
        current = _take_out()
        if _is_real(current.get(PACKAGE)):
            _held.update(current)
        sys.modules.update(stand_ins)


def real_onnxruntime() -> ModuleType:
    """The real `onnxruntime` module. Raises EPFail when it is not installed or cannot be imported."""
    with _lock:
        if PACKAGE in _held:
            return _held[PACKAGE]
        if PACKAGE not in sys.modules or _is_real(sys.modules[PACKAGE]):
            return _import()
        stand_ins = _take_out()
        try:
            _import()
        finally:
            _held.update(_take_out())
            sys.modules.update(stand_ins)
        return _held[PACKAGE]


def _import() -> ModuleType:
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name == PACKAGE:
            raise EPFail(
                "the execution provider is not installed",
                found=PACKAGE,
                hint="Install it with: pip install 'whet[onnxruntime]'.",
            ) from error
        raise _broken(error) from error
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> EPFail:
    return EPFail(
        "onnxruntime is installed but cannot be imported",
        found=f"{type(error).__name__}: {error}",
        hint="Install it again: pip install --force-reinstall onnxruntime.",
    )


def _is_real(module: ModuleType | None) -> bool:
    return module is not None and module.__name__ == PACKAGE


def _take_out() -> dict[str, ModuleType]:
    names = [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
