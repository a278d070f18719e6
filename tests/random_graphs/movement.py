"""Templates that move, join, split, select and reshape elements, in the forms of each opset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto, numpy_helper

from .arithmetic import cast, unary
from .builder import BOOL, DOUBLE, FLOAT, FLOATS, HALF, INT32, INT64, Builder, Dim, Value, product

_MOVED = (FLOAT, FLOAT, INT64, DOUBLE, INT32, BOOL)


# forms by opset, used by the other templates too


def squeeze(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """Removes axes of extent 1; the axes are an attribute before opset 13, an input since."""
    normal = {axis % x.rank for axis in axes}
    shape = [dim for axis, dim in enumerate(x.shape) if axis not in normal]
    if b.opset >= 13:
        return b.emit("Squeeze", [x, b.ints(axes)], shape, like=x)
    return b.emit("Squeeze", [x], shape, like=x, axes=sorted(normal) if b.opset < 11 else sorted(axes))


def unsqueeze(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    rank = x.rank + len(axes)
    normal = {axis % rank for axis in axes}
    left = iter(x.shape)
    shape = [b.static_dim(1) if axis in normal else next(left) for axis in range(rank)]
    if b.opset >= 13:
        return b.emit("Unsqueeze", [x, b.ints(axes)], shape, like=x)
    return b.emit("Unsqueeze", [x], shape, like=x, axes=sorted(normal) if b.opset < 11 else sorted(axes))


def transpose(b: Builder, x: Value, order: Sequence[int]) -> Value:
    reversed_order = list(range(x.rank))[::-1]
    attribute = None if list(order) == reversed_order and b.chance(0.5) else list(order)
    return b.emit("Transpose", [x], [x.shape[axis] for axis in order], like=x, perm=attribute)


def reduced_shape(b: Builder, x: Value, axes: Sequence[int], keepdims: int) -> list[Dim]:
    normal = {axis % x.rank for axis in axes}
    if keepdims:
        return [b.static_dim(1) if axis in normal else dim for axis, dim in enumerate(x.shape)]
    return [dim for axis, dim in enumerate(x.shape) if axis not in normal]


def concat(b: Builder, values: Sequence[Value], axis: int) -> Value | None:
    first = values[0]
    total = tuple(sum(value.shape[axis][feed] for value in values) for feed in range(b.shared.feeds))
    shape = list(first.shape)
    shape[axis] = total
    if not b.fits(shape):
        return None
    grains = [value.grain for value in values]
    grain = None if None in grains else min(g for g in grains if g is not None)
    low, high = min(v.low for v in values), max(v.high for v in values)
    written = axis if b.opset < 11 or b.chance(0.6) else axis - first.rank
    return b.emit("Concat", values, shape, low=low, high=high, grain=grain, axis=written)


def split(b: Builder, x: Value, axis: int, parts: Sequence[int] | None, count: int) -> list[Value]:
    """Splits a static axis into `parts`, or `count` equal ones when None."""
    extent = x.shape[axis][0]
    lengths = list(parts) if parts is not None else [extent // count] * count
    outputs = [b.fresh("v") for _ in lengths]
    inputs: list[Value | None] = [x]
    attributes: dict[str, object] = {"axis": axis}
    if parts is not None and b.opset >= 13:
        inputs.append(b.ints(parts))
    elif parts is not None:
        attributes["split"] = lengths
    elif b.opset >= 18:
        attributes["num_outputs"] = count
    b.node("Split", b.names(inputs), outputs, **attributes)
    made = []
    for name, length in zip(outputs, lengths, strict=True):
        shape = list(x.shape)
        shape[axis] = b.static_dim(length)
        made.append(replace(x, name=name, shape=tuple(shape), constant=None))
    return made


def slice_axis(b: Builder, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
    """Slices one axis; attributes before opset 10 (where `step` must be 1), inputs since."""
    dims = tuple(len(range(*slice(start, end if abs(end) < 2**31 else None, step).indices(n))) for n in x.shape[axis])
    shape = list(x.shape)
    shape[axis] = dims
    if b.opset < 10:
        return b.emit("Slice", [x], shape, like=x, axes=[axis], starts=[start], ends=[end])
    kind = np.int32 if b.chance(0.2) and abs(end) < 2**31 else np.int64
    written = axis if b.opset < 11 or b.chance(0.5) else axis - x.rank
    operands: list[Value | None] = [x, b.ints([start], kind), b.ints([end], kind), b.ints([written], kind)]
    if step != 1 or b.chance(0.2):
        operands.append(b.ints([step], kind))
    return b.emit("Slice", operands, shape, like=x)


# shapes as values


def extent_of(b: Builder, x: Value, axis: int) -> Value:
    """The extent of one axis as an int64 tensor of shape [1], through Shape and Gather, Slice or Split."""
    dim = x.shape[axis]
    if b.opset >= 15 and b.chance(0.3):
        shape = b.emit("Shape", [x], b.static_shape([1]), dtype=INT64, high=4096.0, grain=1.0, start=axis, end=axis + 1)
        return replace(shape, low=float(min(dim)), high=float(max(dim)))
    shape = b.emit("Shape", [x], b.static_shape([x.rank]), dtype=INT64, high=4096.0, grain=1.0)
    if b.chance(0.3):
        b.keep(shape)
    choice = b.random.random()
    if choice < 0.5:
        index = b.constant(np.asarray(axis if b.chance(0.8) or b.opset < 11 else axis - x.rank, np.int64))
        picked = b.emit("Gather", [shape, index], [], like=shape, axis=0)
        made = unsqueeze(b, picked, [0])
    elif choice < 0.75:
        made = b.emit("Gather", [shape, b.ints([axis])], b.static_shape([1]), like=shape)
    else:
        made = slice_axis(b, shape, 0, axis, axis + 1)
    return replace(made, low=float(min(dim)), high=float(max(dim)))


def shape_tensor(b: Builder, target: Sequence[Dim], source: Value) -> Value | None:
    """An int64 tensor that holds `target`, computed from `source`'s own extents where they are not static."""
    pieces: list[Value] = []
    for dim in target:
        if len(set(dim)) == 1 and not (dim in source.shape and b.chance(0.3)):
            pieces.append(b.ints([dim[0]]))
        elif dim in source.shape:
            pieces.append(extent_of(b, source, source.shape.index(dim)))
        else:
            made = _product_of_extents(b, dim, source)
            if made is None:
                return None
            pieces.append(made)
    if not pieces:
        return b.constant(np.zeros(0, np.int64), plain=True)
    return concat(b, pieces, 0)


