"""Operators that change shapes and move elements. Results may be views of inputs."""

from __future__ import annotations

import math

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_rank,
    integer,
    optional,
    required,
    text,
    whole,
)
from whet.ops.kernels.common import axes_within


def identity(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Identity(25), of any value."""
    return [inputs[0]]


def reshape(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Reshape(25): 0 copies the extent unless allowzero is set, one -1 takes what is left."""
    data, wanted = required(inputs, 0, "data"), required(inputs, 1, "shape")
    expect_rank(wanted, 1, "shape")
    target = [int(d) for d in wanted]
    if not integer(attributes, "allowzero", 0):
        for position, extent in enumerate(target):
            if extent == 0:
                if position >= data.ndim:
                    raise InvalidArgument(
                        f"extent 0 at position {position} copies an axis that data lacks", value="shape", found=target,
                        expected=f"data {data.shape}",
                    )  # fmt: skip
                target[position] = data.shape[position]
    elif 0 in target and -1 in target:
        raise InvalidArgument("allowzero excludes 0 and -1 together", value="shape", found=target)
    if target.count(-1) > 1 or min(target, default=0) < -1:
        raise InvalidArgument("at most one extent is -1, none below", value="shape", found=target)
    if -1 in target:
        known = math.prod(d for d in target if d != -1)
        if known == 0 or data.size % known:
            raise InvalidArgument(
                "the elements do not divide into this shape", value="shape", found=target,
                expected=f"a shape of {data.size} elements",
            )  # fmt: skip
        target[target.index(-1)] = data.size // known
    if math.prod(target) != data.size:
        raise InvalidArgument(
            "the shape has another number of elements", value="shape", found=target,
            expected=f"{data.size} elements, as data {data.shape}",
        )  # fmt: skip
    return [data.reshape(target)]


def transpose(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Transpose(25)."""
    data = required(inputs, 0, "data")
    perm = attributes.get("perm")
    if perm is None:
        return [data.transpose()]
    if sorted(int(p) for p in perm) != list(range(data.ndim)):
        raise InvalidArgument("attribute perm is no permutation of the axes", found=list(perm), expected=data.ndim)
    return [data.transpose([int(p) for p in perm])]


def flatten(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Flatten(25)."""
    x = required(inputs, 0, "input")
    axis = int(attributes.get("axis", 1))
    if not -x.ndim <= axis <= x.ndim:
        raise InvalidArgument("attribute axis is out of range", found=axis, expected=f"[{-x.ndim}, {x.ndim}]")
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))]


