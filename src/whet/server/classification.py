"""The classification extension: the largest values of an output as `value:index[:label]` strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.errors import InvalidArgument
from whet.server.datatypes import BYTES
from whet.server.request import Array, OutputTensor


def classify(tensor: OutputTensor, classes: int, labels: Sequence[str], batched: bool) -> OutputTensor:
    """The `classes` largest values of each row (of the whole tensor where the model is not batched), largest first.

    Equal values stand in the order of their index; NaN counts as the smallest. Raises InvalidArgument for BYTES.
    """
    if tensor.datatype is BYTES:
        raise InvalidArgument("strings have no largest value to classify by", value=tensor.name, found="BYTES")
    array = np.asarray(tensor.array)
    rows = array.reshape(array.shape[0], -1) if batched else array.reshape(1, -1)
    found = np.stack([_top(row, classes, labels) for row in rows]) if len(rows) else np.empty((0, 0), object)
    return OutputTensor(tensor.name, BYTES, found if batched else found[0])


def _top(row: Array, classes: int, labels: Sequence[str]) -> Array:
    values = row.astype(np.float64) if row.dtype.kind not in "iub" else row
    keys = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    order = np.argsort(keys, kind="stable")[::-1] if len(np.unique(keys)) == len(keys) else _stable_descending(keys)
    out = np.empty(min(classes, len(row)), object)
    for place, index in enumerate(order[:classes]):
        label = f":{labels[index]}" if index < len(labels) else ""
        out[place] = f"{_number(values[index])}:{index}{label}".encode()
    return out


def _stable_descending(keys: Array) -> Array:
    """Indices from the largest key to the smallest; equal keys by rising index."""
    return len(keys) - 1 - np.argsort(keys[::-1], kind="stable")[::-1]


def _number(value: object) -> str:
    return f"{value:f}" if isinstance(value, float) else str(value)
