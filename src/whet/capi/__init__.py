"""ONNX Runtime's `capi` package: the places from which programs import its exceptions and classes."""

from whet.capi import _pybind_state, onnxruntime_inference_collection, onnxruntime_pybind11_state

__all__ = ["_pybind_state", "onnxruntime_inference_collection", "onnxruntime_pybind11_state"]
