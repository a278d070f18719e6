"""Loads the demo's models and held-out digits, which ship inside the package."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from whet.errors import InvalidArgument, NoSuchFile, did_you_mean

MODEL_NAMES: Final = ("digits-cnn", "digits-transformer")
HELD_OUT_FILE: Final = "digits-held-out.npz"
RECORD_FILE: Final = "digits-training.json"

# The data set counts the ink of 4x4 blocks of a binary image: 0 is blank, 16 is full.
FULL_INK: Final = 16


def model_path(name: str) -> Path:
    """The ONNX file of the demo model `name`, one of `MODEL_NAMES`.

    Each model takes `image`, float32 [batch, 1, 8, 8] in 0..1 (1 is full ink), and gives `logits`, float32 [batch, 10].
    Raises InvalidArgument for an unknown name and NoSuchFile where the package is not installed as plain files.
    """
    if name not in MODEL_NAMES:
        raise InvalidArgument(
            "There is no demo model of this name",
            found=name,
            expected=", ".join(MODEL_NAMES),
            hint=did_you_mean(name, MODEL_NAMES),
        )
    return _data_file(f"{name}.onnx")


def held_out_digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images float32 [n, 1, 8, 8] in 0..1 and labels int64 [n] in 0..9 that neither model saw in training.

    Source: Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0; see data/README.md.
    """
    with np.load(_data_file(HELD_OUT_FILE), allow_pickle=False) as archive:
        ink = archive["images"]
        labels = archive["labels"]
    images = ink[:, np.newaxis].astype(np.float32) / np.float32(FULL_INK)
    return images, labels.astype(np.int64)


def training_record() -> dict[str, Any]:
    """What the training script wrote down: versions, seeds, split, and each model's measured accuracy and digest."""
    record: dict[str, Any] = json.loads(_data_file(RECORD_FILE).read_text(encoding="utf-8"))
    return record


def _data_file(filename: str) -> Path:
    found = resources.files("whet.demo") / "data" / filename
    # ONNX engines open models by path, so a file inside a zip archive would not do.
    if not isinstance(found, Path) or not found.is_file():
        raise NoSuchFile(
            "A data file of the demo is missing",
            file=str(found),
            expected="the package installed as plain files, with its data",
            hint="Reinstall whet, not from inside a zip archive.",
        )
    return found
