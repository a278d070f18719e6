"""RNN, GRU and LSTM: a product with the input weights for all steps at once, then the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, dense
from whet.compiler.lower.demand import demand, demand_same, need
from whet.compiler.lower.epilogue import finish
from whet.compiler.lower.matmul import emit_panels, pack_at_run
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View, hint
from whet.compiler.weights import Array
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.graph import Node, Value
from whet.graph.dims import Known, ceil_div
from whet.kernels.gemm import pack_b
from whet.kernels.rnn import ACTIVATIONS, GATES, Activation, Cell, Recurrence, pack_recurrent

CELLS: dict[str, Cell] = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
DEFAULTS: dict[Cell, tuple[str, ...]] = {
    "rnn": ("Tanh",),
    "gru": ("Sigmoid", "Tanh"),
    "lstm": ("Sigmoid", "Tanh", "Tanh"),
}
PARAMETERS: dict[str, tuple[float | None, float | None]] = {
    "affine": (1.0, 0.0),
    "elu": (1.0, None),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, None),
    "scaledtanh": (1.0, 1.0),
    "thresholdedrelu": (1.0, None),
}
"""Alpha and beta where a node gives none; None where the function takes none."""
ROWS = 4
"""Most sequences that one tile takes through the steps."""


def refusal(node: Node) -> str | None:
    """Why a recurrent layer cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    element = dtype_of(need(node, 0))
    if element not in (FLOAT32, FLOAT64):
        return f"no recurrent layer of {element}"
    shapes = [need(node, i).shape for i in range(3)]
    if any(shape is None or len(shape) != 3 for shape in shapes):
        return "its operands have not rank 3"
    for value, rank in (
        (node.input(3), 2),
        (node.input(4), 1),
        (node.input(5), 3),
        (node.input(6), 3),
        (node.input(7), 2),
    ):
        if value is not None and (value.shape is None or len(value.shape) != rank):
            return f"{value.name} has not rank {rank}"
    if not isinstance(_hidden(node), int):
        return "the size of its state is not fixed"
    if node.str_attr("direction", "forward") not in ("forward", "reverse", "bidirectional"):
        return "its direction is unknown"
    if node.float_attr("clip", 0.0) < 0:
        return "its clip is negative"
    names = _names(node)
    if len(names) != len(DEFAULTS[CELLS[node.op]]) * _directions(node):
        return "it has another number of activations than functions"
    unknown = [name for name in names if name.lower() not in ACTIVATIONS]
    return f"no activation {unknown[0]}" if unknown else None


def _hidden(node: Node) -> object:
    shape = need(node, 2).shape
    return node.int_attr("hidden_size", 0) or (shape[2] if shape else None)


def _directions(node: Node) -> int:
    return 2 if node.str_attr("direction", "forward") == "bidirectional" else 1


def _names(node: Node) -> tuple[str, ...]:
    given = node.attributes.get("activations")
    if isinstance(given, tuple) and given:
        return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in given)
    return DEFAULTS[CELLS[node.op]] * _directions(node)


def _activations(node: Node) -> list[Activation]:
    """The functions of all directions; alphas and betas go to those that take one, in order."""
    alphas, betas = (
        [float(x) for x in given] if isinstance(given, tuple) else []  # type: ignore[arg-type]
        for given in (node.attributes.get("activation_alpha"), node.attributes.get("activation_beta"))
    )
    found = []
    for name in _names(node):
        alpha, beta = PARAMETERS.get(name.lower(), (None, None))
        if alpha is not None and alphas:
            alpha = alphas.pop(0)
        if beta is not None and betas:
            beta = betas.pop(0)
        found.append(Activation(name.lower(), alpha or 0.0, beta or 0.0))
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """A recurrent layer with its operands; tensors lie as layout 0 has them."""

    node: Node
    cell: Cell
    element: DType
    hidden: int
    x: View
    """[steps, batch, inputs]."""

    @property
    def columns(self) -> int:
        return GATES[self.cell] * self.hidden


