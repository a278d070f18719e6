"""Mutations of a model's structure: attributes, edges, types, shapes, names, nodes, opsets, cycles."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from .seeds import seed_model

EXTREMES = (0, 1, -1, 2, 3, -2, 7, 64, 65, 1000, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
FLOAT_EXTREMES = (0.0, -1.0, 1e-30, 1e30, math.nan, math.inf, -math.inf, 3.0e38)
DTYPES = (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 21, 22, 23, 77)


def mutate(seed: int) -> bytes:
    """The serialized mutant of `seed`: one to three structural mutations of a small valid model."""
    choices = random.Random(seed)
    model = seed_model(choices.randrange(400))
    for _ in range(choices.choice([1, 1, 1, 2, 3])):
        graph = _some_graph(model.graph, choices)
        choices.choice(_MUTATIONS)(model, graph, choices)
    return bytes(model.SerializeToString())


def _some_graph(graph: GraphProto, choices: random.Random) -> GraphProto:
    """The main graph, or now and then one of its bodies."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH]
    return _some_graph(choices.choice(bodies), choices) if bodies and choices.random() < 0.3 else graph


def _node(graph: GraphProto, choices: random.Random) -> NodeProto:
    return (
        choices.choice(list(graph.node)) if graph.node else graph.node.add(op_type="Relu", input=["x0"], output=["y"])
    )


def _values(graph: GraphProto) -> list[str]:
    names = [given.name for given in graph.input] + [tensor.name for tensor in graph.initializer]
    names += [name for node in graph.node for name in node.output]
    return names or ["nothing"]


# Attributes


