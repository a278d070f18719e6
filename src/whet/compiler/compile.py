"""From a specialized graph to a blueprint: lower, fuse, choose tactics, pack weights, assemble."""

from __future__ import annotations

from whet.compiler.assemble import Blueprint, Describe, assemble
from whet.compiler.fuse import Group, form_groups, order_of_work
from whet.compiler.lower.chain import Chained, join_chains, lower_chain
from whet.compiler.lower.factors import leave_to_reader
from whet.compiler.lower.outputs import finish_outputs, place_outputs
from whet.compiler.lower.pointwise import lower_group
from whet.compiler.lower.table import ANCHORS, LOWER, is_pointwise
from whet.compiler.lowering import LowerEnv, Lowering
from whet.compiler.prune import drop_unread, drop_unused_weights
from whet.compiler.specialize import Specialized
from whet.graph import Graph, Node
from whet.kernels.base import build


def compile_graph(specialized: Specialized, env: LowerEnv, describe: Describe = build) -> Blueprint:
    """The blueprint of a specialized graph.

    Raises NotImplemented naming the node for one that cannot be lowered (its claim should have said so).
    """
    return assemble(lower_graph(specialized, env), specialized.symbols, env.target, describe)


def lower_graph(specialized: Specialized, env: LowerEnv) -> Lowering:
    """The rows of a specialized graph."""
    ctx = Lowering(specialized.graph, env, lower_nodes)
    lower_nodes(ctx, specialized.graph)
    finish_outputs(ctx)
    drop_unread(ctx)
    drop_unused_weights(ctx)
    return ctx


def lower_nodes(ctx: Lowering, graph: Graph) -> None:
    """Emit the rows of a graph's nodes: of the main graph, or of one whose inputs have been given memory."""
    groups = form_groups(graph, is_pointwise, ANCHORS)
    place_outputs(ctx, graph)
    for item in join_chains(ctx, order_of_work(graph, groups)):
        if not isinstance(item, Chained):
            _lower_item(ctx, item)
        elif not lower_chain(ctx, item):
            for part in item.items:
                _lower_item(ctx, part)


def _lower_item(ctx: Lowering, item: Node | Group) -> None:
    if isinstance(item, Group):
        anchor = item.anchor
        if anchor is None:
            if not leave_to_reader(ctx, item):
                lower_group(ctx, item)
            return
        ctx.node = anchor
        LOWER[anchor.op].lower(ctx, anchor, item)
    else:
        ctx.node = item
        rule = LOWER.get(item.op)
        if rule is None:
            raise ctx.refuse(f"no lowering for {item.op}")
        rule.lower(ctx, item, None)
