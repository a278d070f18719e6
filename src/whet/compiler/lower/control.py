"""If, Loop and Scan whose decisions fall as the program runs: their graphs become rows between jumps."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.bounds import upper
from whet.compiler.extents import body_of, branches, keeps_going, loop_rounds
from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.demand import demand, need
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Label, address
from whet.compiler.views import View
from whet.graph import Graph, Node, Value
from whet.graph.dims import Expr, Known, maximum, minimum, symbol
from whet.kernels.store import StoreNumbers


def lower_if(ctx: Lowering, node: Node, group: Group | None) -> None:
    condition = ctx.name(f"condition of {node.output.name}")
    ctx.load({condition: (ctx.view(need(node, 0)), 1)})
    other, end = Label(), Label()
    then_branch, else_branch = branches(node)
    read = [i for i, value in enumerate(node.outputs) if value.use_count]
    # The branches give different extents to the same names: memory is there for the larger.
    names = {i: ctx.undeclared(node.outputs[i]) for i in read}
    ctx.jump(other, unless=symbol(condition))
    one = _branch(ctx, node, then_branch, names, {})
    ctx.jump(end)
    ctx.label(other)
    two = _branch(ctx, node, else_branch, names, one)
    ctx.label(end)
    for i, open_axes in names.items():
        for axis, name in open_axes.items():
            most = [upper(shape_of(graph.outputs[i])[axis], ctx.bounds) for graph in (then_branch, else_branch)]
            ctx.bounds[name] = None if most[0] is None or most[1] is None else maximum(most[0], most[1])
    for i in read:
        ctx.define(node.outputs[i], two[i])


def _branch(
    ctx: Lowering, node: Node, graph: Graph, names: dict[int, dict[int, str]], made: dict[int, View]
) -> dict[int, View]:
    """Emit a branch that leaves its results in the views of `made`, which the first of the two branches makes."""
    results = dict(made)
    if not made:
        for i, open_axes in names.items():
            if not open_axes:
                results[i] = ctx.new(node.outputs[i])
    wanted: set[Value] = set()
    for i, view in results.items():
        value = graph.outputs[i]
        made_here = value.producer is not None and value.producer.graph is graph
        if made_here and value not in wanted and not names[i]:
            ctx.want(value, view)
            wanted.add(value)
    ctx.lower_nodes(ctx, graph)
    ctx.node = node
    for i, open_axes in names.items():
        source = ctx.view(graph.outputs[i])
        if open_axes:
            for name in open_axes.values():
                ctx.bounds.setdefault(name, None)
            ctx.assign({name: source.shape[axis] for axis, name in open_axes.items()})
        if i not in results:
            results[i] = ctx.new(node.outputs[i])
        if not _is_same(source, results[i]):
            copy(ctx, source, results[i])
    return results


def _is_same(a: View, b: View) -> bool:
    return a.buffer is b.buffer and a.offset == b.offset and a.strides == b.strides and a.shape == b.shape


class _Rounds:
    """The rows around a loop's body: they count, and jump."""

    def __init__(self, ctx: Lowering, node: Node, number: str, limit: Known | None, going: str | None) -> None:
        self.ctx, self.number, self.going = ctx, number, going
        self.begin, self.end = Label(), Label()
        most = None if limit is None else upper(limit, ctx.bounds)
        ctx.bounds[number] = most
        ctx.assign({number: 0})
        ctx.label(self.begin)
        goes_on: Known = 1
        if limit is not None:
            goes_on = minimum(maximum(limit - symbol(number), 0), 1)
        if going is not None:
            goes_on = goes_on * symbol(going)
        if goes_on != 1:
            ctx.jump(self.end, unless=goes_on)

    def close(self) -> None:
        """The end of the body."""
        ctx = self.ctx
        ctx.assign({self.number: symbol(self.number) + 1})
        ctx.jump(self.begin)
        ctx.label(self.end)
        ctx.loops.append((self.begin, self.end))


def _state(ctx: Lowering, value: Value, result: Value) -> View:
    """Memory for a value that a loop carries, with what it is at first; it becomes the loop's result."""
    view = ctx.new(result)
    copy(ctx, ctx.view(value), view)
    return view


def _carry(ctx: Lowering, made: Sequence[Value], states: Sequence[View]) -> None:
    """The end of a round: new values take the place of the states."""
    views = [ctx.view(value) for value in made]
    moving = [
        (view, state) for view, state in zip(views, states, strict=True) if not _is_same(view, state)
    ]  # fmt: skip
    kept = {state.buffer for state in states}
    # A state that is read for another one must not be overwritten before; alone, or where it stays, there is no danger.
    if len(moving) > 1 or any(view.buffer is state.buffer for view, state in moving):
        moving = [(relayout(ctx, view) if view.buffer in kept else view, state) for view, state in moving]
    for view, state in moving:
        copy(ctx, view, state)


def _number_view(ctx: Lowering, value: Value, number: Known) -> None:
    """Let the value be memory that holds the number."""
    if value.use_count:
        view = ctx.new(value)
        words = {"out": address(view), "v0": number}
        ctx.emit(StoreNumbers(dtype_of(value), 1), words, 1, [], [view], parallel=False)