def _change_attribute(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    nodes = [node for node in graph.node if any(a.type != AttributeProto.GRAPH for a in node.attribute)]
    if not nodes:
        return
    attribute = choices.choice([a for a in choices.choice(nodes).attribute if a.type != AttributeProto.GRAPH])
    if attribute.type == AttributeProto.INT:
        attribute.i = choices.choice(EXTREMES)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = choices.choice(FLOAT_EXTREMES)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = choices.choice([b"", b"nonsense", b"\xff\xfe", b"SAME_UPPER", b"constant", b"a" * 5000])
    elif attribute.type == AttributeProto.INTS:
        numbers = list(attribute.ints)
        del attribute.ints[:]
        attribute.ints.extend(_changed_list(numbers, EXTREMES, choices))
    elif attribute.type == AttributeProto.FLOATS:
        floats = list(attribute.floats)
        del attribute.floats[:]
        attribute.floats.extend(_changed_list(floats, FLOAT_EXTREMES, choices))
    elif attribute.type == AttributeProto.TENSOR:
        _break_tensor(attribute.t, choices)


def _changed_list(numbers: list, extremes: tuple, choices: random.Random) -> list:
    way = choices.randrange(5)
    if way == 0 or not numbers:
        return [*numbers, choices.choice(extremes)]
    if way == 1:
        return numbers[:-1]
    if way == 2:
        return numbers[::-1]
    if way == 3:
        return numbers * 2
    numbers[choices.randrange(len(numbers))] = choices.choice(extremes)
    return numbers


def _remove_attribute(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    node = _node(graph, choices)
    if node.attribute:
        del node.attribute[choices.randrange(len(node.attribute))]


def _retype_attribute(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    node = _node(graph, choices)
    if node.attribute:
        attribute = choices.choice(list(node.attribute))
        attribute.type = choices.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 11])


def _add_attribute(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    name = choices.choice(
        ["axis", "axes", "keepdims", "perm", "pads", "strides", "group", "to", "body", "nonsense", ""]
    )
    value = choices.choice([choices.choice(EXTREMES), [choices.choice(EXTREMES)], 0.5, "text"])
    _node(graph, choices).attribute.append(helper.make_attribute(name, value))


# Tensors


def _break_tensor(tensor: TensorProto, choices: random.Random) -> None:
    way = choices.randrange(7)
    if way == 0:
        tensor.data_type = choices.choice(DTYPES)
    elif way == 1:
        tensor.dims.append(choices.choice(EXTREMES))
    elif way == 2 and tensor.dims:
        tensor.dims[choices.randrange(len(tensor.dims))] = choices.choice(EXTREMES)
    elif way == 3:
        tensor.raw_data = tensor.raw_data[: choices.randrange(len(tensor.raw_data) + 1)]
    elif way == 4:
        tensor.raw_data += b"\x01\x02\x03"[: choices.randint(1, 3)]
    elif way == 5:
        tensor.float_data.append(1.0)
    else:
        tensor.raw_data = choices.choice([b"\xff", b"\x00", b"\x7f"]) * len(tensor.raw_data)


def _change_initializer(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    if graph.initializer:
        _break_tensor(choices.choice(list(graph.initializer)), choices)


def _change_integers(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    """Puts extreme numbers into an int64 constant: a shape, axes, indices or bounds."""
    tensors = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT64]
    tensors += [
        a.t for n in graph.node for a in n.attribute if a.name == "value" and a.t.data_type == TensorProto.INT64
    ]
    tensors = [tensor for tensor in tensors if tensor.raw_data and len(tensor.raw_data) % 8 == 0]
    if tensors:
        tensor = choices.choice(tensors)
        numbers = np.frombuffer(tensor.raw_data, np.int64).copy()
        numbers[choices.randrange(len(numbers))] = choices.choice(EXTREMES)
        tensor.raw_data = numbers.tobytes()


# Edges and nodes


def _rewire(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    """Reads another value: of any shape and type, and perhaps a later one, which makes a cycle."""
    node = _node(graph, choices)
    if node.input:
        node.input[choices.randrange(len(node.input))] = choices.choice([*_values(graph), "", "undefined"])


def _swap_inputs(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    node = _node(graph, choices)
    if len(node.input) > 1:
        i, j = choices.sample(range(len(node.input)), 2)
        node.input[i], node.input[j] = node.input[j], node.input[i]


def _change_arity(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    node = _node(graph, choices)
    way = choices.randrange(4)
    if way == 0 and node.input:
        del node.input[choices.randrange(len(node.input))]
    elif way == 1:
        node.input.append(choices.choice(_values(graph)))
    elif way == 2 and node.output:
        del node.output[choices.randrange(len(node.output))]
    else:
        node.output.append(choices.choice(["extra", *node.output]))


def _delete_node(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    if graph.node:
        del graph.node[choices.randrange(len(graph.node))]


def _duplicate_node(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    graph.node.add().CopyFrom(_node(graph, choices))


def _shuffle_nodes(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    choices.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


_OPERATORS = (
    "Add", "Conv", "MatMul", "Reshape", "Gather", "Concat", "Split", "Loop", "If", "Scan", "Softmax", "LSTM", "Resize",
    "TopK", "NonZero", "Expand", "Tile", "ConstantOfShape", "Range", "OneHot", "Einsum", "SequenceAt", "StringConcat",
    "QuantizeLinear", "NoSuchOperator", "", "Attention", "DepthToSpace", "Pad", "Slice", "Unique", "ScatterND",
)  # fmt: skip


def _change_operator(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    node = _node(graph, choices)
    node.op_type = choices.choice(_OPERATORS)
    if choices.random() < 0.1:
        node.domain = choices.choice(["com.microsoft", "ai.onnx.ml", "no.such.domain"])


def _rename(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    """Gives a value the name of another, an empty one, or an odd one."""
    new = choices.choice([*_values(graph), "", "a\0b", "<b>", "x" * 70000, "名前"])
    way = choices.randrange(3)
    if way == 0 and graph.input:
        choices.choice(list(graph.input)).name = new
    elif way == 1 and graph.output:
        choices.choice(list(graph.output)).name = new
    else:
        node = _node(graph, choices)
        if node.output:
            node.output[choices.randrange(len(node.output))] = new


# Declarations


def _change_declaration(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    infos = [*graph.input, *graph.output]
    if not infos:
        return
    info = choices.choice(infos)
    tensor = info.type.tensor_type
    way = choices.randrange(6)
    if way == 0:
        tensor.elem_type = choices.choice(DTYPES)
    elif way == 1:
        tensor.shape.dim.add().dim_value = choices.choice(EXTREMES)
    elif way == 2 and tensor.shape.dim:
        tensor.shape.dim[choices.randrange(len(tensor.shape.dim))].dim_value = choices.choice(EXTREMES)
    elif way == 3 and tensor.shape.dim:
        del tensor.shape.dim[-1]
    elif way == 4:
        info.ClearField("type")
    else:
        info.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def _remove_declaration(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    lists = [items for items in (graph.input, graph.output, graph.initializer) if items]
    if lists:
        items = choices.choice(lists)
        del items[choices.randrange(len(items))]


def _change_versions(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    way = choices.randrange(4)
    if way == 0:
        model.ir_version = choices.choice([0, 1, 2, 3, 9, 12, 99, -1, 2**62])
    elif way == 1 and model.opset_import:
        model.opset_import[0].version = choices.choice([0, 1, 5, 7, 9, 13, 18, 24, 99, -1, 2**62])
    elif way == 2:
        del model.opset_import[:]
    else:
        model.opset_import.add(domain=choices.choice(["", "ai.onnx", "other"]), version=choices.choice([1, 13, 99]))


def _nest(model: ModelProto, graph: GraphProto, choices: random.Random) -> None:
    """Wraps a node's body, or a fresh one, in many Ifs."""
    inner = GraphProto()
    inner.name = "inner"
    inner.node.add(op_type="Identity", input=[choices.choice(_values(graph))], output=["deep"])
    inner.output.add(name="deep")
    for level in range(choices.choice([3, 12, 24])):
        outer = GraphProto()
        outer.name = f"level{level}"
        node = outer.node.add(op_type="If", input=[choices.choice(_values(graph))], output=[f"deep{level}"])
        node.attribute.append(helper.make_attribute("then_branch", inner))
        node.attribute.append(helper.make_attribute("else_branch", GraphProto()))
        outer.output.add(name=f"deep{level}")
        inner = outer
    graph.node.extend(inner.node)


_MUTATIONS: tuple[Callable[[ModelProto, GraphProto, random.Random], None], ...] = (
    _change_attribute, _change_attribute, _change_attribute, _remove_attribute, _retype_attribute, _add_attribute,
    _change_initializer, _change_initializer, _change_integers, _change_integers, _rewire, _rewire, _swap_inputs,
    _change_arity, _delete_node, _duplicate_node, _shuffle_nodes, _change_operator, _change_operator, _rename,
    _change_declaration, _change_declaration, _remove_declaration, _change_versions, _nest,
)  # fmt: skip
