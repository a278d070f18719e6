"""Reading and writing ONNX models: the only code (with two wrappers in `ops`) that handles onnx's protobufs."""

from whet.formats.onnx.load import from_text, load_model

__all__ = ["from_text", "load_model"]
