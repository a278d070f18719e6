"""Moves a run of nodes into a local function: the same model in another form."""

from __future__ import annotations

import random

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, helper

DOMAIN = "local"


def outline(model: ModelProto, choices: random.Random) -> None:
    """Replaces up to two runs of nodes without bodies by calls of local functions (which IR 8 brought)."""
    if model.ir_version < 8:
        return
    for number in range(choices.choice([1, 1, 2])):
        _outline_one(model, choices, f"block{number}")
    if model.functions:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _outline_one(model: ModelProto, choices: random.Random, name: str) -> None:
    nodes = list(model.graph.node)
    start = choices.randrange(len(nodes))
    run = []
    for node in nodes[start : start + choices.choice([2, 4, 8])]:
        if node.domain == DOMAIN or any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute):
            break
        run.append(node)
    made = [output for node in run for output in node.output if output]
    read = dict.fromkeys(given for node in run for given in node.input if given)
    outer = {output.name for output in model.graph.output}
    for node in nodes:
        if all(node is not member for member in run):
            outer |= _reads(node)
    outputs = [value for value in made if value in outer]
    inputs = [value for value in read if value not in made]
    if not outputs:
        return
    body = [NodeProto.FromString(node.SerializeToString()) for node in run]
    imports = [helper.make_opsetid(entry.domain, entry.version) for entry in model.opset_import]
    function: FunctionProto = helper.make_function(DOMAIN, name, inputs, outputs, body, imports)
    model.functions.append(function)
    call = helper.make_node(name, inputs, outputs, domain=DOMAIN)
    kept = [*nodes[:start], call, *nodes[start + len(run) :]]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _reads(node: NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= _graph_reads(attribute.g)
    return names


def _graph_reads(graph: GraphProto) -> set[str]:
    names = {output.name for output in graph.output}
    for node in graph.node:
        names |= _reads(node)
    return names
