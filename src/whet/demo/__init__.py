"""The demo's data: two small digit classifiers and the held-out images that they were never trained on."""

from __future__ import annotations

from whet.demo.digits import MODEL_NAMES, held_out_digits, model_path, training_record

__all__ = ["MODEL_NAMES", "held_out_digits", "model_path", "training_record"]