def lower_loop(ctx: Lowering, node: Node, group: Group | None) -> None:
    body, carried = body_of(node), len(node.inputs) - 2
    found = body.inputs[0].symbolic
    assert found is not None
    assert isinstance(found[0], Expr)
    number = found[0].name
    assert number is not None
    limit = _limit(ctx, node)
    going, condition = None, node.input(1)
    if condition is not None and condition.data is not None and condition.data.scalar():
        condition = None
    if condition is not None or not keeps_going(body):
        going = ctx.name(f"condition of {node.label}")
        if condition is None:
            ctx.assign({going: 1})
        else:
            ctx.load({going: (ctx.view(condition), 1)})
    states = [
        _state(ctx, need(node, 2 + i), node.outputs[i]) for i in range(carried)
    ]  # fmt: skip
    read = [value for value in node.outputs[carried:] if value.use_count]
    count = ctx.undeclared(read[0]).get(0) if read else None
    if count is not None:
        ctx.bounds[count] = None if limit is None else upper(limit, ctx.bounds)
    # Rows of unknown number are written from the start of memory that is large enough: their stride is not in question.
    outs = [ctx.new(value) if value.use_count else None for value in node.outputs[carried:]]
    rounds = _Rounds(ctx, node, number, limit, going)
    i = symbol(number)
    _number_view(ctx, body.inputs[0], i)
    _number_view(ctx, body.inputs[1], 1)
    for value, view in zip(body.inputs[2:], states, strict=True):
        ctx.define(value, view)
    made = list(body.outputs)
    _want_rows(ctx, body, made[1 + carried :], outs, [0] * len(outs), [i] * len(outs))
    ctx.lower_nodes(ctx, body)
    ctx.node = node
    _store_rows(ctx, made[1 + carried :], outs, [0] * len(outs), [i] * len(outs))
    if going is not None and not keeps_going(body):
        ctx.load({going: (ctx.view(made[0]), 1)})
    _carry(ctx, made[1 : 1 + carried], states)
    rounds.close()
    if count is not None:
        ctx.assign({count: i})
    for value, view in zip(node.outputs, states, strict=False):
        ctx.define(value, view)


def _limit(ctx: Lowering, node: Node) -> Known | None:
    """The most rounds of a Loop; None where there is no limit."""
    given = node.input(0)
    if given is None:
        return None
    known = loop_rounds(node)
    if known is not None:
        return known
    if given.data is not None:
        return None
    raw, limit = ctx.name(f"M of {node.label}"), ctx.name(f"rounds of {node.label}")
    ctx.load({raw: (ctx.view(given), None)})
    ctx.assign({limit: maximum(symbol(raw), 0)})
    return symbol(limit)


def _row(out: View, axis: int, at: Known) -> View:
    """A place for one round's part of what a loop stacks."""
    axis %= out.rank
    return out.slice(axis, at, 1).drop(axis)


def _want_rows(
    ctx: Lowering,
    body: Graph,
    made: Sequence[Value],
    outs: Sequence[View | None],
    axes: Sequence[int],
    at: Sequence[Known],
) -> None:
    wanted: set[Value] = set()
    for value, out, axis, place in zip(made, outs, axes, at, strict=True):
        producer = value.producer
        if out is not None and producer is not None and producer.graph is body and value not in wanted:
            ctx.want(value, _row(out, axis, place))
            wanted.add(value)


def _store_rows(
    ctx: Lowering, made: Sequence[Value], outs: Sequence[View | None], axes: Sequence[int], at: Sequence[Known]
) -> None:
    for value, out, axis, place in zip(made, outs, axes, at, strict=True):
        if out is not None:
            row = _row(out, axis, place)
            view = ctx.view(value)
            if not _is_same(view, row):
                copy(ctx, view, row)


def lower_scan(ctx: Lowering, node: Node, group: Group | None) -> None:
    body = body_of(node)
    scanned = node.int_attr("num_scan_inputs", 0)
    count = len(node.inputs) - scanned
    stacked = len(body.outputs) - count
    axes, out_axes = (
        node.ints_attr("scan_input_axes", (0,) * scanned),
        node.ints_attr("scan_output_axes", (0,) * stacked),
    )
    back = node.ints_attr("scan_input_directions", (0,) * scanned)
    out_back = node.ints_attr("scan_output_directions", (0,) * stacked)
    sources = [ctx.view(need(node, count + i)) for i in range(scanned)]
    length = sources[0].shape[axes[0] % sources[0].rank]
    for view, axis in zip(sources, axes, strict=True):
        demand(ctx, "equal", view.shape[axis % view.rank], length, "the scanned inputs differ in length")
    states = [_state(ctx, need(node, i), node.outputs[i]) for i in range(count)]
    outs = [ctx.new(value) if value.use_count else None for value in node.outputs[count:]]
    number = ctx.name(f"round of {node.label}")
    rounds = _Rounds(ctx, node, number, length, None)
    i = symbol(number)
    for value, view in zip(body.inputs[:count], states, strict=True):
        ctx.define(value, view)
    for value, view, axis, backward in zip(body.inputs[count:], sources, axes, back, strict=True):
        ctx.define(value, _row(view, axis, length - 1 - i if backward else i))
    places: list[Known] = [length - 1 - i if backward else i for backward in out_back]
    _want_rows(ctx, body, body.outputs[count:], outs, out_axes, places)
    ctx.lower_nodes(ctx, body)
    ctx.node = node
    _store_rows(ctx, body.outputs[count:], outs, out_axes, places)
    _carry(ctx, body.outputs[:count], states)
    rounds.close()
    for value, view in zip(node.outputs, states, strict=False):
        ctx.define(value, view)


IF = Rule(lower_if, tensor_refusal)
LOOP = Rule(lower_loop, tensor_refusal)
SCAN = Rule(lower_scan, tensor_refusal)
