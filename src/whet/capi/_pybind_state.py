"""The same names as `onnxruntime_pybind11_state`, where ONNX Runtime re-exports them."""

from whet.capi.onnxruntime_pybind11_state import *  # noqa: F403
from whet.capi.onnxruntime_pybind11_state import __all__ as __all__
