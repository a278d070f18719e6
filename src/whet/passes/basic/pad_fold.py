"""Merging of a zero Pad into the window that reads it."""

from __future__ import annotations

from whet.graph import Node, Patch
from whet.ops.common import axes_in, shape_of, static_ints
from whet.passes.base import NodePass, PassContext, only_reader, producer
from whet.passes.basic.common import substitute, uniform


class PadFolding(NodePass):
    """Adds the zeros of a Pad along spatial axes to the pads of the Conv or AveragePool that alone reads it.

    An average that leaves padding out of its count must have no pads of its own: all of the merged ones count then.
    """

    name = "pad-folding"
    roots = frozenset({"Conv", "AveragePool"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        pad = producer(node.input(0), "Pad")
        if pad is None or only_reader(pad.output, node.op) is not node:
            return None
        if node.str_attr("auto_pad", "NOTSET") != "NOTSET":
            return None
        before = _zeros_before_and_after(pad)
        if before is None:
            context.refuse(self.name, node, "the Pad is no constant number of zeros")
            return None
        rank = len(before) // 2
        spatial = rank - 2
        own = node.ints_attr("pads", (0,) * (2 * spatial))
        if any(before[i] or before[i + rank] for i in (0, 1)):
            context.refuse(self.name, node, "it pads the batch or the channels")
            return None
        added = (*before[2:rank], *before[rank + 2 :])
        together = tuple(a + b for a, b in zip(own, added, strict=True))
        attributes = {**node.attributes, "pads": together}
        if node.op == "AveragePool":
            kernel = node.ints_attr("kernel_shape")
            if node.int_attr("ceil_mode", 0) or any(p >= k for p, k in zip(together, (*kernel, *kernel), strict=True)):
                context.refuse(self.name, node, "a window might lie in padding alone")
                return None
            if not node.int_attr("count_include_pad", 0) and any(own):
                context.refuse(self.name, node, "only some of the padding would count")
                return None
            attributes["count_include_pad"] = 1
        patch = substitute(node, node.op, [pad.inputs[0], *node.inputs[1:]], attributes)
        return Patch(node, patch.nodes, patch.replace, [node, pad])


def _zeros_before_and_after(pad: Node) -> tuple[int, ...] | None:
    """Begins then ends for every axis, when the Pad adds a constant number of zeros; else None."""
    dims, given = shape_of(pad.input(0)), static_ints(pad.input(1))
    if dims is None or given is None or len(dims) < 3 or pad.str_attr("mode", "constant") != "constant":
        return None
    if any(p < 0 for p in given) or (pad.input(2) is not None and uniform(pad.input(2)) != 0):
        return None
    rank = len(dims)
    axes = tuple(range(rank))
    if pad.input(3) is not None:
        chosen = static_ints(pad.input(3))
        if chosen is None:
            return None
        axes = axes_in(chosen, rank)
    result = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        result[axis], result[axis + rank] = given[i], given[i + len(axes)]
    return tuple(result)
