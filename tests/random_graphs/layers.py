"""Templates of neural-network layers: products, convolutions, pooling, reductions, normalizations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .arithmetic import add, mul, tame, unary
from .builder import DOUBLE, FLOAT, FLOATS, INT32, INT64, Builder, Dim, Value, product
from .movement import reduced_shape, transpose

# products


def matmul(b: Builder, x: Value, y: Value) -> Value | None:
    """MatMul with the broadcasting of leading axes; None when the shapes do not fit."""
    if x.rank == 0 or y.rank == 0:
        return None
    inner = x.shape[-1]
    if inner != (y.shape[-2] if y.rank > 1 else y.shape[0]):
        return None
    lead = b.broadcast(x.shape[:-2], y.shape[:-2]) if x.rank > 2 or y.rank > 2 else ()
    if lead is None:
        return None
    shape = list(lead)
    if x.rank > 1:
        shape.append(x.shape[-2])
    if y.rank > 1:
        shape.append(y.shape[-1])
    if not b.fits(shape):
        return None
    bound = max(inner) * x.bound * y.bound
    grain = x.grain * y.grain if x.grain is not None and y.grain is not None else None
    return b.emit("MatMul", [x, y], shape, low=-bound, high=bound, grain=grain)


def random_matmul(b: Builder) -> Value | None:
    x = b.pick_float(range(1, 5), (FLOAT, FLOAT, DOUBLE))
    if x is None:
        return None
    x = tame(b, x)
    y: Value | None = None
    if b.chance(0.35):
        y = b.pick(lambda v: v.dtype == x.dtype and v.rank >= 2 and v.bound < 50 and x.shape[-1] in v.shape[-2:])
        if y is not None and y.shape[-2] != x.shape[-1]:
            y = transpose(b, y, [*range(y.rank - 2), y.rank - 1, y.rank - 2])
    if y is None:
        if not x.static(x.rank - 1):
            return None
        depth, width = x.shape[-1][0], b.choose([1, 2, 4, 5, 8])
        exact = x.exact and b.chance(0.6)
        if b.chance(0.2):
            stored = b.weights([width, depth], 1 / math.sqrt(depth), dtype=x.dtype, exact=exact)
            y = transpose(b, stored, [1, 0])
        elif b.chance(0.1):
            y = b.weights([depth], 1 / math.sqrt(depth), dtype=x.dtype, exact=exact)
        elif b.chance(0.1):
            y = b.weights([2, depth, width], 1 / math.sqrt(depth), dtype=x.dtype, exact=exact)
        else:
            y = b.weights([depth, width], 1 / math.sqrt(depth), dtype=x.dtype, exact=exact)
    made = matmul(b, x, y)
    if made is None:
        return None
    if b.chance(0.5) and made.rank >= 1 and made.static(made.rank - 1):
        extents = b.choose([[made.shape[-1][0]], [1], [1, made.shape[-1][0]]])
        bias = b.weights(extents, 1.0, dtype=made.dtype, exact=made.exact)
        made = b.keep(made) if b.chance(0.15) else made
        made = (add(b, made, bias) if b.chance(0.5) else add(b, bias, made)) or made
    if b.chance(0.3):
        b.keep(made)
        made = unary(b, b.choose(["Relu", "Tanh", "Sigmoid"]), made)
    return b.keep(tame(b, made, 50.0))


def random_gemm(b: Builder) -> Value | None:
    x = b.pick_float([2], (FLOAT, FLOAT, DOUBLE))
    if x is None:
        return None
    x = tame(b, x)
    flip_a, flip_b = b.choose([0, 0, 0, 1]), b.choose([0, 1])
    rows, depth = x.shape if not flip_a else x.shape[::-1]
    if len(set(depth)) > 1:
        return None
    width = b.choose([1, 3, 4, 6])
    exact = x.exact and b.chance(0.5)
    extents = [width, depth[0]] if flip_b else [depth[0], width]
    y = b.weights(extents, 1 / math.sqrt(depth[0]), dtype=x.dtype, exact=exact)
    operands: list[Value | None] = [x, y]
    if b.opset < 11 or b.chance(0.7):
        operands.append(b.weights(b.choose([[width], [1], [1, width], []]), 1.0, dtype=x.dtype, exact=exact))
    alpha, beta = b.choose([1.0, 1.0, 0.5, 2.0]), b.choose([1.0, 1.0, 0.5])
    third = operands[2].bound if len(operands) > 2 and operands[2] is not None else 0.0
    bound = alpha * depth[0] * x.bound * y.bound + beta * third
    grain = x.grain * 0.125 if exact and x.grain is not None else None
    shape = [rows, b.static_dim(width)]
    made = b.emit(
        "Gemm", operands, shape, low=-bound, high=bound, grain=grain,
        alpha=None if alpha == 1.0 and b.chance(0.5) else alpha, beta=None if beta == 1.0 else beta,
        transA=flip_a or None, transB=flip_b or None,
    )  # fmt: skip
    return b.keep(tame(b, made, 50.0))


def random_einsum(b: Builder) -> Value | None:
    x = b.pick_float([2, 3])
    if x is None or b.opset < 12 or not x.static(x.rank - 1):
        return None
    x = tame(b, x)
    depth = x.shape[-1][0]
    y = b.weights([4, depth], 1 / math.sqrt(depth))
    equation = "ab,cb->ac" if x.rank == 2 else "abd,cd->abc"
    bound = depth * x.bound * y.bound
    shape = [*x.shape[:-1], b.static_dim(4)]
    return b.keep(tame(b, b.emit("Einsum", [x, y], shape, low=-bound, high=bound, equation=equation), 50.0))


# convolution and pooling


def _windows(
    b: Builder, extent: Dim, kernel: int, stride: int, dilation: int, pads: int, ceil: bool = False
) -> Dim | None:
    span = dilation * (kernel - 1) + 1
    result = []
    for n in extent:
        room = n + pads - span
        if room < 0:
            return None
        result.append((-(-room // stride) if ceil else room // stride) + 1)
    return tuple(result)


def image(b: Builder, spatial: int) -> Value | None:
    """A float value [batch, channels, *space] with static channels."""
    rank = spatial + 2
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank == rank and v.static(1) and min(min(d) for d in v.shape[2:]) >= 2)
    if x is not None:
        return tame(b, x)
    return None


def random_conv(b: Builder) -> Value | None:
    spatial = b.choose([1, 2, 2, 2])
    x = image(b, spatial)
    if x is None:
        return None
    channels = x.shape[1][0]
    group = b.choose([1, 1, 1, channels, *(g for g in (2, 3, 4) if channels % g == 0)])
    filters = group * b.choose([1, 1, 2, 3]) if group > 1 else b.choose([1, 2, 4, 6])
    kernel = [b.choose([1, 1, 2, 3, 3, 5]) for _ in range(spatial)]
    strides = [b.choose([1, 1, 1, 2]) for _ in range(spatial)]
    dilations = [b.choose([1, 1, 1, 2]) for _ in range(spatial)]
    style = b.choose(["pads", "pads", "pads", "none", "VALID", "SAME_UPPER", "SAME_LOWER"])
    pads = [0] * (2 * spatial)
    attributes: dict[str, object] = {}
    if style == "pads":
        pads = [b.choose([0, 1, 1, 2]) for _ in pads]
        attributes["pads"] = pads
    elif style.startswith("SAME"):
        dilations = [1] * spatial
        attributes["auto_pad"] = style
    elif style == "VALID":
        attributes["auto_pad"] = style
    shape = [x.shape[0], b.static_dim(filters)]
    for axis in range(spatial):
        if style.startswith("SAME"):
            shape.append(tuple(-(-n // strides[axis]) for n in x.shape[2 + axis]))
            continue
        dim = _windows(
            b, x.shape[2 + axis], kernel[axis], strides[axis], dilations[axis], pads[axis] + pads[axis + spatial]
        )
        if dim is None:
            return None
        shape.append(dim)
    if not b.fits(shape):
        return None
    if any(d != 1 for d in dilations) or b.chance(0.4):
        attributes["dilations"] = dilations
    if any(s != 1 for s in strides) or b.chance(0.4):
        attributes["strides"] = strides
    if group != 1 or b.chance(0.3):
        attributes["group"] = group
    if b.chance(0.7):
        attributes["kernel_shape"] = kernel
    fan = channels // group * math.prod(kernel)
    weight = b.weights([filters, channels // group, *kernel], 1.5 / math.sqrt(fan))
    operands: list[Value | None] = [x, weight]
    if b.chance(0.5):
        operands.append(b.weights([filters], 0.5))
    bound = fan * x.bound * weight.bound + 0.5
    made = b.emit("Conv", operands, shape, low=-bound, high=bound, **attributes)
    return _after_conv(b, made, filters, spatial)


def _after_conv(b: Builder, made: Value, filters: int, spatial: int) -> Value:
    """What fusions look for behind a convolution: a norm, a scale, a shift, an activation; sometimes shared."""
    if b.chance(0.2):
        b.keep(made)
    for _ in range(b.choose([0, 1, 1, 2])):
        choice = b.random.random()
        if choice < 0.45:
            made = batch_norm(b, made)
            continue
        extents = b.choose(
            [[filters] + [1] * spatial, [1, filters] + [1] * spatial, [1], [], [filters, *([1] * spatial)]]
        )
        if b.chance(0.1) and made.is_static:
            extents = [made.shape[-1][0]]  # looks like a channel vector, is not one
        operand = b.weights(extents, 1.0)
        next_value = mul(b, made, operand) if choice < 0.7 else add(b, operand, made)
        made = made if next_value is None else next_value
    if b.chance(0.5):
        if b.chance(0.2):
            b.keep(made)
        made = unary(b, b.choose(["Relu", "Relu", "LeakyRelu", "Sigmoid"]), made)
    return b.keep(tame(b, made, 50.0))


def batch_norm(b: Builder, x: Value) -> Value:
    """BatchNormalization in inference form; weights may be overridable graph inputs."""
    count = x.shape[1][0]
    vectors = [b.weights([count], 1.0) for _ in range(3)]
    name = b.constant(b.data.uniform(0.3, 2.0, size=count).astype(np.float32))
    epsilon = b.choose([None, 1e-5, 1e-3])
    attributes: dict[str, object] = {"epsilon": epsilon}
    if b.opset < 14 and b.chance(0.3):
        attributes["momentum"] = 0.9
    scale, shift, mean = vectors
    bound = (x.bound + 1.0) / math.sqrt(0.3) + 1.0
    return b.emit("BatchNormalization", [x, scale, shift, mean, name], x.shape, low=-bound, high=bound, **attributes)


def random_batch_norm(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank in (3, 4) and v.static(1) and v.bound < 50)
    return None if x is None else b.keep(tame(b, batch_norm(b, x)))


def random_conv_transpose(b: Builder) -> Value | None:
    x = image(b, 2)
    if x is None:
        return None
    channels = x.shape[1][0]
    group = b.choose([1, 1, channels])
    filters = b.choose([1, 2]) * group
    kernel, stride, pad = b.choose([2, 3]), b.choose([1, 2]), b.choose([0, 0, 1])
    spatial = [tuple((n - 1) * stride + kernel - 2 * pad for n in dim) for dim in x.shape[2:]]
    shape = [x.shape[0], b.static_dim(filters), *spatial]
    if not b.fits(shape) or min(min(dim) for dim in spatial) < 1:
        return None
    weight = b.weights([channels, filters // group, kernel, kernel], 1 / math.sqrt(channels * kernel))
    bound = channels * kernel * kernel * x.bound * weight.bound
    made = b.emit(
        "ConvTranspose", [x, weight], shape, low=-bound, high=bound,
        strides=[stride, stride], pads=[pad] * 4, group=group, kernel_shape=[kernel, kernel],
    )  # fmt: skip
    return b.keep(tame(b, made, 50.0))


def random_pool(b: Builder) -> Value | None:
    spatial = b.choose([1, 2, 2])
    x = image(b, spatial)
    if x is None:
        return None
    op = b.choose(["MaxPool", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
    if op.startswith("Global"):
        shape = [*x.shape[:2], *(b.static_dim(1) for _ in range(spatial))]
        grain = x.grain if op == "GlobalMaxPool" else None
        return b.keep(b.emit(op, [x], shape, low=x.low, high=x.high, grain=grain))
    kernel = [b.choose([1, 2, 2, 3]) for _ in range(spatial)]
    strides = [b.choose([1, 1, 2]) for _ in range(spatial)]
    pads = [b.choose([0, 0, 1]) if kernel[axis % spatial] > 1 else 0 for axis in range(2 * spatial)]
    ceil = op == "MaxPool" and b.opset >= 10 and b.chance(0.2)
    attributes: dict[str, object] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if ceil:
        pads[spatial:] = pads[:spatial]
        attributes["ceil_mode"] = 1
    dims = []
    for axis in range(spatial):
        total = pads[axis] + pads[axis + spatial]
        dim = _windows(b, x.shape[2 + axis], kernel[axis], strides[axis], 1, total, ceil)
        if dim is None:
            return None
        starts = [(count - 1) * strides[axis] for count in dim]
        if ceil and any(start >= n + pads[axis] for start, n in zip(starts, x.shape[2 + axis], strict=True)):
            return None  # readers disagree whether a window may lie wholly in the padding
        dims.append(dim)
    if op == "AveragePool" and b.chance(0.5):
        attributes["count_include_pad"] = 1
    shape = [*x.shape[:2], *dims]
    if op == "LpPool":
        bound = x.bound * math.sqrt(math.prod(kernel))
        return b.keep(tame(b, b.emit(op, [x], shape, high=bound, p=2, **attributes)))
    low, high = min(x.low, 0.0), max(x.high, 0.0)
    grain = x.grain if op == "MaxPool" else None
    if op == "MaxPool":
        low, high = x.low, x.high
    return b.keep(b.emit(op, [x], shape, low=low, high=high, grain=grain, **attributes))


def random_resize(b: Builder) -> Value | None:
    x = image(b, 2)
    if x is None or b.opset < 11:
        return None
    factor = b.choose([2, 2, 3])
    mode = b.choose(["nearest", "nearest", "linear"])
    shape = [*x.shape[:2], *(tuple(n * factor for n in dim) for dim in x.shape[2:])]
    if not b.fits(shape):
        return None
    coordinates = "asymmetric" if mode == "nearest" else b.choose(["half_pixel", "asymmetric", "align_corners"])
    nearest = "floor" if mode == "nearest" else None
    scales = b.constant(np.asarray([1, 1, factor, factor], np.float32), plain=True)
    roi = None if b.opset >= 13 else b.constant(np.zeros(0, np.float32), plain=True)
    made = b.emit(
        "Resize", [x, roi, scales], shape, low=x.low, high=x.high, grain=x.grain if mode == "nearest" else None,
        mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=nearest,
    )  # fmt: skip
    return b.keep(made)


# reductions and normalizations

_REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSumExp", "ReduceProd",
)  # fmt: skip


def reduce(b: Builder, op: str, x: Value, axes: Sequence[int] | None, keepdims: int) -> Value:
    """A reduction; axes are an input since 13 (ReduceSum) or 18 (the others), an attribute before; None is all axes."""
    taken = list(range(x.rank)) if axes is None else [axis % x.rank for axis in axes]
    count = max(product([x.shape[axis] for axis in taken], b.shared.feeds))
    low, high, grain = _reduced_bounds(op, x, count)
    shape = reduced_shape(b, x, taken, keepdims)
    attributes: dict[str, object] = {} if keepdims and b.chance(0.5) else {"keepdims": keepdims}
    operands: list[Value | None] = [x]
    if axes is not None:
        if b.opset >= (13 if op == "ReduceSum" else 18):
            operands.append(b.ints(axes))
        else:
            attributes["axes"] = list(axes) if b.opset >= 11 else sorted(taken)
    return b.emit(op, operands, shape, low=low, high=high, grain=grain, **attributes)


def _reduced_bounds(op: str, x: Value, count: int) -> tuple[float, float, float | None]:
    square = None if x.grain is None else x.grain * x.grain
    return {
        "ReduceSum": (min(x.low * count, x.low), max(x.high * count, x.high), x.grain),
        "ReduceMean": (x.low, x.high, None),
        "ReduceMax": (x.low, x.high, x.grain),
        "ReduceMin": (x.low, x.high, x.grain),
        "ReduceL1": (0.0, x.bound * count, x.grain),
        "ReduceL2": (0.0, x.bound * math.sqrt(count), None),
        "ReduceSumSquare": (0.0, x.bound**2 * count, square),
        "ReduceLogSumExp": (x.low, x.high + math.log(count), None),
        "ReduceProd": (-(x.bound ** min(count, 30)) - 1, x.bound ** min(count, 30) + 1, None),
    }[op]


def random_reduction(b: Builder) -> Value | None:
    op = b.choose(_REDUCTIONS)
    dtypes = (
        (FLOAT, FLOAT, DOUBLE) if op in ("ReduceL2", "ReduceLogSumExp", "ReduceMean") else (FLOAT, DOUBLE, INT64, INT32)
    )
    x = b.pick(lambda v: v.dtype in dtypes and v.rank >= 1 and v.bound < 1000)
    if x is None or (x.dtype not in FLOATS and op not in ("ReduceSum", "ReduceMax", "ReduceMin")):
        return None
    if x.dtype in FLOATS:
        x = tame(b, x)
    if op == "ReduceProd" and x.bound > 1.5:
        x = unary(b, "Tanh", x)
    axes = None
    if b.chance(0.85):
        axes = b.random.sample(range(x.rank), b.random.randint(1, x.rank))
        if b.opset >= 11 and b.chance(0.5):
            axes = [axis - x.rank for axis in axes]
    taken = range(x.rank) if axes is None else axes
    if op == "ReduceProd" and max(product([x.shape[axis] for axis in taken], b.shared.feeds)) > 16:
        return None  # a long product adds up the roundings of all its factors
    made = reduce(b, op, x, axes, b.choose([0, 1]))
    return b.keep(tame(b, made, 50.0))


def softmax(b: Builder, x: Value, axis: int, op: str = "Softmax") -> Value:
    low, high = (0.0, 1.0) if op == "Softmax" else (-2 * x.bound - 10.0, 0.0)
    written = axis if b.opset < 11 or b.chance(0.5) else axis - x.rank
    default = -1 if b.opset >= 13 else 1
    left_out = written == default and b.chance(0.5)
    return b.emit(op, [x], x.shape, low=low, high=high, axis=None if left_out else written)


def random_softmax(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in FLOATS and v.rank >= 1)
    if x is None:
        return None
    x = tame(b, x)
    return b.keep(softmax(b, x, b.random.randrange(x.rank), b.choose(["Softmax", "Softmax", "LogSoftmax"])))


def random_arg(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype == FLOAT and v.exact and v.rank >= 1)
    if x is None:
        return None
    axis, keepdims = b.random.randrange(x.rank), b.choose([0, 1])
    last = b.choose([None, 0, 1]) if b.opset >= 12 else None
    high = float(max(x.shape[axis]) - 1)
    made = b.emit(
        b.choose(["ArgMax", "ArgMin"]), [x], reduced_shape(b, x, [axis], keepdims), dtype=INT64, high=high, grain=1.0,
        axis=axis, keepdims=keepdims, select_last_index=last,
    )  # fmt: skip
    return b.keep(made)


def random_top_k(b: Builder) -> Value | None:
    """The values of TopK (its indices stay unused, as equal values may come in any order)."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank >= 1)
    if x is None:
        return None
    axis = b.random.randrange(x.rank)
    k = b.random.randint(1, min(x.shape[axis]))
    shape = list(x.shape)
    shape[axis] = b.static_dim(k)
    values, indices = b.fresh("v"), b.fresh("v")
    if b.opset >= 10:
        b.node("TopK", b.names([x, b.ints([k])]), [values, indices], axis=axis)
    else:
        b.node("TopK", b.names([x]), [values, indices], axis=axis, k=k)
    return b.keep(replace(x, name=values, shape=tuple(shape), constant=None))