def squeeze(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Squeeze(25)."""
    data, axes = required(inputs, 0, "data"), optional(inputs, 1)
    if axes is None:
        return [data.squeeze()]
    where = axes_within([int(a) for a in axes.reshape(-1)], data.ndim)
    for axis in where:
        if data.shape[axis] != 1:
            raise InvalidArgument(
                f"axis {axis} has another extent than 1", value="axes", found=data.shape, expected="extent 1"
            )
    return [data.squeeze(axis=where)]


def unsqueeze(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Unsqueeze(25)."""
    data, axes = required(inputs, 0, "data"), required(inputs, 1, "axes")
    where = axes_within([int(a) for a in axes.reshape(-1)], data.ndim + axes.size)
    return [np.expand_dims(data, where)]


def shape(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Shape(25)."""
    data = required(inputs, 0, "data")
    start, end = int(attributes.get("start", 0)), attributes.get("end")
    return [np.array(data.shape[slice(start, None if end is None else int(end))], np.int64)]


def size(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Size(25)."""
    return [np.array(required(inputs, 0, "data").size, np.int64)]


def concat(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Concat(13)."""
    parts = [required(inputs, i, f"input {i}") for i in range(len(inputs))]
    if not parts:
        raise InvalidArgument("there is nothing to concatenate", found="no inputs")
    first = parts[0]
    axis = axis_within(integer(attributes, "axis"), first.ndim)
    for position, part in enumerate(parts):
        if part.ndim != first.ndim or any(
            a != b for i, (a, b) in enumerate(zip(part.shape, first.shape, strict=True)) if i != axis
        ):
            raise InvalidArgument(
                f"input {position} does not fit", value=f"input {position}", found=part.shape,
                expected=f"{first.shape} except along axis {axis}",
            )  # fmt: skip
        if part.dtype != first.dtype:
            raise InvalidArgument(f"input {position} has another type", found=part.dtype, expected=first.dtype)
    return [np.concatenate(parts, axis=axis)]


def split(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Split(18): by given lengths, or into equal parts of which the last may be shorter."""
    data, lengths = required(inputs, 0, "input"), optional(inputs, 1)
    axis = axis_within(int(attributes.get("axis", 0)), data.ndim)
    extent = data.shape[axis]
    if lengths is not None:
        sizes = [int(s) for s in lengths.reshape(-1)]
        if min(sizes, default=0) < 0 or sum(sizes) != extent:
            raise InvalidArgument(
                "the lengths do not add up to the axis", value="split", found=f"{sizes}, sum {sum(sizes)}",
                expected=f"{extent} along axis {axis}",
            )  # fmt: skip
        if len(sizes) != output_count:
            raise InvalidArgument(
                "one length for each output is needed", value="split", found=len(sizes), expected=output_count
            )
    else:
        count = integer(attributes, "num_outputs", output_count, least=1)
        if count != output_count:
            raise InvalidArgument("num_outputs is not the number of outputs", found=count, expected=output_count)
        each = -(-extent // count)
        sizes = [max(min(each, extent - i * each), 0) for i in range(count)]
    parts, start = [], 0
    for length in sizes:
        parts.append(data[(slice(None),) * axis + (slice(start, start + length),)])
        start += length
    return parts


def slice_(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Slice(13)."""
    data = required(inputs, 0, "data")
    starts, ends = required(inputs, 1, "starts").reshape(-1), required(inputs, 2, "ends").reshape(-1)
    axes, steps = optional(inputs, 3), optional(inputs, 4)
    where = axes_within(range(len(starts)) if axes is None else [int(a) for a in axes.reshape(-1)], data.ndim)
    strides = np.ones(len(starts), np.int64) if steps is None else steps.reshape(-1)
    if not len(starts) == len(ends) == len(where) == len(strides):
        raise InvalidArgument(
            "starts, ends, axes and steps differ in length", value="starts",
            found=f"{len(starts)}, {len(ends)}, {len(where)}, {len(strides)}",
        )  # fmt: skip
    key = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), where, strides.tolist(), strict=True):
        if step == 0:
            raise InvalidArgument("a step is 0", value="steps", found=strides.tolist(), expected="other than 0")
        extent = data.shape[axis]
        first = start + extent if start < 0 else start
        last = end + extent if end < 0 else end
        if step > 0:
            key[axis] = slice(min(max(first, 0), extent), min(max(last, 0), extent), step)
        else:
            first, last = min(max(first, -1), extent - 1), min(max(last, -1), extent - 1)
            key[axis] = slice(first, None if last < 0 else last, step) if first >= 0 else slice(0, 0)
    return [data[tuple(key)]]


def pad(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Pad(25): constant, reflect, edge or wrap; negative amounts cut off."""
    data, pads = required(inputs, 0, "data"), required(inputs, 1, "pads").reshape(-1)
    fill, axes = optional(inputs, 2), optional(inputs, 3)
    mode = text(attributes, "mode", "constant", ("constant", "reflect", "edge", "wrap"))
    where = tuple(range(data.ndim)) if axes is None else axes_within([int(a) for a in axes.reshape(-1)], data.ndim)
    if len(pads) != 2 * len(where):
        raise InvalidArgument("pads has the wrong length", value="pads", found=len(pads), expected=2 * len(where))
    amounts = [(0, 0)] * data.ndim
    for position, axis in enumerate(where):
        amounts[axis] = (int(pads[position]), int(pads[position + len(where)]))
    for axis, (before, after) in enumerate(amounts):
        if before >= 0 and after >= 0:
            continue
        start, stop = max(-before, 0), data.shape[axis] - max(-after, 0)
        if stop < start and mode != "constant":
            raise InvalidArgument("pads cuts off more than there is", value="pads", found=pads.tolist())
        if before + after + data.shape[axis] < 0:
            raise InvalidArgument(
                "pads cuts off more than there is", value="pads", found=pads.tolist(), expected=f"data {data.shape}"
            )
        data = data[(slice(None),) * axis + (slice(start, max(stop, start)),)]
    amounts = [(max(before, 0), max(after, 0)) for before, after in amounts]
    if mode == "constant":
        value = data.dtype.type(0) if data.dtype != np.object_ else ""
        if fill is not None:
            if fill.size != 1:
                raise InvalidArgument("constant_value must be a scalar", value="constant_value", found=fill.shape)
            value = fill.reshape(())[()]
        result = np.full([e + a + b for e, (a, b) in zip(data.shape, amounts, strict=True)], value, data.dtype)
        result[tuple(slice(a, a + e) for e, (a, _) in zip(data.shape, amounts, strict=True))] = data
        return [result]
    for axis, (before, after) in enumerate(amounts):
        extent = data.shape[axis]
        if not before and not after:
            continue
        if extent == 0 or (mode == "reflect" and max(before, after) > extent - 1 and extent > 1):
            # Reflection past the far edge would bounce; the standard speaks of one reflection only.
            raise InvalidArgument(
                f"axis {axis} is too short for this padding", value="pads", found=f"{before} and {after}, mode {mode}",
                expected=f"at most {max(extent - 1, 0)}",
            )  # fmt: skip
        if mode == "reflect" and extent == 1:
            raise InvalidArgument(
                f"axis {axis} has one element and nothing to reflect", value="pads", found=f"{before} and {after}"
            )
    return [np.pad(data, amounts, mode=mode)]  # type: ignore[call-overload]


def tile(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Tile(13)."""
    data, repeats = required(inputs, 0, "input"), required(inputs, 1, "repeats")
    counts = [int(r) for r in repeats.reshape(-1)]
    if len(counts) != data.ndim or min(counts, default=0) < 0:
        raise InvalidArgument(
            "repeats needs one count for each axis", value="repeats", found=counts, expected=f"{data.ndim} counts >= 0"
        )
    return [np.tile(data, counts)]


def expand(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Expand(13): broadcasting both ways."""
    data, wanted = required(inputs, 0, "input"), [int(d) for d in required(inputs, 1, "shape").reshape(-1)]
    try:
        if min(wanted, default=0) < 0:
            raise ValueError("negative extent")
        target = np.broadcast_shapes(data.shape, tuple(wanted))
    except ValueError as error:
        raise InvalidArgument(
            "the input does not broadcast to the shape", value="shape", found=f"{data.shape} and {wanted}"
        ) from error
    return [np.broadcast_to(data, target)]


def constant_of_shape(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ConstantOfShape(25)."""
    wanted = [int(d) for d in required(inputs, 0, "input").reshape(-1)]
    if min(wanted, default=0) < 0:
        raise InvalidArgument("the shape has a negative extent", value="input", found=wanted)
    value = attributes.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    if value.size != 1:
        raise InvalidArgument("attribute value must hold one element", found=value.shape)
    return [np.full(wanted, value.reshape(())[()], value.dtype)]


def range_count(start: Array, limit: Array, delta: Array) -> int:
    """How many numbers Range gives; InvalidArgument where delta is 0 or NaN."""
    if start.dtype.kind in "iu":
        first, last, step = int(start.reshape(())), int(limit.reshape(())), int(delta.reshape(()))
        if step == 0:
            raise InvalidArgument("delta is 0", value="delta", found=0, expected="other than 0")
        return max(-((first - last) // step), 0)
    low, high, width = (float(v.reshape(())) for v in (start, limit, delta))
    if width == 0 or not all(math.isfinite(v) for v in (low, high, width)):
        raise InvalidArgument(
            "start, limit and delta must be finite, delta not 0", value="delta", found=f"{low}, {high}, {width}"
        )
    return max(math.ceil((high - low) / width), 0)


def range_(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Range(11): start + i delta."""
    start, limit, delta = (required(inputs, i, name) for i, name in enumerate(("start", "limit", "delta")))
    for operand, name in ((start, "start"), (limit, "limit"), (delta, "delta")):
        if operand.size != 1:
            raise InvalidArgument(f"{name} must be a scalar", value=name, found=operand.shape, expected="()")
    steps = np.arange(range_count(start, limit, delta))
    wide = steps.astype(np.float64 if start.dtype.kind not in "iu" else start.dtype)
    return [(start.reshape(()).astype(wide.dtype) + wide * delta.reshape(()).astype(wide.dtype)).astype(start.dtype)]


def depth_to_space(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """DepthToSpace(13): blocks of channels become squares of pixels."""
    x = required(inputs, 0, "input")
    expect_rank(x, 4, "input")
    block = integer(attributes, "blocksize", least=1)
    mode = text(attributes, "mode", "DCR", ("DCR", "CRD"))
    n, c, h, w = x.shape
    if c % (block * block):
        raise InvalidArgument("the channels do not divide into blocks", value="input", found=c, expected=block * block)
    depth = c // (block * block)
    if mode == "DCR":
        y = x.reshape(n, block, block, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [y.reshape(n, depth, h * block, w * block)]


def space_to_depth(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """SpaceToDepth(13): squares of pixels become blocks of channels."""
    x = required(inputs, 0, "input")
    expect_rank(x, 4, "input")
    block = integer(attributes, "blocksize", least=1)
    mode = text(attributes, "mode", "DCR", ("DCR", "CRD"))
    n, c, h, w = x.shape
    if h % block or w % block:
        raise InvalidArgument("the image does not divide into blocks", value="input", found=(h, w), expected=block)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(order)
    return [y.reshape(n, c * block * block, h // block, w // block)]


def trilu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Trilu(14)."""
    x, k = required(inputs, 0, "input"), optional(inputs, 1)
    if x.ndim < 2:
        raise InvalidArgument("the input needs at least 2 dimensions", value="input", found=x.shape)
    rows, columns = x.shape[-2:]
    # A diagonal beyond the matrix is as good as its edge.
    offset = 0 if k is None else max(min(whole(k, "k"), columns), -rows)
    return [np.triu(x, offset) if integer(attributes, "upper", 1) else np.tril(x, offset)]


MOVEMENT: dict[str, Kernel] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Identity": identity,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
