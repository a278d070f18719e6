"""Inference for convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import INT32, INT64
from whet.errors import InvalidGraph
from whet.graph import Node, Shape, TensorType, Type
from whet.graph.dims import Dim, ceil_div, floor_div
from whet.graph.types import format_shape
from whet.ops.common import common_dtype, dtype_of, required, shape_of, unknown


def window_attributes(node: Node, axes: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and pads of a sliding window over `axes` axes. Raises InvalidGraph for impossible ones."""
    strides = node.ints_attr("strides", (1,) * axes)
    dilations = node.ints_attr("dilations", (1,) * axes)
    pads = node.ints_attr("pads", (0,) * (2 * axes))
    for name, found, count in (("strides", strides, axes), ("dilations", dilations, axes), ("pads", pads, 2 * axes)):
        if len(found) != count:
            raise InvalidGraph(
                f"attribute {name!r} has the wrong length", found=list(found), expected=f"{count} numbers"
            )
    if any(s < 1 for s in (*strides, *dilations)):
        raise InvalidGraph(
            "strides and dilations are at least 1", found=f"strides {list(strides)}, dilations {list(dilations)}"
        )
    return strides, dilations, pads


def window_extent(extent: Dim, kernel: Dim, stride: int, dilation: int, before: int, after: int, auto_pad: str) -> Dim:
    """How many positions a window has along an axis, rounded down."""
    if extent is None or kernel is None:
        return None
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return ceil_div(extent, stride)
    padded = extent if auto_pad == "VALID" else extent + before + after
    free = padded - dilation * (kernel - 1) - 1
    if isinstance(free, int) and free < 0:
        if extent == 0:
            return 0
        raise InvalidGraph(
            "the window is larger than the padded input",
            found=f"a window over {kernel} elements, dilation {dilation}, on {padded} padded elements",
        )
    return floor_div(free, stride) + 1


def conv(node: Node) -> Sequence[Type | None]:
    dtype = common_dtype(node.inputs)
    return (TensorType(dtype, conv_shape(node, shape_of(required(node, 0)), shape_of(required(node, 1)))),)


def conv_integer(node: Node) -> Sequence[Type | None]:
    return (TensorType(INT32, conv_shape(node, shape_of(required(node, 0)), shape_of(required(node, 1)))),)


def qlinear_conv(node: Node) -> Sequence[Type | None]:
    shape = conv_shape(node, shape_of(required(node, 0)), shape_of(required(node, 3)))
    return (TensorType(dtype_of(node.input(7)), shape),)


def _check_ranks(x: Shape | None, w: Shape | None) -> int | None:
    known = [len(s) for s in (x, w) if s is not None]
    if not known:
        return None
    if min(known) < 3 or len(set(known)) > 1:
        raise InvalidGraph(
            "a convolution's input and weight have one rank, at least 3",
            found=f"input {format_shape(x)}, weight {format_shape(w)}",
        )
    return known[0]


def _check_group(node: Node) -> int:
    group = node.int_attr("group", 1)
    if group < 1:
        raise InvalidGraph("attribute 'group' is at least 1", found=group)
    return group


def conv_shape(node: Node, x: Shape | None, w: Shape | None) -> Shape | None:
    """The output shape of Conv and its quantized relatives."""
    rank = _check_ranks(x, w)
    if rank is None:
        return None
    group = _check_group(node)
    axes = rank - 2
    strides, dilations, pads = window_attributes(node, axes)
    given: Shape = node.ints_attr("kernel_shape") or (w[2:] if w is not None else (None,) * axes)
    if len(given) != axes or any(isinstance(k, int) and k < 1 for k in given):
        raise InvalidGraph(
            "attribute 'kernel_shape' does not fit", found=list(given), expected=f"{axes} positive numbers"
        )
    channels = w[0] if w is not None else None
    if w is not None and x is not None:
        have, want, filters = x[1], w[1], w[0]
        if isinstance(have, int) and isinstance(want, int) and have != want * group:
            raise InvalidGraph(
                "the weight's channels do not fit the input's",
                found=f"input {format_shape(x)}, weight {format_shape(w)}, group {group}",
                expected=f"{want * group} input channels",
            )
        if isinstance(filters, int) and filters % group:
            raise InvalidGraph(
                "the filters cannot be divided among the groups", found=f"{filters} filters, group {group}"
            )
    if x is None:
        return (None, channels, *(None,) * axes)
    auto = node.str_attr("auto_pad", "NOTSET")
    spatial = (
        window_extent(x[i + 2], given[i], strides[i], dilations[i], pads[i], pads[i + axes], auto) for i in range(axes)
    )
    return (x[0], channels, *spatial)