def random_cumulative(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64, INT32) and v.rank >= 1 and v.bound < 100)
    if x is None or b.opset < 11:
        return None
    axis = b.random.randrange(x.rank)
    count = max(x.shape[axis])
    bound = x.bound * count
    made = b.emit(
        "CumSum", [x, b.constant(np.asarray(axis, np.int64))], x.shape, low=-bound, high=bound, grain=x.grain,
        exclusive=b.choose([None, 1]), reverse=b.choose([None, 1]),
    )  # fmt: skip
    return b.keep(tame(b, made, 50.0))


def random_one_hot(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype == INT64 and 1 <= v.rank <= 3 and v.low >= 0 and v.high <= 10)
    if x is None or b.opset < 9:
        return None
    depth = int(x.high) + 1
    values = b.constant(np.asarray([0, 1], np.float32), grain=1.0, plain=True)
    shape = [*x.shape, b.static_dim(depth)]
    if not b.fits(shape):
        return None
    count = b.constant(np.asarray(depth, np.int64), plain=True)
    return b.keep(b.emit("OneHot", [x, count, values], shape, dtype=FLOAT, grain=1.0))


def random_triangle(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64) and v.rank >= 2)
    if x is None or b.opset < 14:
        return None
    operands: list[Value | None] = [x]
    if b.chance(0.5):
        operands.append(b.constant(np.asarray(b.choose([-1, 0, 1]), np.int64)))
    low, high = min(x.low, 0.0), max(x.high, 0.0)
    return b.keep(b.emit("Trilu", operands, x.shape, low=low, high=high, grain=x.grain, upper=b.choose([None, 0, 1])))


