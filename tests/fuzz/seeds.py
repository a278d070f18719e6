"""The valid models that the fuzzers start from, and the feeds that a mutated model is run with."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import ModelProto

from tests.random_graphs.generator import Case, generate

MOST_ELEMENTS = 1 << 16


@functools.lru_cache(maxsize=64)
def _case(seed: int) -> Case:
    return generate(1_000_000 + seed)


def seed_model(seed: int) -> ModelProto:
    """A fresh copy of the valid model of `seed`."""
    copy = ModelProto()
    copy.CopyFrom(_case(seed).model)
    return copy


_KINDS: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def feeds_for(inputs: Iterable[Any], seed: int) -> dict[str, np.ndarray] | None:
    """Arrays that fit the session's inputs; None when an input is too large or of a kind that is not made here."""
    choices, data = random.Random(seed), np.random.default_rng(seed)
    symbols: dict[str, int] = {}
    feeds = {}
    for given in inputs:
        kind = _KINDS.get(given.type)
        if kind is None:
            return None
        extents = []
        for dim in given.shape or []:
            if isinstance(dim, str):
                dim = symbols.setdefault(dim, choices.choice([1, 2, 3]))
            extents.append(choices.choice([1, 2, 4]) if dim is None else int(dim))
        count = 1
        for extent in extents:
            count *= extent
        if count > MOST_ELEMENTS or min(extents, default=0) < 0 or len(extents) > 32:
            return None
        if kind is np.bool_:
            feeds[given.name] = np.asarray(data.integers(0, 2, size=extents), np.bool_)
        elif issubclass(kind, np.integer):
            feeds[given.name] = np.asarray(data.integers(0, 4, size=extents), kind)
        else:
            feeds[given.name] = np.asarray(data.normal(size=extents), kind)
    return feeds