def conv_transpose(node: Node) -> Sequence[Type | None]:
    dtype = common_dtype(node.inputs)
    x, w = shape_of(required(node, 0)), shape_of(required(node, 1))
    rank = _check_ranks(x, w)
    if rank is None:
        return (TensorType(dtype),)
    group, axes = _check_group(node), rank - 2
    strides, dilations, pads = window_attributes(node, axes)
    per_group = w[1] if w is not None else None
    channels = None if per_group is None else per_group * group
    if x is None:
        return (TensorType(dtype, (None, channels, *(None,) * axes)),)
    if w is not None and isinstance(x[1], int) and isinstance(w[0], int) and x[1] != w[0]:
        raise InvalidGraph(
            "the weight's first axis is the input's channels",
            found=f"input {format_shape(x)}, weight {format_shape(w)}",
        )
    kernel: Shape = node.ints_attr("kernel_shape") or (w[2:] if w is not None else (None,) * axes)
    extra = node.ints_attr("output_padding", (0,) * axes)
    asked = node.ints_attr("output_shape")
    auto = node.str_attr("auto_pad", "NOTSET")
    spatial: list[Dim] = []
    for i in range(axes):
        extent, taps = x[i + 2], kernel[i]
        if asked:
            spatial.append(asked[len(asked) - axes + i])
        elif extent is None or taps is None:
            spatial.append(None)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            spatial.append(extent * strides[i])
        else:
            removed = 0 if auto == "VALID" else pads[i] + pads[i + axes]
            spatial.append((extent - 1) * strides[i] + extra[i] + dilations[i] * (taps - 1) + 1 - removed)
    return (TensorType(dtype, (x[0], channels, *spatial)),)


def pool(node: Node) -> Sequence[Type | None]:
    """MaxPool (with its indices), AveragePool, LpPool."""
    source = required(node, 0)
    x = shape_of(source)
    if x is None:
        return (TensorType(dtype_of(source)), TensorType(INT64))
    axes = len(x) - 2
    kernel = node.ints_attr("kernel_shape")
    if axes < 1 or len(kernel) != axes or any(k < 1 for k in kernel):
        raise InvalidGraph(
            "attribute 'kernel_shape' does not fit the input",
            found=f"{list(kernel)} for {format_shape(x)}",
            expected=f"{max(axes, 1)} positive numbers",
        )
    strides, dilations, pads = window_attributes(node, axes)
    auto = node.str_attr("auto_pad", "NOTSET")
    rounded_up = node.int_attr("ceil_mode", 0) != 0 and auto == "NOTSET"
    spatial: list[Dim] = []
    for i in range(axes):
        values = (x[i + 2], kernel[i], strides[i], dilations[i], pads[i], pads[i + axes])
        spatial.append(_ceil_extent(*values) if rounded_up else window_extent(*values, auto))
    shape = (x[0], x[1], *spatial)
    return (TensorType(dtype_of(source), shape), TensorType(INT64, shape))


def _ceil_extent(extent: Dim, kernel: int, stride: int, dilation: int, before: int, after: int) -> Dim:
    """Positions of a window, rounded up; a last window that starts past the input and its front padding is dropped."""
    if extent is None:
        return None
    reach = dilation * (kernel - 1) + 1
    count = ceil_div(extent + before + after - reach, stride) + 1
    if isinstance(count, int) and isinstance(extent, int):
        return count - 1 if (count - 1) * stride >= extent + before else count
    # The last window starts at most at extent + before + after - reach + stride - 1.
    return count if after + stride <= reach else None


def global_pool(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x = shape_of(source)
    if x is None:
        return (TensorType(dtype_of(source)),)
    if len(x) < 2:
        raise InvalidGraph("global pooling needs a batch and a channel axis", found=format_shape(x))
    return (TensorType(dtype_of(source), (*x[:2], *(1,) * (len(x) - 2))),)


def max_unpool(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x = shape_of(source)
    return (TensorType(dtype_of(source), unknown(None if x is None else len(x))),)
