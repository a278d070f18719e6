"""A feed or a list of results in one .npz file: arrays, text, sequences, maps and nothing at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from whet import dtypes

TREE = "__tree__"
"""The member that tells a file of values from any other .npz."""


def save_values(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write named values. Text and element types that numpy's format lacks are stored as plain data, never pickled."""
    arrays: dict[str, Any] = {}
    tree = {name: _encode(value, arrays) for name, value in values.items()}
    arrays[TREE] = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def load_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_values` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        tree = json.loads(bytes(stored[TREE]).decode())
        return {name: _decode(node, stored) for name, node in tree.items()}


def _encode(value: Any, arrays: dict[str, Any]) -> Any:
    if value is None:
        return {"kind": "none"}
    if isinstance(value, (list, tuple)):
        return {"kind": "sequence", "items": [_encode(v, arrays) for v in value]}
    if isinstance(value, dict):
        return {"kind": "map", "items": [[k, _encode(v, arrays)] for k, v in value.items()]}
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        texts = [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in array.ravel()]
        return {"kind": "text", "shape": list(array.shape), "items": texts}
    key = f"a{len(arrays)}"
    known = dtypes.from_numpy(array.dtype)
    if known is not None and known.numpy.kind == "V":
        arrays[key] = np.ascontiguousarray(array).view(np.uint8 if array.dtype.itemsize == 1 else np.uint16)
        return {"kind": "array", "key": key, "dtype": known.name, "shape": list(array.shape)}
    arrays[key] = array
    return {"kind": "array", "key": key}


def _decode(node: Any, stored: Any) -> Any:
    kind = node["kind"]
    if kind == "none":
        return None
    if kind == "sequence":
        return [_decode(item, stored) for item in node["items"]]
    if kind == "map":
        return {key: _decode(item, stored) for key, item in node["items"]}
    if kind == "text":
        array = np.empty(len(node["items"]), np.object_)
        array[:] = node["items"]
        return array.reshape(node["shape"])
    array = stored[node["key"]]
    return array.view(dtypes.BY_NAME[node["dtype"]].numpy).reshape(node["shape"]) if "dtype" in node else array
