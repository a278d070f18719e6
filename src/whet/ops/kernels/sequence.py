"""Sequences (lists) and optionals (the value itself, or None)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import axis_within, integer

Values = Sequence[Any]


def _sequence(inputs: Values, index: int, name: str) -> list[Any]:
    value = inputs[index] if index < len(inputs) else None
    if not isinstance(value, list):
        raise InvalidArgument(f"input {index} must be a sequence", value=name, found=type(value).__name__)
    return value


def _position(inputs: Values, index: int, low: int, high: int) -> int:
    value = inputs[index]
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise InvalidArgument("the position must be a scalar", value="position")
    position = int(value.reshape(()))
    if not low <= position <= high:
        raise InvalidArgument("the position is out of range", value="position", found=position, expected=[low, high])
    return position


def construct(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SequenceConstruct(11)."""
    return [list(inputs)]


def empty(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SequenceEmpty(11)."""
    code = attributes.get("dtype", dtypes.FLOAT32.onnx_code)
    if code not in dtypes.BY_CODE:
        raise InvalidArgument("attribute dtype is no element type", found=code)
    return [[]]


def at(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SequenceAt(11)."""
    items = _sequence(inputs, 0, "input_sequence")
    return [items[_position(inputs, 1, -len(items), len(items) - 1)]]


def insert(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SequenceInsert(11): at the end where no position is given."""
    items = list(_sequence(inputs, 0, "input_sequence"))
    given = len(inputs) > 2 and inputs[2] is not None
    items.insert(_position(inputs, 2, -len(items), len(items)) if given else len(items), inputs[1])
    return [items]


def erase(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SequenceErase(11): the last where no position is given."""
    items = list(_sequence(inputs, 0, "input_sequence"))
    if not items:
        raise InvalidArgument("the sequence is empty", value="input_sequence")
    given = len(inputs) > 1 and inputs[1] is not None
    del items[_position(inputs, 1, -len(items), len(items) - 1) if given else -1]
    return [items]


def length(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SequenceLength(11)."""
    return [np.array(len(_sequence(inputs, 0, "input_sequence")), np.int64)]


def concat_from_sequence(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """ConcatFromSequence(11)."""
    items = _sequence(inputs, 0, "input_sequence")
    if not items:
        raise InvalidArgument("the sequence is empty", value="input_sequence", expected="at least one tensor")
    stack = bool(integer(attributes, "new_axis", 0))
    axis = axis_within(integer(attributes, "axis"), items[0].ndim + stack)
    try:
        return [np.stack(items, axis) if stack else np.concatenate(items, axis)]
    except ValueError as error:
        raise InvalidArgument(
            "the tensors do not fit", value="input_sequence", found=", ".join(str(x.shape) for x in items)
        ) from error


def split_to_sequence(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """SplitToSequence(24): into single slices, pieces of one length, or pieces of given lengths."""
    data = inputs[0]
    lengths = inputs[1] if len(inputs) > 1 else None
    axis = axis_within(int(attributes.get("axis", 0)), data.ndim)
    extent = data.shape[axis]
    if lengths is None:
        parts = np.split(data, range(1, extent), axis) if extent else []
        if not integer(attributes, "keepdims", 1):
            parts = [part.squeeze(axis) for part in parts]
        return [list(parts)]
    if lengths.ndim == 0:
        each = int(lengths)
        if each < 1:
            raise InvalidArgument("the piece length must be positive", value="split", found=each)
        return [np.split(data, range(each, extent, each), axis) if extent else []]
    sizes = [int(s) for s in lengths]
    if min(sizes, default=0) < 0 or sum(sizes) != extent:
        raise InvalidArgument("the lengths do not add up to the axis", value="split", found=sizes, expected=extent)
    return [np.split(data, np.cumsum(sizes)[:-1], axis)]


def optional(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """Optional(15)."""
    return [inputs[0] if inputs else None]


def optional_has_element(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """OptionalHasElement(18)."""
    return [np.array(bool(inputs) and inputs[0] is not None)]


def optional_get_element(inputs: Values, attributes: Mapping[str, Any], output_count: int) -> Values:
    """OptionalGetElement(18)."""
    if inputs[0] is None:
        raise InvalidArgument("the optional holds nothing", value="input")
    return [inputs[0]]


SEQUENCES: dict[str, Kernel] = {
    "ConcatFromSequence": concat_from_sequence,
    "Optional": optional,
    "OptionalGetElement": optional_get_element,
    "OptionalHasElement": optional_has_element,
    "SequenceAt": at,
    "SequenceConstruct": construct,
    "SequenceEmpty": empty,
    "SequenceErase": erase,
    "SequenceInsert": insert,
    "SequenceLength": length,
    "SplitToSequence": split_to_sequence,
}
