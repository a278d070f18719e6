"""Reshape targets that need no arithmetic."""

from __future__ import annotations

import numpy as np

from whet.graph import Node, Patch, Shape
from whet.ops.common import elements, shape_of
from whet.passes.base import NodePass, PassContext
from whet.passes.basic.common import constant, substitute


class ConstantTargets(NodePass):
    """Replaces the computed target of a Reshape by a constant: numbers, copied extents (0), at most one open one (-1).

    Exact for all extents: a copied extent is provably the input's at that place. -1 stands for a free extent only where
    all others are numbers other than 0, because it cannot be worked out beside an extent that is 0 in some run.
    """

    name = "constant-targets"
    roots = frozenset({"Reshape"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        shape_input = node.input(1)
        if shape_input is None or shape_input.data is not None or node.int_attr("allowzero", 0):
            return None
        wanted = elements(shape_input)
        if wanted is None:
            return None
        target = constant_target(wanted, shape_of(node.input(0)))
        if target is None:
            return None
        return substitute(node, "Reshape", [node.input(0), constant(np.array(target, np.int64))], node.attributes)


def constant_target(wanted: Shape, source: Shape | None) -> tuple[int, ...] | None:
    """`wanted` as constants for a Reshape of `source`, or None where that does not hold for all extents."""
    target: list[int] = []
    opened = False
    for i, extent in enumerate(wanted):
        if isinstance(extent, int):
            # A -1 of the model's own: it is worked out from the same extents as before.
            opened = opened or extent == -1
            target.append(extent)
        elif extent is not None and source is not None and i < len(source) and source[i] == extent:
            target.append(0)
        elif extent is not None and -1 not in target:
            target.append(-1)
        else:
            return None
    if target.count(-1) > 1:
        return None
    if -1 in target and not opened and any(t == 0 for t in target):
        return None
    return tuple(target)
