"""If, Loop and Scan with bodies that are themselves random graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import helper

from .arithmetic import clip, mul, random_binary, random_clip, random_unary, tame, unary
from .attention import double_activation
from .builder import BOOL, FLOAT, FLOATS, INT64, Builder, Dim, GraphInput, Value
from .layers import random_dropout, random_matmul, random_norm, random_reduction, random_softmax
from .movement import (
    extent_of,
    random_concat,
    random_gather,
    random_reshape,
    random_slice,
    random_squeeze,
    random_transpose,
    squeeze,
)
from .recipes import random_recipe

Template = Callable[[Builder], Value | None]

_BODY: tuple[Template, ...] = (
    random_unary, random_unary, random_unary, random_binary, random_binary, random_binary, random_clip, random_matmul,
    random_recipe, random_recipe, random_softmax, random_norm, random_reduction, random_transpose, random_reshape,
    random_slice, random_concat, random_gather, random_squeeze, random_dropout, double_activation,
)  # fmt: skip


def _grow(b: Builder, count: int) -> None:
    """Adds about `count` nodes to a body."""
    stop = b.shared.node_count + count
    for _ in range(4 * count):
        if b.shared.node_count >= stop:
            return
        templates: tuple[Template, ...] = _BODY
        if _depth(b) < 2 and b.chance(0.05):
            templates = (random_if, random_loop)
        b.choose(templates)(b)


def _depth(b: Builder) -> int:
    return 0 if b.parent is None else 1 + _depth(b.parent)


def _own(b: Builder, value: Value) -> Value:
    """`value` as something that the body itself computes, with a name of its own."""
    produced = {name for node in b.nodes for name in node.output}
    if value.name in produced and b.chance(0.8):
        return value
    return b.emit("Identity", [value], value.shape, like=value)


def _result_like(b: Builder, x: Value) -> Value:
    """A value of the body with the shape and type of `x`."""
    fitting = [v for v in b.pool if v.dtype == x.dtype and v.shape == x.shape and v.bound < 1e5]
    if fitting and b.chance(0.9):
        return _own(b, fitting[-1])
    return _own(b, unary(b, "Tanh", x) if x.dtype in FLOATS and b.chance(0.7) else x)


def _condition(b: Builder) -> Value | None:
    """A bool of one element: a value of the graph, a constant, or a question about an extent."""
    choice = b.random.random()
    if choice < 0.3:
        shape = b.choose([[], [], [1]])
        return b.constant(np.full(shape, b.chance(0.5), np.bool_))
    if choice < 0.6:
        known = b.pick(lambda v: v.dtype == BOOL and all(dim == b.static_dim(1) for dim in v.shape) and v.rank <= 1)
        if known is not None:
            return known
    if choice < 0.8 and b.opset >= 9:
        x = b.pick(lambda v: v.rank >= 1)
        if x is not None:
            extent = extent_of(b, x, b.random.randrange(x.rank))
            return b.emit(b.choose(["Greater", "Less"]), [extent, b.ints([3])], extent.shape, dtype=BOOL, grain=1.0)
    name = b.fresh("flag")
    info = helper.make_tensor_value_info(name, BOOL, [])
    arrays = tuple(np.asarray(b.chance(0.5)) for _ in range(b.shared.feeds))
    b.shared.inputs.append(GraphInput(info, arrays))
    return Value(name, BOOL, (), 0.0, 1.0, 1.0)


def random_if(b: Builder) -> Value | None:
    if b.chance(0.2):
        return _if_squeeze(b)
    models = [b.pick(lambda v: v.dtype in (FLOAT, INT64) and v.bound < 1e4) for _ in range(b.choose([1, 1, 2]))]
    wanted = [model for model in models if model is not None]
    condition = _condition(b)
    if condition is None or not wanted:
        return None
    branches, results = [], []
    for name in ("then_branch", "else_branch"):
        body = Builder(b.shared, b)
        if b.chance(0.85):
            _grow(body, b.choose([1, 2, 3, 5]))
        outputs = [_result_like(body, model) for model in wanted]
        outputs = _distinct(body, outputs)
        results.append(outputs)
        shaped = b.chance(0.5)
        branches.append(body.graph(name, [], [body.info(value, shaped=shaped) for value in outputs]))
        b.used.update(body.used)
    names = [b.fresh("v") for _ in wanted]
    b.node("If", b.names([condition]), names, then_branch=branches[0], else_branch=branches[1])
    for name, first, second in zip(names, *results, strict=True):
        grain = min(first.grain, second.grain) if first.grain is not None and second.grain is not None else None
        low, high = min(first.low, second.low), max(first.high, second.high)
        b.keep(Value(name, first.dtype, first.shape, low, high, grain))
    return b.pool[-1]


def _if_squeeze(b: Builder) -> Value | None:
    """Squeeze an axis if its extent is 1, as torch's exporter writes it: the branches have different ranks."""
    one = b.static_dim(1)

    def asked(value: Value) -> list[int]:
        """Axes whose answer is the same in every feed, and that shape inference cannot answer with no."""
        return [a for a, dim in enumerate(value.shape) if dim == one or (1 not in dim and not value.static(a))]

    x = b.pick(lambda v: v.dtype == FLOAT and bool(asked(v)))
    if x is None or b.opset < 11:
        return None
    axis = b.choose(asked(x))
    extent = extent_of(b, x, axis)
    condition = b.emit("Equal", [extent, b.ints([1])], extent.shape, dtype=BOOL, grain=1.0)
    taken = x.shape[axis] == one
    then_body, else_body = Builder(b.shared, b), Builder(b.shared, b)
    if taken:
        squeezed = squeeze(then_body, x, [axis])
    else:
        shape = [dim for place, dim in enumerate(x.shape) if place != axis]
        operands = [x, then_body.ints([axis])] if b.opset >= 13 else [x]
        squeezed = then_body.emit("Squeeze", operands, shape, like=x, axes=None if b.opset >= 13 else [axis])
    kept = else_body.emit("Identity", [x], x.shape, like=x)
    b.used.update(then_body.used | else_body.used)
    then_info, else_info = (body.info(v, shaped=False) for body, v in ((then_body, squeezed), (else_body, kept)))
    name = b.fresh("v")
    b.node(
        "If", b.names([condition]), [name],
        then_branch=then_body.graph("then", [], [then_info]), else_branch=else_body.graph("else", [], [else_info]),
    )  # fmt: skip
    return b.keep(replace(squeezed if taken else kept, name=name))