def lower_recurrent(ctx: Lowering, node: Node, group: Group | None) -> None:
    hidden = _hidden(node)
    assert isinstance(hidden, int)
    by_batch = node.int_attr("layout", 0) == 1
    x = ctx.view(need(node, 0))
    if by_batch:
        x = x.transpose((1, 0, 2))
    layer = _Layer(node, CELLS[node.op], x.element, hidden, dense(ctx, x))
    steps, batch, inputs = x.shape
    directions, columns = _directions(node), layer.columns
    w, r = need(node, 1), need(node, 2)
    demand_same(ctx, ctx.view(w).shape, (directions, columns, inputs), "W has other extents")
    demand_same(ctx, ctx.view(r).shape, (directions, columns, hidden), "R has other extents")
    # Results: [steps, directions, batch, hidden] and [directions, batch, hidden], whatever their order in memory.
    results: list[View | None] = []
    for index, value in enumerate(node.outputs):
        if not value.use_count:
            results.append(None)
            continue
        view = ctx.new(value)
        if by_batch:
            view = view.transpose((1, 2, 0, 3) if index == 0 else (1, 0, 2))
        results.append(view)
    results += [None] * (3 - len(results))
    states = [_operand(ctx, node, i, (directions, batch, hidden), by_batch) for i in (5, 6)]
    bias = _operand(ctx, node, 3, (directions, 2 * columns), False)
    peephole = _operand(ctx, node, 7, (directions, 3 * hidden), False)
    lengths = node.input(4)
    length_view = None if lengths is None else dense(ctx, ctx.view(lengths))
    if length_view is not None:
        demand(ctx, "equal", length_view.shape[0], batch, "sequence_lens has another length than the batch")
    functions = _activations(node)
    count = len(functions) // directions
    for d in range(directions):
        gates = _gates(ctx, layer, d, bias)
        spec = Recurrence(
            cell=layer.cell,
            dtype=layer.element,
            hidden=hidden,
            activations=tuple(functions[d * count : (d + 1) * count]),
            rows=batch if isinstance(batch, int) and 1 <= batch <= ROWS else ROWS if hint(batch) >= ROWS else 1,
            clip=node.float_attr("clip", 0.0),
            reverse=d == 1 or node.str_attr("direction", "forward") == "reverse",
            linear_before_reset=layer.cell == "gru" and node.int_attr("linear_before_reset", 0) != 0,
            input_forget=layer.cell == "lstm" and node.int_attr("input_forget", 0) != 0,
            recurrent_bias=bias is not None,
            peephole=layer.cell == "lstm" and peephole is not None,
            lengths=length_view is not None,
            initial_h=states[0] is not None,
            initial_c=layer.cell == "lstm" and states[1] is not None,
            y=results[0] is not None,
            last_h=results[1] is not None,
            last_c=layer.cell == "lstm" and results[2] is not None,
        )
        weights = _recurrent(ctx, spec, r, d)
        reads, writes = [gates, weights], []
        words: dict[str, Word] = {
            "gates": address(gates), "gates_step": gates.strides[0], "gates_batch": gates.strides[1],
            "recurrent": address(weights), "steps": steps, "batch": batch,
        }  # fmt: skip
        if bias is not None:
            row = bias.slice(0, d, 1).drop(0).slice(0, columns, columns)
            words["recurrent_bias"] = address(row)
            reads.append(bias)
        if spec.peephole and peephole is not None:
            words["peephole"] = address(peephole.slice(0, d, 1))
            reads.append(peephole)
        if length_view is not None:
            words["lengths"] = address(length_view)
            reads.append(length_view)
        for name, used, state in (("h", spec.initial_h, states[0]), ("c", spec.initial_c, states[1])):
            if used and state is not None:
                words |= {f"initial_{name}": address(state.slice(0, d, 1)), f"initial_{name}_batch": state.strides[1]}
                reads.append(state)
        y, last = results[0], {"h": results[1], "c": results[2]}
        if spec.y and y is not None:
            part = y.slice(1, d, 1).drop(1)
            words |= {"y": address(part), "y_step": part.strides[0], "y_batch": part.strides[1]}
            writes.append(y)
        for name, end in last.items():
            if end is not None and getattr(spec, f"last_{name}"):
                words |= {f"last_{name}": address(end.slice(0, d, 1)), f"last_{name}_batch": end.strides[1]}
                writes.append(end)
        flops = steps * batch * columns * hidden * 2
        ctx.emit(spec, words, ceil_div(batch, spec.rows), reads, writes, flops=flops, tactic="recurrence")


