"""The value of a Constant node, in each of the forms that ONNX gives it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whet import dtypes
from whet.errors import InvalidGraph
from whet.graph import Attribute, TensorData

_FORMS = (
    "value", "sparse_value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings",
)  # fmt: skip


def constant_node(attributes: Mapping[str, Attribute], node: str) -> TensorData:
    """The tensor that a Constant node with these attributes makes. Raises InvalidGraph unless there is exactly one."""
    unknown = [name for name in attributes if name not in _FORMS]
    if len(attributes) != 1 or unknown:
        raise InvalidGraph(
            "a Constant needs exactly one value", node=node, found=sorted(attributes), expected=f"one of {_FORMS}"
        )
    name, value = next(iter(attributes.items()))
    if name in ("value", "sparse_value") and isinstance(value, TensorData):
        return value
    if name == "value_float" and isinstance(value, float):
        return TensorData.from_array(np.float32(value))
    if name == "value_int" and isinstance(value, int):
        return TensorData.from_array(np.int64(value))
    if name == "value_string" and isinstance(value, str | bytes):
        return TensorData.from_array(np.array(value, object), dtypes.STRING)
    if isinstance(value, tuple):
        if name == "value_floats" and all(isinstance(v, float) for v in value):
            return TensorData.from_array(np.array(value, np.float32))
        if name == "value_ints" and all(isinstance(v, int) for v in value):
            return TensorData.from_array(np.array(value, np.int64))
        if name == "value_strings" and all(isinstance(v, str | bytes) for v in value):
            return TensorData.from_array(np.array([*value, None], object)[:-1], dtypes.STRING)
    raise InvalidGraph("a Constant's value is of the wrong type", node=node, value=name, found=type(value).__name__)