def _distinct(b: Builder, values: list[Value]) -> list[Value]:
    """Gives every output of a body its own name."""
    seen: set[str] = set()
    result = []
    for value in values:
        if value.name in seen:
            value = b.emit("Identity", [value], value.shape, like=value)
        seen.add(value.name)
        result.append(value)
    return result


def _bounded(b: Builder, x: Value) -> Value:
    """`x` inside [-4, 4], the bound that carried values are declared with."""
    if x.bound <= 4.0:
        return x
    way = b.random.randrange(3)
    if way == 0:
        return clip(b, x, -4.0, 4.0)
    squashed = unary(b, "Tanh", tame(b, x) if way == 1 else x)
    return mul(b, squashed, b.constant(np.asarray(2.0, np.float32), plain=True)) or squashed


def _trips(b: Builder) -> tuple[Value, Dim]:
    """The trip count of a Loop and its number in each feed."""
    choice = b.random.random()
    if choice < 0.5:
        count = b.choose([1, 2, 3, 4])
        shape = b.choose([[], [], [1]])
        return b.constant(np.full(shape, count, np.int64)), b.static_dim(count)
    x = b.pick(lambda v: v.rank >= 1 and max(max(dim) for dim in v.shape) <= 5)
    if choice < 0.7 and x is not None:
        axis = b.random.randrange(x.rank)
        return squeeze(b, extent_of(b, x, axis), [0]), x.shape[axis]
    name = b.fresh("trips")
    counts = tuple(b.choose([1, 2, 3, 5]) for _ in range(b.shared.feeds))
    info = helper.make_tensor_value_info(name, INT64, [])
    b.shared.inputs.append(GraphInput(info, tuple(np.asarray(count, np.int64) for count in counts)))
    return Value(name, INT64, (), float(min(counts)), float(max(counts)), 1.0), counts


