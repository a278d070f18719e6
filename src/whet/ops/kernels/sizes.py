"""Sizes of results that a few small inputs can make huge, known before the kernel allocates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.ops.kernels.movement import range_count

Measure = Callable[[Sequence[Any], Mapping[str, Any]], int]
"""Bytes of a node's largest result, from its inputs and attributes; 0 where the kernel will refuse the inputs."""


def _integers(value: Any) -> list[int]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        return []
    return [max(int(v), 0) for v in value.reshape(-1)]


def _given(inputs: Sequence[Any], index: int) -> Any:
    return inputs[index] if index < len(inputs) else None


def _broadcast(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    """Elements of the broadcast result; looked at only where the inputs' sizes allow it to be large."""
    arrays = [x for x in inputs if isinstance(x, np.ndarray)]
    bound = math.prod(max(x.size, 1) for x in arrays)
    if bound < 1 << 24:
        return 0
    rank = max(x.ndim for x in arrays)
    extents = (max((x.shape[x.ndim - 1 - i] for x in arrays if i < x.ndim), default=1) for i in range(rank))
    return math.prod(extents) * max(x.itemsize for x in arrays)


def _tile(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    data = inputs[0]
    return int(data.nbytes * math.prod(_integers(inputs[1])))


def _expand(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    data, wanted = inputs[0], _integers(inputs[1])
    shape = [1] * (len(wanted) - data.ndim) + list(data.shape)
    wanted = [1] * (len(shape) - len(wanted)) + wanted
    return math.prod(max(a, b) if a and b else 0 for a, b in zip(shape, wanted, strict=True)) * int(data.itemsize)


def _constant_of_shape(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    value = attributes.get("value")
    itemsize = 4 if value is None else int(value.itemsize)
    return math.prod(_integers(inputs[0])) * itemsize


def _one_hot(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    depth, values = inputs[1], inputs[2]
    if depth.size != 1:
        return 0
    # The comparison works on indices of 8 bytes beside the values.
    return int(inputs[0].size) * max(int(depth.reshape(())), 0) * int(values.itemsize)


def _range(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    if any(not isinstance(x, np.ndarray) or x.size != 1 for x in inputs[:3]):
        return 0
    return range_count(inputs[0], inputs[1], inputs[2]) * int(inputs[0].itemsize)


def _pad(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    data = inputs[0]
    pads = [int(p) for p in inputs[1].reshape(-1)]
    axes = _given(inputs, 3)
    where = range(data.ndim) if axes is None else [int(a) % max(data.ndim, 1) for a in axes.reshape(-1)]
    if len(pads) != 2 * len(where):
        return 0
    shape = list(data.shape)
    for position, axis in enumerate(where):
        shape[axis] += pads[position] + pads[position + len(where)]
    return int(math.prod(max(extent, 0) for extent in shape) * data.itemsize)


def _concat(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    return sum(int(x.nbytes) for x in inputs if isinstance(x, np.ndarray))


def _concat_sequence(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    return _concat(inputs[0], attributes) if isinstance(inputs[0], list) else 0


def resize_extents(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> list[int]:
    """The extents of a Resize's result, without the adjustments of keep_aspect_ratio_policy (which only shrink)."""
    data, scales, sizes = inputs[0], _given(inputs, 2), _given(inputs, 3)
    axes = attributes.get("axes")
    where = range(data.ndim) if axes is None else [int(a) % max(data.ndim, 1) for a in axes]
    shape = list(data.shape)
    if sizes is not None and sizes.size:
        given = _integers(sizes)
        if attributes.get("keep_aspect_ratio_policy", "stretch") == "not_smaller" and len(given) == len(where):
            factor = max((g / max(shape[a], 1) for g, a in zip(given, where, strict=True)), default=1.0)
            given = [math.ceil(shape[a] * factor) for a in where]
        for axis, extent in zip(where, given, strict=False):
            shape[axis] = extent
    elif scales is not None and scales.size:
        for axis, scale in zip(where, scales.reshape(-1).tolist(), strict=False):
            shape[axis] = math.ceil(shape[axis] * scale) if math.isfinite(scale) and scale > 0 else 0
    return shape


def _resize(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    return math.prod(resize_extents(inputs, attributes)) * int(inputs[0].itemsize)


def _matmul(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    a, b = inputs[0], inputs[1]
    if a.size * b.size < 1 << 24 or a.ndim < 2 or b.ndim < 2:
        return 0
    stack = _broadcast([np.broadcast_to(0, a.shape[:-2]), np.broadcast_to(0, b.shape[:-2])], {}) // 8
    stack = stack or math.prod(max(a.shape[:-2], b.shape[:-2], key=math.prod))
    return int(stack * a.shape[-2] * b.shape[-1] * a.itemsize)


def _gather(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    data, indices = inputs[0], inputs[1]
    axis = int(attributes.get("axis", 0))
    if not data.ndim or not -data.ndim <= axis < data.ndim or not data.shape[axis]:
        return 0
    return int(data.nbytes // data.shape[axis] * indices.size)


def _shape_attribute(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    found = dtypes.BY_CODE.get(attributes.get("dtype", dtypes.FLOAT32.onnx_code))
    # The generator draws in float64.
    return math.prod(max(int(d), 0) for d in attributes.get("shape", ())) * max(8, found.numpy.itemsize if found else 0)


def _window(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    return max(int(inputs[0].reshape(())), 0) * 8 if inputs[0].size == 1 else 0


def _sample(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    return int(inputs[0].shape[0]) * max(int(attributes.get("sample_size", 1)), 0) * 8 if inputs[0].ndim else 0


def _conv(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    """Bytes of the padded input: what pads alone can make of a small one."""
    x, pads = inputs[0], attributes.get("pads")
    if pads is None or x.ndim < 3 or len(pads) != 2 * (x.ndim - 2):
        return 0
    rank = x.ndim - 2
    extents = (e + max(int(pads[i]), 0) + max(int(pads[i + rank]), 0) for i, e in enumerate(x.shape[2:]))
    return int(math.prod(x.shape[:2]) * math.prod(extents) * int(x.itemsize))


def _conv_transpose(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    x, w = inputs[0], inputs[1]
    rank = x.ndim - 2
    if rank < 1 or w.ndim != x.ndim:
        return 0
    extents = []
    for i in range(rank):
        stride, dilation, extra = (
            int(attributes[name][i]) if len(attributes.get(name, ())) == rank else default
            for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
        )
        extents.append(max((x.shape[i + 2] - 1) * stride + (w.shape[i + 2] - 1) * dilation + 1 + extra, 0))
    shape = attributes.get("output_shape", ())
    if len(shape) == rank:
        extents = [max(e, int(s)) for e, s in zip(extents, shape, strict=True)]
    channels = w.shape[1] * int(attributes.get("group", 1))
    return int(int(x.shape[0]) * channels * math.prod(extents) * int(x.itemsize))


RESULT_BYTES: dict[str, Measure] = {
    **dict.fromkeys(
        (
            "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
            "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub",
            "Sum", "Where", "Xor",
        ),
        _broadcast,
    ),
    "AveragePool": _conv,
    "BlackmanWindow": _window,
    "Concat": _concat,
    "ConcatFromSequence": _concat_sequence,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Expand": _expand,
    "Gather": _gather,
    "HammingWindow": _window,
    "HannWindow": _window,
    "LpPool": _conv,
    "MatMul": _matmul,
    "MaxPool": _conv,
    "Multinomial": _sample,
    "OneHot": _one_hot,
    "Pad": _pad,
    "QLinearConv": _conv,
    "RandomNormal": _shape_attribute,
    "RandomUniform": _shape_attribute,
    "Range": _range,
    "Resize": _resize,
    "Tile": _tile,
}  # fmt: skip