def _product_of_extents(b: Builder, dim: Dim, source: Value) -> Value | None:
    for i, first in enumerate(source.shape):
        for j in range(i + 1, source.rank):
            second = source.shape[j]
            if product([first, second], b.shared.feeds) == dim:
                left, right = extent_of(b, source, i), extent_of(b, source, j)
                return b.emit("Mul", [left, right], left.shape, high=4096.0, grain=1.0)
    return None


# templates


def random_reshape(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in _MOVED and v.rank >= 1)
    if x is None:
        return None
    target = _regroup(b, x.shape)
    return reshape(b, x, target)


def reshape(b: Builder, x: Value, target: Sequence[Dim]) -> Value | None:
    """Reshapes to `target` with plain numbers, 0, -1 or computed extents."""
    if len(target) > 5:
        return None
    if not target:
        return b.keep(b.emit("Reshape", [x, b.constant(np.zeros(0, np.int64), plain=True)], [], like=x))
    numbers: list[int | None] = []
    for place, dim in enumerate(target):
        copied = place < x.rank and x.shape[place] == dim
        if copied and (len(set(dim)) > 1 or b.chance(0.25)):
            numbers.append(0)
        elif len(set(dim)) == 1:
            numbers.append(dim[0])
        else:
            numbers.append(None)
    unknown = [place for place, number in enumerate(numbers) if number is None]
    if len(unknown) == 0 and b.chance(0.4):
        numbers[b.random.randrange(len(numbers))] = -1
    elif len(unknown) == 1:
        numbers[unknown[0]] = -1
    elif unknown or (b.chance(0.3) and not x.is_static):
        shape = shape_tensor(b, target, x)
        return None if shape is None else b.keep(b.emit("Reshape", [x, shape], target, like=x))
    return b.keep(b.emit("Reshape", [x, b.ints(n for n in numbers if n is not None)], target, like=x))


