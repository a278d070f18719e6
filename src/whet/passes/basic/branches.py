"""Ifs whose condition is known."""

from __future__ import annotations

from whet.graph import Graph, Node, Patch
from whet.passes.base import NodePass, PassContext
from whet.passes.basic.common import constant_true


class BranchInlining(NodePass):
    """Puts the nodes of the branch that will be taken in the place of an If with a known condition."""

    name = "branch-inlining"
    roots = frozenset({"If"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        truth = constant_true(node.input(0))
        if truth is None:
            return None
        branch = node.attributes["then_branch" if truth else "else_branch"]
        assert isinstance(branch, Graph)
        results = dict(zip(node.outputs, branch.outputs, strict=True))
        # From here on the branch is taken apart: its values are handed to new nodes in the graph around it, under their
        # own names, which are unique in the model. The emptied branch goes with the If.
        branch.set_outputs(())
        moved = [_take_over(inner) for inner in branch]
        for old, new in results.items():
            if new.type is None:
                new.type = old.type
        return Patch(node, moved, results, [node], reason=f"the condition is {truth}")


def _take_over(node: Node) -> Node:
    """A node that makes the values that `node` made, subgraphs included, and leaves `node` without a purpose."""
    new = Node(node.op_type, node.inputs, node.outputs, node.attributes, domain=node.domain, name=node.name)
    new.metadata = dict(node.metadata)
    # The subgraphs belong to the new node now: throwing the old one away must not stop their reads.
    node.attributes = {}
    return new
