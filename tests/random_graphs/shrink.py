"""Reduces a failing model to a small one that fails in the same way, and keeps it as a fixture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .check import Feed, OracleError, ort_outputs, with_output

Predicate = Callable[[ModelProto, Sequence[Feed]], bool]

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "random"


@dataclass(frozen=True)
class Shrunk:
    """The smallest failing model found, with its feeds."""

    model: ModelProto
    feeds: tuple[Feed, ...]


def shrink(model: ModelProto, feeds: Sequence[Feed], fails: Predicate) -> Shrunk:
    """Cuts outputs, feeds, nodes and extents as long as `fails` stays true.

    `fails` must be true for the arguments; candidates that ONNX Runtime refuses count as not failing.
    """
    current = Shrunk(model, tuple(feeds))

    def attempt(candidate: Shrunk | None) -> bool:
        nonlocal current
        if candidate is None:
            return False
        cleaned = Shrunk(*_cleaned(candidate.model, candidate.feeds))
        try:
            onnx.checker.check_model(cleaned.model)
            if not fails(cleaned.model, cleaned.feeds):
                return False
        except (OracleError, onnx.checker.ValidationError):
            return False
        current = cleaned
        return True

    for feed in current.feeds:
        if len(current.feeds) > 1 and attempt(Shrunk(current.model, (feed,))):
            break
    for output in [output.name for output in current.model.graph.output]:
        if len(current.model.graph.output) > 1 and attempt(Shrunk(with_output(current.model, [output]), current.feeds)):
            break
    before = -1
    while before != _size(current.model):
        before = _size(current.model)
        _pass_over_nodes(lambda: current, attempt)
    return current


def _size(model: ModelProto) -> int:
    return len(model.graph.node) + len(model.graph.input) + len(model.graph.initializer) + len(model.graph.output)


def _pass_over_nodes(latest: Callable[[], Shrunk], attempt: Callable[[Shrunk | None], bool]) -> None:
    values = _all_values(latest())
    for output in [output.name for output in latest().model.graph.output]:
        left = [other.name for other in latest().model.graph.output if other.name != output]
        if left:
            attempt(Shrunk(with_output(latest().model, left), latest().feeds))
    for node in reversed(list(latest().model.graph.node)):
        if not any(other.output == node.output for other in latest().model.graph.node):
            continue
        if attempt(_with_output_as_last(latest(), node, values)):
            continue
        if attempt(_with_node_as_input(latest(), node, values)):
            continue
        if any(attempt(_with_node_bypassed(latest(), node, name, values)) for name in list(node.input) if name):
            continue
        attempt(_with_node_as_constant(latest(), node, values))
    for given in list(latest().model.graph.input):
        attempt(_with_input_as_constant(latest(), given.name))


def _with_output_as_last(shrunk: Shrunk, node: NodeProto, values: Sequence[Feed]) -> Shrunk | None:
    """The model cut behind `node`."""
    names = [name for name in node.output if name]
    if [output.name for output in shrunk.model.graph.output] == names or any(name not in values[0] for name in names):
        return None
    model = with_output(shrunk.model, names)
    del model.graph.output[:]
    for name in names:
        array = values[0][name]
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, [None] * array.ndim))
    return Shrunk(model, shrunk.feeds)


def _with_node_as_input(shrunk: Shrunk, node: NodeProto, values: Sequence[Feed]) -> Shrunk | None:
    """The model cut before `node`'s outputs: they become inputs that are fed what they were."""
    if any(name and name not in values[0] for name in node.output):
        return None
    model = _without(shrunk.model, node)
    feeds = [dict(feed) for feed in shrunk.feeds]
    for name in node.output:
        if not name:
            continue
        arrays = [values[place][name] for place in range(len(feeds))]
        dims = [array.shape for array in arrays]
        shape: list[int | str] = [
            dims[0][axis] if len({d[axis] for d in dims}) == 1 else f"{name}_{axis}" for axis in range(arrays[0].ndim)
        ]
        dtype = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
        for feed, array in zip(feeds, arrays, strict=True):
            feed[name] = array
    return Shrunk(model, tuple(feeds))


