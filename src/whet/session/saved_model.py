"""Saves the optimized model in a form that ONNX Runtime reads."""

from __future__ import annotations

from whet.formats.onnx import save_model
from whet.graph import Model, copy_model
from whet.passes.export import lower_for_onnxruntime
from whet.session.options import SessionOptions


def save(model: Model, options: SessionOptions) -> None:
    """Write the model to `options.optimized_model_filepath`; the session's own graph is not touched."""
    lowered = copy_model(model)
    lower_for_onnxruntime(lowered, fuse=options.level != "disabled")
    save_model(lowered, options.optimized_model_filepath)
