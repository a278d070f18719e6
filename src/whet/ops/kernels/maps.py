"""Maps and categories (ai.onnx.ml): ZipMap, CastMap, CategoryMapper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel

_CASTS: dict[str, Any] = {"TO_FLOAT": np.float32, "TO_INT64": np.int64, "TO_STRING": np.object_}


def zip_map(inputs: Sequence[Any], attributes: Mapping[str, Any], output_count: int) -> Sequence[Any]:
    """ZipMap(1): a sequence of maps from class labels to the values of each row."""
    x = inputs[0]
    keys = attributes.get("classlabels_int64s") or attributes.get("classlabels_strings")
    if not keys:
        raise InvalidArgument("attribute classlabels_int64s or classlabels_strings is missing")
    rows = x[None] if x.ndim == 1 else x
    if rows.ndim != 2 or rows.shape[1] != len(keys):
        raise InvalidArgument(
            "there must be a key for each column", value="X", found=x.shape, expected=(None, len(keys))
        )
    return [[dict(zip(keys, row, strict=True)) for row in rows.tolist()]]


def cast_map(inputs: Sequence[Any], attributes: Mapping[str, Any], output_count: int) -> Sequence[Any]:
    """CastMap(1): the values in the order of their keys, or at the places that the keys name."""
    items = inputs[0]
    if not isinstance(items, dict):
        raise InvalidArgument("the input must be a map", value="X", found=type(items).__name__)
    dtype = _CASTS.get(attributes.get("cast_to", "TO_FLOAT"))
    form = attributes.get("map_form", "DENSE")
    if dtype is None or form not in ("DENSE", "SPARSE"):
        raise InvalidArgument("attribute cast_to or map_form is unknown", found=[attributes.get("cast_to"), form])
    convert = str if dtype is np.object_ else (lambda v: int(float(v))) if dtype is np.int64 else float
    if form == "DENSE":
        return [np.array([convert(items[key]) for key in sorted(items)], dtype)[None]]
    length = int(attributes.get("max_map", 1))
    result = np.full((1, length), "" if dtype is np.object_ else 0, dtype)
    for key, value in items.items():
        if not 0 <= key < length:
            raise InvalidArgument("a key is out of range", value="X", found=key, expected=f"[0, {length})")
        result[0, key] = convert(value)
    return [result]


def category_mapper(inputs: Sequence[Any], attributes: Mapping[str, Any], output_count: int) -> Sequence[Any]:
    """CategoryMapper(1): texts to their numbers, or numbers to their texts."""
    x = inputs[0]
    texts, numbers = attributes.get("cats_strings", ()), attributes.get("cats_int64s", ())
    if len(texts) != len(numbers):
        raise InvalidArgument("cats_strings and cats_int64s differ in length", found=[len(texts), len(numbers)])
    table: dict[Any, Any]
    if x.dtype == np.object_:
        table, default = dict(zip(texts, numbers, strict=True)), attributes.get("default_int64", -1)
    else:
        table, default = dict(zip(numbers, texts, strict=True)), attributes.get("default_string", "_Unused")
    found = [table.get(item, default) for item in x.reshape(-1).tolist()]
    return [np.array(found, np.int64 if x.dtype == np.object_ else np.object_).reshape(x.shape)]


MAPS: dict[str, Kernel] = {
    "ai.onnx.ml.CastMap": cast_map,
    "ai.onnx.ml.CategoryMapper": category_mapper,
    "ai.onnx.ml.ZipMap": zip_map,
}