def _regroup(b: Builder, shape: Sequence[Dim]) -> list[Dim]:
    """Random merges of neighbours, splits of static extents, and axes of extent 1."""
    result: list[Dim] = list(shape)
    for _ in range(b.choose([1, 1, 2, 3])):
        choice = b.random.random()
        if choice < 0.45 and len(result) >= 2:
            place = b.random.randrange(len(result) - 1)
            result[place : place + 2] = [product(result[place : place + 2], b.shared.feeds)]
        elif choice < 0.75:
            place = b.random.randrange(len(result))
            extent = result[place][0]
            factors = [f for f in range(2, extent) if extent % f == 0]
            if len(set(result[place])) == 1 and factors and len(result) < 5:
                factor = b.choose(factors)
                result[place : place + 1] = [b.static_dim(factor), b.static_dim(extent // factor)]
        elif len(result) < 5:
            result.insert(b.random.randrange(len(result) + 1), b.static_dim(1))
    return result


def random_flatten(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in FLOATS and v.rank >= 1)
    if x is None:
        return None
    axis = b.random.randrange(x.rank + 1)
    feeds = b.shared.feeds
    shape = [product(x.shape[:axis], feeds), product(x.shape[axis:], feeds)]
    written = axis - x.rank if b.opset >= 11 and axis < x.rank and b.chance(0.3) else axis
    return b.keep(b.emit("Flatten", [x], shape, like=x, axis=written))


def random_transpose(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in _MOVED and v.rank >= 2)
    if x is None:
        return None
    order = list(range(x.rank))
    b.random.shuffle(order)
    made = b.keep(transpose(b, x, order))
    if b.chance(0.35):
        second = list(np.argsort(order)) if b.chance(0.5) else b.random.sample(range(x.rank), x.rank)
        if b.chance(0.4) and x.dtype in FLOATS:
            made = unary(b, "Relu", made)
        made = b.keep(transpose(b, made, [int(axis) for axis in second]))
    return made


def random_squeeze(b: Builder) -> Value | None:
    one = b.static_dim(1)
    x = b.pick(lambda v: v.dtype in _MOVED and one in v.shape)
    if x is None or b.chance(0.4):
        x = b.pick(lambda v: v.dtype in _MOVED and v.rank <= 3)
        if x is None:
            return None
        rank = x.rank + b.choose([1, 1, 2])
        axes = b.random.sample(range(rank), rank - x.rank)
        if b.opset >= 11 and b.chance(0.4):
            axes = [axis - rank for axis in axes]
        made = b.keep(unsqueeze(b, x, axes))
        return b.keep(squeeze(b, made, axes)) if b.chance(0.2) else made
    ones = [axis for axis, dim in enumerate(x.shape) if dim == one]
    if all(len(set(dim)) > 1 or dim[0] > 1 for dim in x.shape if dim != one) and b.chance(0.15) and x.is_static:
        shape = [dim for dim in x.shape if dim != one]
        return b.keep(b.emit("Squeeze", [x], shape, like=x))
    axes = b.random.sample(ones, b.random.randint(1, len(ones)))
    return b.keep(squeeze(b, x, axes))


def random_slice(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in _MOVED and any(min(dim) >= 2 for dim in v.shape))
    if x is None:
        return None
    for _ in range(b.choose([1, 1, 2])):
        wide = [axis for axis, dim in enumerate(x.shape) if min(dim) >= 2]
        if not wide:
            break
        axis = b.choose(wide)
        least = min(x.shape[axis])
        styles = ["tail", "head", "drop_last", "all"]
        if b.opset >= 10:
            styles += ["step", "reverse", "negative"]
        style = b.choose(styles)
        start, end, step = {
            "tail": (1, b.choose([2**31 - 1, 2**63 - 1, 1000]), 1),
            "head": (0, b.random.randint(1, least), 1),
            "drop_last": (0, -1, 1),
            "all": (0, 2**63 - 1, 1),
            "step": (b.choose([0, 1]), 2**63 - 1, 2),
            "reverse": (-1, -(2**63) + 1, -1),
            "negative": (-2, 2**31 - 1, 1),
        }[style]
        x = b.keep(slice_axis(b, x, axis, start, end, step))
    return x


def random_expand(b: Builder) -> Value | None:
    one = b.static_dim(1)
    x = b.pick(lambda v: v.dtype in (FLOAT, DOUBLE, INT64, BOOL) and v.rank <= 3)
    if x is None or b.opset < 8:
        return None
    other = b.pick(lambda v: b.broadcast(v.shape, x.shape) is not None and v.shape != x.shape)
    if other is not None and other.rank >= 1 and b.chance(0.4):
        shape = b.emit("Shape", [other], b.static_shape([other.rank]), dtype=INT64, high=4096.0, grain=1.0)
        target = b.broadcast(other.shape, x.shape)
        assert target is not None
        return b.keep(b.emit("Expand", [x, shape], target, like=x))
    numbers = [1 if dim != one or b.chance(0.3) else b.choose([2, 3]) for dim in x.shape]
    if b.chance(0.3):
        numbers.insert(0, 2)
    if not numbers:
        numbers = [2]
    target = b.broadcast(b.static_shape(numbers), x.shape)
    return None if target is None else b.keep(b.emit("Expand", [x, b.ints(numbers)], target, like=x))


def random_tile(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64, BOOL) and 1 <= v.rank <= 4)
    if x is None:
        return None
    repeats = [b.choose([1, 1, 2, 3]) for _ in x.shape]
    shape = [tuple(n * repeat for n in dim) for dim, repeat in zip(x.shape, repeats, strict=True)]
    return b.keep(b.emit("Tile", [x, b.ints(repeats)], shape, like=x)) if b.fits(shape) else None


def random_concat(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in _MOVED and v.rank >= 1)
    if x is None:
        return None
    axis = b.random.randrange(x.rank)
    values = [x]
    for _ in range(b.choose([0, 1, 1, 2, 3])):
        other = b.pick(
            lambda v: (
                v.dtype == x.dtype
                and v.rank == x.rank
                and all(v.shape[i] == x.shape[i] for i in range(x.rank) if i != axis)
            )
        )
        if other is not None:
            values.append(other)
    if b.chance(0.2) and x.is_static and x.dtype == FLOAT:
        values.append(b.weights(x.extents(), 1.0, exact=x.exact))
    b.random.shuffle(values)
    made = concat(b, values, axis)
    return None if made is None else b.keep(made)


def random_split(b: Builder) -> Value | None:
    x = b.pick(
        lambda v: v.dtype in (FLOAT, DOUBLE, INT64) and any(v.static(a) and v.shape[a][0] > 1 for a in range(v.rank))
    )
    if x is None:
        return None
    axis = b.choose([a for a in range(x.rank) if x.static(a) and x.shape[a][0] > 1])
    extent = x.shape[axis][0]
    counts = [n for n in (2, 3, 4) if extent % n == 0]
    if counts and b.chance(0.5):
        pieces = split(b, x, axis, None, b.choose(counts))
    else:
        cut = b.random.randint(1, extent - 1)
        pieces = split(b, x, axis, [cut, extent - cut], 2)
    for piece in pieces:
        b.keep(piece)
    if b.chance(0.25):
        joined = concat(b, pieces, axis)
        return None if joined is None else b.keep(joined)
    return pieces[0]


def random_pad(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in (FLOAT, DOUBLE) and 1 <= v.rank <= 4)
    if x is None:
        return None
    mode = b.choose(["constant", "constant", "constant", "reflect", "edge"])
    room = min(min(dim) for dim in x.shape) - 1 if mode == "reflect" else 2
    before = [b.choose([0, 0, 1, 2]) for _ in x.shape]
    after = [b.choose([0, 0, 1, 2]) for _ in x.shape]
    if mode == "constant" and b.chance(0.1):
        after = [-1 if min(dim) >= 3 else 0 for dim in x.shape]
        before = [0] * x.rank
    before, after = [min(n, room) for n in before], [min(n, room) for n in after]
    shape = [tuple(n + p + q for n in dim) for dim, p, q in zip(x.shape, before, after, strict=True)]
    if not b.fits(shape):
        return None
    number = b.choose([0.0, 0.0, 1.0, -2.0]) if mode == "constant" else 0.0
    low, high = min(x.low, number), max(x.high, number)
    attributes: dict[str, object] = {} if mode == "constant" and b.chance(0.5) else {"mode": mode}
    if b.opset < 11:
        if number:
            attributes["value"] = number
        made = b.emit("Pad", [x], shape, like=x, pads=before + after, **attributes)
    else:
        operands: list[Value | None] = [x, b.ints(before + after)]
        if number or b.chance(0.3):
            operands.append(b.constant(np.asarray(number, np.float32 if x.dtype == FLOAT else np.float64), plain=True))
        made = b.emit("Pad", operands, shape, like=x, **attributes)
    grain = None if x.grain is None else min(x.grain, 1.0)
    return b.keep(replace(made, low=low, high=high, grain=grain))


def random_gather(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in _MOVED and v.rank >= 1)
    if x is None:
        return None
    axis = b.random.randrange(x.rank)
    least = min(x.shape[axis])
    indices = b.pick(lambda v: v.dtype in INTS_FOR_INDEX and v.low >= 0 and v.high < least and v.rank <= 2)
    if indices is None or b.chance(0.6):
        lowest = -least if b.opset >= 11 else 0
        extents = b.choose([[], [1], [2], [3], [2, 2]])
        kind = b.choose([np.int64, np.int64, np.int32])
        indices = b.constant(b.data.integers(lowest, least, size=extents).astype(kind))
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    if not b.fits(shape):
        return None
    if axis == 0 and b.chance(0.4):
        return b.keep(b.emit("Gather", [x, indices], shape, like=x))
    return b.keep(b.emit("Gather", [x, indices], shape, like=x, axis=axis))


INTS_FOR_INDEX = (INT32, INT64)


def random_gather_elements(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64) and v.rank >= 1 and v.is_static)
    if x is None or b.opset < 11:
        return None
    axis = b.random.randrange(x.rank)
    extents = list(x.extents())
    extents[axis] = b.choose([1, 2, 3])
    indices = b.constant(b.data.integers(-x.extents()[axis], x.extents()[axis], size=extents).astype(np.int64))
    return b.keep(b.emit("GatherElements", [x, indices], b.static_shape(extents), like=x, axis=axis))