def _operand(ctx: Lowering, node: Node, index: int, shape: Sequence[Known], by_batch: bool) -> View | None:
    """An optional operand whose rows are contiguous, batch behind directions."""
    value = node.input(index)
    if value is None:
        return None
    view = ctx.view(value)
    if by_batch:
        view = view.transpose((1, 0, 2))
    demand_same(ctx, view.shape, shape, f"{value.name} has other extents")
    return view if view.unit(view.rank - 1) else dense(ctx, view)


def _gates(ctx: Lowering, layer: _Layer, d: int, bias: View | None) -> View:
    """What the inputs and their bias add to the gates, [steps, batch, columns]."""
    node, w = layer.node, need(layer.node, 1)
    steps, batch, _ = layer.x.shape
    out = ctx.temporary(layer.element, (steps, batch, layer.columns), label=f"gates of {node.output.name}")
    extras = []
    if bias is not None:
        extras.append((bias.slice(0, d, 1).drop(0).slice(0, 0, layer.columns), "column"))

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        for operand in operands:
            total = tape.add("add", layer.element, total, operand)
        return total

    def panels(width: int, batch_shape: Sequence[Known]) -> tuple[View, tuple[Known, ...]]:
        if w.data is not None:
            data = w.data
            key = ("input weights", data.identity(), d, layer.element.name, width)
            buffer = ctx.weight(key, lambda: pack_b(data.numpy()[d].T, width), layer.element)
            return View(buffer, (buffer.elements,), (1,)), (0,) * len(batch_shape)
        matrix = ctx.view(w).slice(0, d, 1).drop(0).transpose((1, 0))
        return pack_at_run(ctx, matrix, layer.element, width, ())[0], (0,) * len(batch_shape)

    done = finish(ctx, node, None, layer.element, -1, extras, begin if extras else None)  # type: ignore[arg-type]
    emit_panels(ctx, layer.x, panels, True, layer.element, out, done)
    return out


def _recurrent(ctx: Lowering, spec: Recurrence, r: Value, d: int) -> View:
    """R as the kernel reads it."""
    if r.data is not None:
        data = r.data
        layout = spec.layout(ctx.target)
        key = ("recurrent weights", data.identity(), d, spec.cell, spec.parts, layout.panel, layout.padded)

        def make() -> Array:
            return pack_recurrent(spec, ctx.target, data.numpy()[d])

        buffer = ctx.weight(key, make, spec.dtype)
        return View(buffer, (buffer.elements,), (1,))
    return _recurrent_at_run(ctx, spec, ctx.view(r).slice(0, d, 1).drop(0))


def _recurrent_at_run(ctx: Lowering, spec: Recurrence, weights: View) -> View:
    """`pack_recurrent` by copies: R [gates * hidden, hidden] to rows of padded gates, those to panels."""
    layout, hidden = spec.layout(ctx.target), spec.hidden
    sizes = [hidden * layout.columns(count) for count in spec.parts]
    result = ctx.temporary(spec.dtype, (sum(sizes),), label="recurrent weights")
    gates = weights.reshape((GATES[spec.cell], hidden, hidden))
    if gates is None:
        gates = dense(ctx, weights).reshape((GATES[spec.cell], hidden, hidden))
    assert gates is not None
    first = at = 0
    for count, size in zip(spec.parts, sizes, strict=True):
        columns = layout.columns(count)
        rows = ctx.temporary(spec.dtype, (hidden, columns), label="gates in rows")
        for i in range(count):
            gate = gates.slice(0, first + i, 1).drop(0).transpose((1, 0))
            copy(ctx, gate, rows.slice(1, i * layout.padded, hidden))
        # The columns between gates are of no consequence, but must not be memory that nobody wrote.
        for i in range(count):
            _clear(ctx, rows, i * layout.padded + hidden, layout.padded - hidden)
        _clear(ctx, rows, count * layout.padded, columns - count * layout.padded)
        panels = View(result.buffer, (columns // layout.panel, hidden, layout.panel),
                      (hidden * layout.panel, layout.panel, 1), at)  # fmt: skip
        split = View(rows.buffer, (hidden, columns // layout.panel, layout.panel), (columns, layout.panel, 1))
        copy(ctx, split.transpose((1, 0, 2)), panels)
        first += count
        at += size
    return result


def _clear(ctx: Lowering, rows: View, start: int, count: int) -> None:
    if count > 0:
        target = rows.slice(1, start, count)
        copy(ctx, ctx.zeros(1, rows.element).expand_dims(0).broadcast(target.shape), target)


RECURRENT = Rule(lower_recurrent, refusal)
