"""What a matrix product or convolution does to its sums before it stores them: a group's tape with its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.compiler.fuse import Group
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.tape import TapeBuilder, computed, scalar_constant
from whet.compiler.views import View
from whet.dtypes import DType
from whet.graph import Node, Value
from whet.graph.dims import Known
from whet.kernels.tile import Epilogue, OperandKind

Extra = tuple[View, OperandKind]
"""An operand that the node itself brings: a bias, the matrix C of a Gemm."""
Begin = Callable[[TapeBuilder, int, Sequence[int]], int]
"""The node's own result from a sum and the extras, as values of a tape."""


@dataclass(frozen=True, slots=True)
class Finish:
    """An epilogue with the views of its operands, and the value that it makes."""

    epilogue: Epilogue | None
    operands: tuple[View, ...]
    kinds: tuple[OperandKind, ...]
    result: Value
    ops: str
    sums: bool = False
    """Whether somebody wants the result's sums over an image's pixels, so that they may be put down beside it."""


def operand_kind(shape: Sequence[Known], wanted: Sequence[Known], channel: int) -> OperandKind | None:
    """How an operand of `shape` meets a result of shape `wanted` whose columns are dimension `channel`; None: not.

    `channel` counts from the end (-1 is the last dimension).
    """
    if len(shape) > len(wanted):
        return None
    padded = (1,) * (len(wanted) - len(shape)) + tuple(shape)
    column = len(wanted) + channel
    if all(extent == 1 for extent in padded):
        return "scalar"
    if padded == tuple(wanted):
        return "full"
    if all(extent == 1 for axis, extent in enumerate(padded) if axis != column) and padded[column] == wanted[column]:
        return "column"
    return None


def takes_group(node: Node, group: Group, channel: int) -> bool:
    """Whether a product whose columns are dimension `channel` can do the group's work on its sums."""
    wanted = node.output.shape
    if wanted is None or any(d is None for d in wanted):
        return False
    shape = shape_of(node.output)
    for value in group.inputs:
        if scalar_constant(value) is None:
            own = value.shape
            if own is None or any(d is None for d in own) or operand_kind(shape_of(value), shape, channel) is None:
                return False
    return True


def finish(
    ctx: Lowering, node: Node, group: Group | None, element: DType, channel: int, extras: Sequence[Extra] = (),
    begin: Begin | None = None,
) -> Finish:  # fmt: skip
    """The epilogue of `node`, whose sums have type `element`, with the group's work behind its own (`begin`)."""
    views = [view for view, _ in extras]
    kinds = [kind for _, kind in extras]
    inputs = [v for v in group.inputs if scalar_constant(v) is None] if group is not None else []
    shape = shape_of(node.output)
    for value in inputs:
        kind = operand_kind(shape_of(value), shape, channel)
        assert kind is not None, f"{node.label} has taken an operand that it cannot read"
        views.append(ctx.view(value))
        kinds.append(kind)
    builder = TapeBuilder([element, *(v.element for v in views)])
    total = 0
    if begin is not None:
        total = begin(builder, 0, list(range(1, 1 + len(extras))))
    result = node.output if group is None else group.root
    ops = node.op_type
    if group is not None:
        at = {node.output: builder.cast(total, computed(dtype_of(node.output)))}
        for index, value in enumerate(inputs):
            at[value] = builder.cast(1 + len(extras) + index, computed(dtype_of(value)))
        for value in group.inputs:
            number = scalar_constant(value)
            if number is not None:
                at[value] = builder.constant(number, computed(dtype_of(value)))
        for inner in group.nodes:
            arguments = [None if v is None else at[v] for v in inner.inputs]
            at[inner.output] = SCALAR_RULES[inner.op].build(builder, inner, arguments)
            ops += f"+{inner.op_type}"
        total = at[group.root]
    tape = builder.tape(builder.cast(total, dtype_of(result)))
    if not tape.steps and tape.outputs == (0,) and not views:
        return Finish(None, (), (), result, ops)
    return Finish(Epilogue(tape, tuple(kinds)), tuple(views), tuple(kinds), result, ops)