def random_scatter(b: Builder) -> Value | None:
    """ScatterND of whole rows at distinct places."""
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64) and v.rank >= 1 and v.is_static)
    if x is None or b.opset < 11:
        return None
    extents = list(x.extents())
    rows = b.random.sample(range(extents[0]), b.random.randint(1, extents[0]))
    indices = b.constant(np.asarray(rows, np.int64).reshape(-1, 1))
    if x.dtype == FLOAT:
        updates = b.weights([len(rows), *extents[1:]], 1.0, exact=x.exact)
    else:
        updates = b.constant(b.data.integers(-3, 4, size=[len(rows), *extents[1:]]).astype(np.int64))
    low, high = min(x.low, updates.low), max(x.high, updates.high)
    grain = None if x.grain is None or updates.grain is None else min(x.grain, updates.grain)
    return b.keep(b.emit("ScatterND", [x, indices, updates], x.shape, low=low, high=high, grain=grain))


def random_half(b: Builder) -> Value | None:
    """A trip through half precision of values that it holds exactly."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.grain is not None and v.grain >= 0.25 and v.bound < 200)
    if x is None:
        return None
    half = cast(b, x, HALF)
    if b.chance(0.5) and half.rank >= 2:
        half = transpose(b, half, list(range(half.rank))[::-1])
    return b.keep(cast(b, half, FLOAT))


def random_shape(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank >= 1)
    if x is None:
        return None
    if b.chance(0.2):
        count = b.emit("Size", [x], [], dtype=INT64, high=4096.0, grain=1.0)
        return b.keep(count)
    return b.keep(extent_of(b, x, b.random.randrange(x.rank)))


def random_range(b: Builder) -> Value | None:
    """A ramp whose length is an extent, added to the values along that axis."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank >= 1 and v.bound < 1000)
    if x is None or b.opset < 11:
        return None
    axis = b.random.randrange(x.rank)
    limit = squeeze(b, extent_of(b, x, axis), [0])
    zero, one = b.constant(np.asarray(0, np.int64), plain=True), b.constant(np.asarray(1, np.int64), plain=True)
    high = float(max(x.shape[axis]) - 1)
    ramp = b.emit("Range", [zero, limit, one], [x.shape[axis]], high=high, grain=1.0)
    return b.keep(cast(b, b.keep(ramp), FLOAT))


