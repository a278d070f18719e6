"""Whet: run any ONNX model, optimized in levels, through execution providers."""

from whet.version import __version__

__all__ = ["__version__"]
