"""Products with one-hot rows become lookups; pointwise work on looked-up rows moves into the table."""

from __future__ import annotations

import numpy as np

from whet import dtypes
from whet.dtypes import DType
from whet.errors import WhetError
from whet.graph import Node, Patch, Value
from whet.graph.tensor import Array
from whet.ops.evaluate import evaluate_node, has_kernel
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.extended.attention_views import Builder, dtype_of

_TABLE_ELEMENTS = 1 << 18
"""Larger tables are left as they are in the model's file: a changed copy takes memory and time at load."""
_ROWWISE = frozenset(
    {
        "Abs", "Add", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
        "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid",
        "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh",
    }
)  # fmt: skip
"""Operators that treat every element by itself."""


class OneHotProduct(NodePass):
    """MatMul of one-hot rows and a constant table becomes Gather.

    One-hot rows are Cast(Equal(indices, 0..n-1)): an index outside the table makes a row of zeros. A row of zeros
    behind the table's last stands for it, to which Clip takes such indices; -1 is that row too, counted from the end.
    """

    name = "one-hot-product"
    roots = frozenset({"MatMul"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        cast = producer(node.inputs[0], "Cast")
        equal = producer(cast.inputs[0], "Equal") if cast is not None else None
        table = node.inputs[1]
        if cast is None or equal is None or table is None or table.data is None:
            return None
        if len(table.data.shape) != 2 or any(v.quantization is not None for v in (cast.output, equal.output, table)):
            return None
        rows = table.data.shape[0]
        found = _counted(equal, rows)
        if found is None:
            return None
        indices = found
        shape = indices.shape
        if shape is None or not shape or shape[-1] != 1:
            context.refuse(self.name, node, "the indices have not one element for each row")
            return None
        array = np.asarray(table.data.numpy())
        if not _is_float(dtype_of(table)) or not np.isfinite(array.astype(np.float32)).all():
            # Zero times infinity is no zero.
            context.refuse(self.name, node, "the table holds numbers that are not finite")
            return None
        builder = Builder()
        dtype = dtype_of(indices)
        assert dtype is not None
        if dtype not in (dtypes.INT32, dtypes.INT64):
            to = {"to": dtypes.INT32.onnx_code}
            indices = builder.add("Cast", [indices], indices, shape, to, dtype=dtypes.INT32)
        bounds = [builder.number(-1, indices), builder.number(rows, indices)]
        inside = builder.add("Clip", [indices, *bounds], indices, shape)
        flat = builder.add("Squeeze", [inside, builder.ints([-1])], indices, shape[:-1])
        extended = builder.constant(np.concatenate([array, np.zeros((1, array.shape[1]), array.dtype)]))
        result = builder.add("Gather", [extended, flat], table, (*shape[:-1], array.shape[1]), {"axis": 0})
        return Patch(node, builder.nodes, {node.output: result}, [node])


def _is_float(dtype: DType | None) -> bool:
    return dtype is not None and dtype.is_float


def _counted(equal: Node, rows: int) -> Value | None:
    """The operand of an Equal whose other one counts 0 to `rows` - 1 along the last axis; None where none does."""
    for indices, counter in (equal.inputs, equal.inputs[::-1]):
        if indices is None or counter is None or counter.data is None or indices.data is not None:
            continue
        shape, dtype = counter.data.shape, dtype_of(indices)
        if dtype is None or not dtype.is_integer or (dtype.bits > 16 and dtype not in (dtypes.INT32, dtypes.INT64)):
            continue
        # A counter of a higher rank would give the product axes that the indices have not.
        if not shape or shape[-1] != rows or counter.data.size != rows or len(shape) > len(indices.shape or ()):
            continue
        if (np.asarray(counter.data.numpy()).reshape(-1) == np.arange(rows)).all():
            return indices
    return None


class FoldIntoTable(NodePass):
    """f(Gather(table, indices)) becomes Gather(f(table), indices), f pointwise and all its other operands constant.

    Only for small tables that nothing else reads, and operands that are the same for every row.
    """

    name = "fold-into-table"
    roots = _ROWWISE

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        position = next((i for i, v in enumerate(node.inputs) if producer(v, "Gather") is not None), None)
        if position is None or len(node.outputs) != 1 or not has_kernel(node):
            return None
        value = node.inputs[position]
        gather = producer(value, "Gather")
        assert value is not None
        assert gather is not None
        table, indices = gather.inputs
        if table is None or table.data is None or table.only_use is not gather or value.only_use is not node:
            return None
        if gather.graph is not node.graph or gather.int_attr("axis", 0) != 0 or not table.data.shape:
            return None
        if value.quantization is not None or not _is_float(dtype_of(value)) or node.output.shape != value.shape:
            return None
        if table.data.size > _TABLE_ELEMENTS:
            context.refuse(self.name, node, "the table is too large to be changed")
            return None
        row = table.data.shape[1:]
        operands: list[Array | None] = []
        before = np.asarray(table.data.numpy())
        for i, other in enumerate(node.inputs):
            if i == position:
                operands.append(before)
            elif other is None:
                operands.append(None)
            else:
                operands.append(_of_row(other, row))
                if operands[-1] is None:
                    return None
        try:
            (result,) = evaluate_node(node, operands, context.limits)
        except WhetError as error:
            context.refuse(self.name, node, f"it fails: {error.problem}")
            return None
        array = np.asarray(result)
        if array.shape != before.shape or array.dtype != before.dtype:
            return None
        builder = Builder()
        made = builder.add("Gather", [builder.constant(array), indices], value, value.shape, gather.attributes)
        return Patch(node, builder.nodes, {node.output: made}, [node, gather])


def _of_row(value: Value, row: tuple[int, ...]) -> Array | None:
    """A constant that is the same for every row, as an array that broadcasts to a row; None for another value."""
    if value.data is None:
        return None
    shape = value.data.shape
    while len(shape) > len(row) and shape[0] == 1:
        shape = shape[1:]
    if len(shape) > len(row) or any(n not in (1, r) for n, r in zip(reversed(shape), reversed(row), strict=False)):
        return None
    return np.asarray(value.data.numpy()).reshape(shape)