def random_constant_of_shape(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank >= 1 and v.dtype in (FLOAT, INT64))
    if x is None or b.opset < 9:
        return None
    shape = b.emit("Shape", [x], b.static_shape([x.rank]), dtype=INT64, high=4096.0, grain=1.0)
    number = b.choose([0.0, 1.0, -0.5])
    name = b.fresh("v")
    tensor = None if number == 0.0 else _tensor(number)
    b.node("ConstantOfShape", b.names([shape]), [name], value=tensor)
    return b.keep(Value(name, FLOAT, x.shape, number, number, 0.5))


def _tensor(number: float) -> TensorProto:
    return numpy_helper.from_array(np.asarray([number], np.float32), "")


def random_depth(b: Builder) -> Value | None:
    """SpaceToDepth or DepthToSpace."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank == 4)
    if x is None:
        return None
    n, c, h, w = x.shape
    if b.chance(0.5) and all(e % 2 == 0 for e in (*h, *w)):
        shape = [n, tuple(e * 4 for e in c), tuple(e // 2 for e in h), tuple(e // 2 for e in w)]
        return b.keep(b.emit("SpaceToDepth", [x], shape, like=x, blocksize=2))
    if all(e % 4 == 0 for e in c):
        shape = [n, tuple(e // 4 for e in c), tuple(e * 2 for e in h), tuple(e * 2 for e in w)]
        mode = b.choose([None, "DCR", "CRD"]) if b.opset >= 11 else None
        return b.keep(b.emit("DepthToSpace", [x], shape, like=x, blocksize=2, mode=mode)) if b.fits(shape) else None
    return None