def _with_node_bypassed(shrunk: Shrunk, node: NodeProto, name: str, values: Sequence[Feed]) -> Shrunk | None:
    """`node`'s output replaced by one of its inputs with the same shape and type."""
    if len(node.output) != 1 or node.output[0] in {output.name for output in shrunk.model.graph.output}:
        return None
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in shrunk.model.graph.initializer}
    for place, feed in enumerate(shrunk.feeds):
        before = {**known, **feed, **values[place]}.get(name)
        after = values[place].get(node.output[0])
        if before is None or after is None or before.shape != after.shape or before.dtype != after.dtype:
            return None
    model = _without(shrunk.model, node)
    _rename(model.graph, node.output[0], name)
    return Shrunk(model, shrunk.feeds)


def _with_node_as_constant(shrunk: Shrunk, node: NodeProto, values: Sequence[Feed]) -> Shrunk | None:
    if len(shrunk.feeds) > 1 or node.op_type == "Constant" or any(n and n not in values[0] for n in node.output):
        return None
    model = _without(shrunk.model, node)
    for name in node.output:
        if name:
            model.graph.initializer.append(numpy_helper.from_array(values[0][name], name))
    return Shrunk(model, shrunk.feeds)


def _with_input_as_constant(shrunk: Shrunk, name: str) -> Shrunk | None:
    if len(shrunk.feeds) > 1 or name not in shrunk.feeds[0]:
        return None
    model = ModelProto()
    model.CopyFrom(shrunk.model)
    if any(tensor.name == name for tensor in model.graph.initializer):
        return None
    kept = [given for given in model.graph.input if given.name != name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(shrunk.feeds[0][name]), name))
    if model.ir_version < 4:
        return None
    return Shrunk(model, ({k: v for k, v in shrunk.feeds[0].items() if k != name},))


def _without(model: ModelProto, node: NodeProto) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    kept = [other for other in model.graph.node if other.output != node.output]
    del changed.graph.node[:]
    changed.graph.node.extend(kept)
    return changed


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rename(attribute.g, old, new)


def _reads(graph: GraphProto) -> set[str]:
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names |= _reads(attribute.g)
    return names


def _cleaned(model: ModelProto, feeds: Sequence[Feed]) -> tuple[ModelProto, tuple[Feed, ...]]:
    """Without nodes, initializers and inputs that nothing reads."""
    changed = ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    count = -1
    while count != len(graph.node):
        count = len(graph.node)
        reads = _reads(graph)
        kept = [node for node in graph.node if any(name in reads for name in node.output)]
        kept = [NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(kept)
    reads = _reads(graph)
    initializers = [tensor for tensor in graph.initializer if tensor.name in reads]
    inputs = [given for given in graph.input if given.name in reads]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    del graph.input[:]
    graph.input.extend(inputs)
    names = {given.name for given in graph.input}
    return changed, tuple({name: array for name, array in feed.items() if name in names} for feed in feeds)


def _all_values(shrunk: Shrunk) -> list[Feed]:
    """Every value of the main graph in ONNX Runtime, for each feed; empty dictionaries where it cannot say."""
    names = [name for node in shrunk.model.graph.node for name in node.output if name]
    try:
        outputs = ort_outputs(with_output(shrunk.model, names).SerializeToString(), shrunk.feeds)
    except OracleError:
        return [{} for _ in shrunk.feeds]
    kept = []
    for arrays in outputs:
        kept.append({name: array for name, array in zip(names, arrays, strict=True) if isinstance(array, np.ndarray)})
    return kept


# fixtures


def write_fixture(name: str, shrunk: Shrunk, folder: Path = FIXTURES) -> Path:
    """Writes `name`.onnx and its feeds, `name`.npz (arrays named 'feed number:input')."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    path.write_bytes(shrunk.model.SerializeToString())
    arrays = {f"{place}:{key}": array for place, feed in enumerate(shrunk.feeds) for key, array in feed.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, count=np.asarray(len(shrunk.feeds)), **arrays)
    path.with_suffix(".npz").write_bytes(buffer.getvalue())
    return path


def read_fixture(path: Path) -> Shrunk:
    with np.load(path.with_suffix(".npz")) as arrays:
        feeds: list[Feed] = [{} for _ in range(int(arrays["count"]))]
        for key in arrays.files:
            if key != "count":
                place, _, name = key.partition(":")
                feeds[int(place)][name] = arrays[key]
    return Shrunk(onnx.load(path), tuple(feeds))