def random_loop(b: Builder) -> Value | None:
    """A Loop with carried values, scan outputs, and sometimes a condition that ends it early."""
    starts = [b.pick(lambda v: v.dtype == FLOAT and v.rank <= 4) for _ in range(b.choose([1, 1, 2]))]
    initial = [_bounded(b, value) for value in starts if value is not None]
    if not initial:
        return None
    trip, counts = _trips(b)
    body = Builder(b.shared, b)
    step = Value(body.fresh("i"), INT64, (), 0.0, 6.0, 1.0)
    going = Value(body.fresh("go"), BOOL, (), 0.0, 1.0, 1.0)
    carried = [Value(body.fresh("s"), FLOAT, value.shape, -4.0, 4.0, None) for value in initial]
    body.pool += [*carried, step]
    if b.chance(0.3):
        body.keep(body.emit("Cast", [step], [], dtype=FLOAT, low=0.0, high=6.0, grain=1.0, to=FLOAT))
    _grow(body, b.choose([2, 3, 5]))
    limit = b.choose([1, 2, 3]) if b.opset >= 9 and b.chance(0.3) else None
    if limit is None:
        goes_on = body.emit("Identity", [going], [], like=going)
    else:
        last = body.constant(np.asarray(limit - 1, np.int64), plain=True)
        goes_on = body.emit("Less", [step, last], [], dtype=BOOL, grain=1.0)
        counts = tuple(min(count, limit) for count in counts)
    finals = [_own(body, _bounded(body, _result_like(body, value))) for value in carried]
    stacked = _stacked(body, counts)
    outputs = _distinct(body, [goes_on, *finals, *stacked])
    shaped = b.chance(0.5)
    inputs = [body.info(value, shaped=True) for value in (step, going)]
    inputs += [body.info(value, shaped=shaped) for value in carried]
    graph = body.graph(
        "body", inputs, [body.info(value, shaped=shaped or place == 0) for place, value in enumerate(outputs)]
    )
    b.used.update(body.used)
    start = None if b.chance(0.4) else b.constant(np.asarray(True), plain=True)
    names = [b.fresh("v") for _ in outputs[1:]]
    b.node("Loop", b.names([trip, start, *initial]), names, body=graph)
    for name, value in zip(names[: len(finals)], finals, strict=True):
        b.keep(replace(value, name=name, low=-4.0, high=4.0, grain=None))
    for name, value in zip(names[len(finals) :], stacked, strict=True):
        b.keep(replace(value, name=name, shape=(counts, *value.shape)))
    return b.pool[-1]


def _stacked(body: Builder, counts: Dim) -> list[Value]:
    """Values of the body that become scan outputs."""
    result = []
    for _ in range(body.choose([0, 1, 1, 2])):
        fitting = [v for v in body.pool if body.fits((counts, *v.shape)) and v.dtype in (FLOAT, INT64)]
        if fitting:
            result.append(_own(body, body.choose(fitting)))
    return result


def random_scan(b: Builder) -> Value | None:
    """A Scan over the first axis (sometimes the last, sometimes backwards) of one value, with one state."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank >= 2 and v.bound < 1e4 and max(v.shape[0]) <= 8)
    if x is None or b.opset < 9:
        return None
    axis = x.rank - 1 if b.chance(0.2) and max(x.shape[-1]) <= 8 else 0
    inner = [dim for place, dim in enumerate(x.shape) if place != axis]
    state = b.pick(lambda v: v.dtype == FLOAT and v.rank <= 3)
    if state is None:
        return None
    initial = _bounded(b, state)
    body = Builder(b.shared, b)
    carried = Value(body.fresh("s"), FLOAT, initial.shape, -4.0, 4.0, None)
    element = Value(body.fresh("e"), FLOAT, tuple(inner), x.low, x.high, x.grain)
    body.pool += [carried, element]
    _grow(body, b.choose([2, 3, 5]))
    final = _own(body, _bounded(body, _result_like(body, carried)))
    stacked = _stacked(body, x.shape[axis])
    outputs = _distinct(body, [final, *stacked])
    inputs = [body.info(value, shaped=True) for value in (carried, element)]
    graph = body.graph("body", inputs, [body.info(value, shaped=True) for value in outputs])
    b.used.update(body.used)
    names = [b.fresh("v") for _ in outputs]
    b.node(
        "Scan", b.names([initial, x]), names, body=graph, num_scan_inputs=1,
        scan_input_axes=[axis] if axis else None, scan_input_directions=[1] if b.chance(0.3) else None,
    )  # fmt: skip
    b.keep(replace(final, name=names[0], low=-4.0, high=4.0, grain=None))
    for name, value in zip(names[1:], stacked, strict=True):
        b.keep(replace(value, name=name, shape=(x.shape[axis], *value.shape)))
    return b.pool[-1]
