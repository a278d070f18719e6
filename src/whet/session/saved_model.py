"""Saves the optimized model in a form that ONNX Runtime reads."""

from __future__ import annotations

import os

from whet.formats.onnx import save_model
from whet.graph import Model, copy_model
from whet.passes.export import lower_for_onnxruntime

EXTERNAL_BYTES = 1024
"""Smallest tensor that goes to a second file when the caller does not say, as in ONNX Runtime."""


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    fuse: bool,
    data_name: str | None = None,
    data_min_bytes: int = EXTERNAL_BYTES,
) -> None:
    """Write `model` in its exported form. With a `data_name`, tensors of `data_min_bytes` and more go to that file."""
    lowered = export(model, fuse=fuse)
    if data_name:
        save_model(lowered, path, external_data=True, data_name=data_name, data_min_bytes=data_min_bytes)
    else:
        save_model(lowered, path)


def export(model: Model, *, fuse: bool) -> Model:
    """A copy of `model`, lowered (and fused, when asked) for ONNX Runtime: what `save` writes.

    A fused model no longer takes overridable initializers as inputs: the passes have read them as constants, and
    feeding one could change only part of the answer.
    """
    lowered = copy_model(model)
    if fuse:
        lowered.graph.overridable.clear()
    lower_for_onnxruntime(lowered, fuse=fuse)
    return lowered