def random_dropout(b: Builder) -> Value | None:
    """Dropout at inference: the identity; its mask is sometimes asked for."""
    x = b.pick(lambda v: v.dtype == FLOAT)
    if x is None:
        return None
    name = b.fresh("v")
    if b.opset < 12:
        b.node("Dropout", b.names([x]), [name], ratio=b.choose([None, 0.25]))
    else:
        operands: list[Value | None] = [x]
        if b.chance(0.5):
            operands.append(b.constant(np.asarray(0.25, np.float32), plain=True))
            if b.chance(0.5):
                operands.append(b.constant(np.asarray(False), plain=True))
        b.node("Dropout", b.names(operands), [name])
    return b.keep(replace(x, name=name, constant=None))


def random_norm(b: Builder) -> Value | None:
    """LayerNormalization, InstanceNormalization, LRN or LpNormalization as operators."""
    op = b.choose(["LayerNormalization", "LayerNormalization", "InstanceNormalization", "LRN", "LpNormalization"])
    if op == "LayerNormalization":
        x = b.pick(lambda v: v.dtype == FLOAT and v.rank >= 2 and v.static(v.rank - 1) and v.shape[-1][0] > 1)
        if x is None or b.opset < 17:
            return None
        extents = [x.shape[-1][0]]
        operands: list[Value | None] = [tame(b, x), b.weights(extents, 1.0)]
        if b.chance(0.7):
            operands.append(b.weights(extents, 1.0))
        bound = math.sqrt(extents[0]) + 1.0
        return b.keep(b.emit(op, operands, x.shape, low=-bound, high=bound, axis=-1, epsilon=b.choose([1e-2, 1e-3])))
    x = image(b, 2)
    if x is None:
        return None
    if op == "InstanceNormalization":
        channels = x.shape[1][0]
        operands = [x, b.weights([channels], 1.0), b.weights([channels], 1.0)]
        bound = math.sqrt(max(product(x.shape[2:], b.shared.feeds))) + 1.0
        return b.keep(b.emit(op, operands, x.shape, low=-bound, high=bound, epsilon=1e-2))
    if op == "LRN":
        return b.keep(b.emit(op, [x], x.shape, low=-x.bound, high=x.bound, size=b.choose([1, 3]), alpha=0.05))
    shifted = add(b, unary(b, "Abs", x), b.scalar(0.5))
    if shifted is None or b.opset < 11:
        return None
    return b.keep(b.emit(op, [shifted], x.shape, low=0.0, high=1.0, axis=b.choose([1, 3]), p=b.choose([1, 2])))


def random_recurrent(b: Builder) -> Value | None:
    """A small LSTM, GRU or RNN over [time, batch, features]."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank == 3 and v.static(2) and v.bound < 20)
    if x is None:
        return None
    op = b.choose(["LSTM", "GRU", "RNN"])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    hidden, features = 3, x.shape[2][0]
    direction = b.choose(["forward", "reverse", "bidirectional"])
    count = 2 if direction == "bidirectional" else 1
    operands: list[Value | None] = [
        x,
        b.weights([count, gates * hidden, features], 0.5),
        b.weights([count, gates * hidden, hidden], 0.5),
    ]
    if b.chance(0.6):
        operands.append(b.weights([count, 2 * gates * hidden], 0.3))
    shape = [x.shape[0], b.static_dim(count), x.shape[1], b.static_dim(hidden)]
    before = b.choose([0, 1]) if op == "GRU" else None
    made = b.emit(
        op, operands, shape, low=-1.0, high=1.0, hidden_size=hidden, direction=direction, linear_before_reset=before
    )
    return b.keep(made)
