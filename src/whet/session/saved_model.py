"""Saves the optimized model in a form that ONNX Runtime reads."""

from __future__ import annotations

import os

from whet.formats.onnx import save_model
from whet.graph import Model, copy_model
from whet.passes.export import lower_for_onnxruntime


def save(model: Model, path: str | os.PathLike[str], *, fuse: bool) -> None:
    """Write `model`, lowered (and fused, when asked) for ONNX Runtime; the given graph is not touched.

    A fused model no longer takes overridable initializers as inputs: the passes have read them as constants, and
    feeding one could change only part of the answer.
    """
    lowered = copy_model(model)
    if fuse:
        lowered.graph.overridable.clear()
    lower_for_onnxruntime(lowered, fuse=fuse)
    save_model(lowered, path)
