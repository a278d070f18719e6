"""Random inputs for any model, of sizes and ranges that make sense for their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from whet import dtypes

SEED = 20


class Input(Protocol):
    """A model's input as sessions describe it."""

    name: str
    type: str
    shape: list[int | str | None]


def model_files(given: str) -> list[str]:
    """The models in a folder, or the one that is given."""
    return sorted(map(str, Path(given).glob("*.onnx"))) if Path(given).is_dir() else [given]


def make_feed(inputs: Sequence[Input], batch: int = 1, length: int = 128, image: int = 64) -> dict[str, Any]:
    """One array for each input. Free extents: the first is `batch`; of rank 4 the others are `image`, else `length`."""
    rng = np.random.default_rng(SEED)
    feed: dict[str, Any] = {}
    for entry in inputs:
        dtype = dtypes.BY_ORT_NAME[entry.type.removeprefix("tensor(").removesuffix(")")]
        free = image if len(entry.shape) == 4 else length
        shape = [d if isinstance(d, int) else batch if axis == 0 else free for axis, d in enumerate(entry.shape)]
        feed[entry.name] = _array(entry.name, dtype, _known_shape(entry.name, shape, batch), rng)
    return feed


def _known_shape(name: str, shape: list[int], batch: int) -> list[int]:
    if name == "state" and len(shape) == 3:
        return [shape[0], batch, shape[2]]  # Silero VAD: layers, batch, hidden
    if name == "input" and len(shape) == 2:
        return [batch, 576]  # Silero VAD: 64 samples of context, 512 new ones
    return shape


def _array(name: str, dtype: dtypes.DType, shape: list[int], rng: np.random.Generator) -> Any:
    if name == "sr":
        return np.array(16000, dtype.numpy)
    if "mask" in name:
        return np.ones(shape, dtype.numpy)
    if "token_type" in name:
        return np.zeros(shape, dtype.numpy)
    if dtype.kind == "bool":
        return rng.random(shape) > 0.5
    if dtype.is_integer:
        return rng.integers(0, 256 if name == "bytes" else 1000, shape).astype(dtype.numpy)
    return rng.random(shape, np.float32).astype(dtype.numpy)
