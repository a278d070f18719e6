"""Where results go: concatenations that need not copy, and the graph's outputs."""

from __future__ import annotations

from whet.compiler.lower.copy import copy
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.views import View, dense_strides
from whet.graph import Graph, Value
from whet.graph.dims import Known

VIEWS = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity", "Expand", "Concat"}
)
"""Operators whose results may be views of their operands: nothing is written for them."""


def place_outputs(ctx: Lowering, graph: Graph) -> None:
    """Let the operands of a Concat be written where the result will lie, as far as they are written for it alone.

    Not where that depends on numbers which a run may find out only after the first of them is written.
    """
    placed: set[Value] = set()
    for node in graph:
        if node.op != "Concat":
            continue
        axis = node.int_attr("axis", 0)
        offset: Known = 0
        seen: set[Value] = set()
        for value in node.inputs:
            assert value is not None
            shape = shape_of(value)
            where = axis % len(shape)
            made = value.producer
            whole = shape_of(node.output)
            fits = shape[:where] == whole[:where] and shape[where + 1 :] == whole[where + 1 :]
            fits = fits and not any(ctx.is_open(d) for d in whole)
            if (
                fits and made is not None and made.op not in VIEWS and value not in placed and value not in seen
                and not value.graph_outputs and not node.output.graph_outputs
            ):  # fmt: skip
                ctx.place(value, node.output, where, offset)
                placed.add(value)
            seen.add(value)
            offset = offset + shape[where]


def finish_outputs(ctx: Lowering) -> None:
    """Copy to the graph's outputs what was not written there."""
    ctx.node = None
    for buffer, value in zip(ctx.outputs, ctx.graph.outputs, strict=True):
        view = ctx.view(value)
        if view.buffer is buffer and view.is_dense() and view.offset == 0:
            continue
        shape = shape_of(value)
        ctx.node = value.producer
        copy(ctx, view, View(buffer, shape, dense_strides(shape)))
