"""From GraphProto to Graph: names resolved to values, constants lifted out of nodes, local functions expanded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from whet.config import Limits
from whet.errors import InvalidArgument, InvalidGraph, ResourceExhausted, WhetError, did_you_mean
from whet.formats.onnx.attributes import attribute_kind, decode_attribute
from whet.formats.onnx.checks import check_node
from whet.formats.onnx.constants import constant_node
from whet.formats.onnx.schemas import KNOWN_DOMAINS
from whet.formats.onnx.strings import loose_text, require_text
from whet.formats.onnx.tensors import TensorReader
from whet.formats.onnx.types import decode_type
from whet.graph import Attribute, Graph, Node, TensorData, TensorType, Type, Value
from whet.graph.core import NameScope
from whet.graph.order import sort

FunctionKey = tuple[str, str, str]
"""Domain, name and overload of a local function."""


_COUNTED_OUTPUTS = frozenset({"If", "Loop", "Scan", "Split"})
"""Operators to which the number of outputs matters. Outputs left out get names: some readers crash without."""


def canonical_domain(domain: str) -> str:
    """ONNX's own domain has two spellings; the graph uses the empty one."""
    return "" if domain == "ai.onnx" else domain


@dataclass(slots=True)
class _Body:
    """What nodes of the main graph, or of one expansion of a function, have in common."""

    imports: Mapping[str, int]
    prefix: str
    """In front of the names of a function's own values and nodes."""
    attributes: dict[str, tuple[onnx.AttributeProto, _Scope]]
    """What the attribute parameters of a function stand for, and the scope in which to read that."""
    expanding: tuple[FunctionKey, ...]


@dataclass(slots=True)
class _Scope:
    """The names of one graph. `values` holds None for a function's input that the call leaves out."""

    body: _Body
    graph: Graph
    nodes: Iterable[onnx.NodeProto]
    parent: _Scope | None
    depth: int
    values: dict[str, Value | None] = field(default_factory=dict)
    results: dict[str, Value] = field(default_factory=dict)
    """Values made beforehand for a function's outputs, by their name inside the function."""
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    forward: dict[str, Value] = field(default_factory=dict)
    """Read already, to be made by a later node."""
    made_here: frozenset[str] | None = None

    def defines(self, name: str) -> bool:
        """Whether some node of this graph makes `name`."""
        if self.made_here is None:
            self.made_here = frozenset(o for n in self.nodes for o in n.output)
        return name in self.made_here


class GraphBuilder:
    """Builds one model's graph. Nodes keep the opset's form; `versions` tells which where it is not the model's."""

    def __init__(
        self,
        reader: TensorReader,
        imports: Mapping[str, int],
        functions: Iterable[onnx.FunctionProto],
        limits: Limits,
        as_inputs: frozenset[str],
        replacements: Mapping[str, TensorData],
    ) -> None:
        self.names = NameScope()
        self.versions: dict[Node, Mapping[str, int]] = {}
        self.denotations: dict[str, tuple[str, ...]] = {}
        """For each input that has any: the denotation of every dimension."""
        self.imports = imports
        self._reader = reader
        self._limits = limits
        self._as_inputs = as_inputs
        self._replacements = replacements
        self._replaced: set[str] = set()
        self._count = 0
        self._node_names: set[str] = set()
        self._main_outputs: frozenset[str] = frozenset()
        self._functions: dict[FunctionKey, onnx.FunctionProto] = {}
        for function in functions:
            require_text(
                function.domain,
                function.name,
                function.overload,
                *function.input,
                *function.output,
                *(o.domain for o in function.opset_import),
                where="a local function",
            )
            key = (canonical_domain(function.domain), function.name, function.overload)
            if key in self._functions:
                raise InvalidGraph("two local functions have one name", found=_function_name(key))
            self._functions[key] = function

    def main(self, proto: onnx.GraphProto) -> Graph:
        """The main graph, sorted."""
        if not proto.output:
            raise InvalidGraph("the graph has no outputs", expected="at least one")
        require_text(*(o.name for o in proto.output), where="the graph's outputs")
        self._main_outputs = frozenset(o.name for o in proto.output)
        for name in self._main_outputs:
            self.names.reserve(name)
        body = _Body(self.imports, "", {}, ())
        graph = self._graph(proto, _Scope(body, Graph(loose_text(proto.name)), proto.node, None, 0))
        for name in self._replacements:
            if name not in self._replaced:
                known = [t.name for t in proto.initializer]
                raise InvalidArgument("the model has no such initializer", value=name, hint=did_you_mean(name, known))
        return graph

    def _graph(self, proto: onnx.GraphProto, scope: _Scope) -> Graph:
        graph = scope.graph
        graph.doc_string = loose_text(proto.doc_string)
        where = f"graph {loose_text(proto.name)}"
        for info in (*proto.input, *proto.output):
            require_text(info.name, where=where)
        if scope.depth > self._limits.nesting:
            raise ResourceExhausted(
                "subgraphs are nested too deeply", expected=f"at most {self._limits.nesting} (Limits.nesting)"
            )
        scope.types = {info.name: info.type for info in proto.value_info}
        scope.types.update((info.name, info.type) for info in proto.output)
        self._initializers(proto, scope)
        is_main = scope.parent is None
        for info in proto.input:
            self._input(info, scope, is_main)
        self._nodes(scope)
        outputs = []
        for info in proto.output:
            found = self._find(scope, info.name)
            if found is None:
                raise InvalidGraph(
                    f"output of graph {proto.name!r} is never made",
                    value=info.name,
                    expected="the output of a node, an input or an initializer",
                    hint=self._near(scope, info.name),
                )
            outputs.append(found)
        graph.set_outputs(outputs)
        return graph

    def _initializers(self, proto: onnx.GraphProto, scope: _Scope) -> None:
        for tensor in proto.initializer:
            self._initializer(scope, tensor.name, tensor, None)
        for sparse in proto.sparse_initializer:
            self._initializer(scope, sparse.values.name, None, sparse)

    def _initializer(
        self, scope: _Scope, name: str, dense: onnx.TensorProto | None, sparse: onnx.SparseTensorProto | None
    ) -> None:
        if not name:
            raise InvalidGraph("an initializer without a name")
        require_text(name, where="an initializer")
        if name in scope.values:
            raise InvalidGraph("two initializers have one name", value=name)
        if dense is not None and name in self._replacements:
            data = self._replacement(dense, name)
        elif dense is not None:
            data = self._reader.dense(dense, name)
        else:
            assert sparse is not None
            data = self._reader.sparse(sparse, name)
        scope.values[name] = Value(self._value_name(scope, name), TensorType(data.dtype, data.shape), data)

    def _replacement(self, proto: onnx.TensorProto, name: str) -> TensorData:
        """The caller's contents for an initializer; the file's are not read, so they may be missing."""
        given = self._replacements[name]
        dtype, shape = self._reader.stated(proto, name)
        if (given.dtype, given.shape) != (dtype, shape):
            raise InvalidArgument(
                "an initializer has the wrong type",
                value=name,
                found=TensorType(given.dtype, given.shape),
                expected=TensorType(dtype, shape),
            )
        self._replaced.add(name)
        return given

    def _input(self, info: onnx.ValueInfoProto, scope: _Scope, is_main: bool) -> None:
        name = info.name
        if not name:
            raise InvalidGraph(f"an input of graph {scope.graph.name!r} has no name")
        stated = decode_type(info.type, name)
        if is_main and info.type.HasField("tensor_type"):
            denotations = tuple(loose_text(d.denotation) for d in info.type.tensor_type.shape.dim)
            if any(denotations):
                self.denotations[name] = denotations
        known = scope.values.get(name)
        if known is None:
            if name in scope.values:
                raise InvalidGraph("two graph inputs have one name", value=name)
            value = Value(self._value_name(scope, name), stated)
            scope.values[name] = value
            scope.graph.inputs.append(value)
            return
        if known.data is None or known in scope.graph.overridable:
            raise InvalidGraph("two graph inputs have one name", value=name)
        if not is_main:
            return
        if name in self._as_inputs:
            value = Value(known.name, stated or known.type)
            scope.values[name] = value
            scope.graph.inputs.append(value)
        else:
            scope.graph.overridable.append(known)

    def _nodes(self, scope: _Scope) -> None:
        for proto in scope.nodes:
            self._node(proto, scope)
        if scope.made_here is not None:
            sort(scope.graph)

    def _node(self, proto: onnx.NodeProto, scope: _Scope) -> None:
        op_type = proto.op_type
        inputs_outputs = (*proto.input, *proto.output)
        if bytes in map(type, (op_type, proto.domain, proto.name, proto.overload, *inputs_outputs)):
            require_text(op_type, proto.domain, proto.name, proto.overload, *inputs_outputs, where="a node")
        domain = canonical_domain(proto.domain)
        self._count += 1
        if self._count > self._limits.nodes:
            raise ResourceExhausted(
                "the model has too many nodes", expected=f"at most {self._limits.nodes} (Limits.nodes)"
            )
        label = f"{op_type}({proto.name or '-> ' + ', '.join(proto.output)})"
        if self._functions:
            key = (domain, op_type, proto.overload)
            function = self._functions.get(key)
            if function is not None:
                self._expand(function, key, proto, scope, label)
                return
        version = scope.body.imports.get(domain)
        if version is None:
            raise InvalidGraph(
                "a node of a domain that the model does not import",
                node=label,
                found=f"domain {domain!r}",
                expected=f"one of {sorted(d or 'ai.onnx' for d in scope.body.imports)}",
                hint=did_you_mean(domain, [*scope.body.imports, *KNOWN_DOMAINS, "com.microsoft"]) if domain else None,
            )
        inputs = [self._read(scope, name, label) if name else None for name in proto.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, Attribute] = {}
        for attribute in proto.attribute:
            self._attribute(attributes, attribute, scope, label)
        if op_type == "Constant" and not domain:
            self._constant(proto, attributes, scope, label)
            return
        outputs = list(proto.output)
        if not domain and op_type in _COUNTED_OUTPUTS:
            outputs = [name or self.names.fresh(f"{op_type}_unread") for name in outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        node = Node(
            op_type,
            inputs,
            [self._define(scope, name, label) if name else Value("") for name in outputs],
            attributes,
            domain=domain,
            name=self._node_name(scope, proto.name),
        )
        if proto.metadata_props:
            node.metadata = {loose_text(e.key): loose_text(e.value) for e in proto.metadata_props}
        if scope.body.imports is not self.imports:
            self.versions[node] = scope.body.imports
        check_node(node, version)
        scope.graph.append(node)

    def _constant(self, proto: onnx.NodeProto, attributes: dict[str, Attribute], scope: _Scope, label: str) -> None:
        if len(proto.output) != 1 or not proto.output[0] or proto.input:
            raise InvalidGraph("a Constant has no inputs and one output", node=label)
        data = constant_node(attributes, label)
        value = self._define(scope, proto.output[0], label)
        value.data = data
        value.type = TensorType(data.dtype, data.shape)

    def _attribute(
        self, attributes: dict[str, Attribute], proto: onnx.AttributeProto, scope: _Scope, label: str
    ) -> None:
        name = proto.name
        require_text(name, proto.ref_attr_name, where=label)
        if not name or name in attributes:
            raise InvalidGraph(
                "two attributes have one name" if name else "an attribute without a name", node=label, value=name
            )
        if proto.ref_attr_name:
            bound = scope.body.attributes.get(proto.ref_attr_name)
            if bound is None:
                if not scope.body.expanding:
                    raise InvalidGraph(
                        "an attribute refers to a function's attribute outside of a function", node=label, value=name
                    )
                return
            proto, scope = bound
        kind = attribute_kind(proto, label)
        if kind == onnx.AttributeProto.GRAPH:
            attributes[name] = self._subgraph(proto.g, scope)
        elif kind == onnx.AttributeProto.GRAPHS:
            attributes[name] = tuple(self._subgraph(g, scope) for g in proto.graphs)
        else:
            attributes[name] = decode_attribute(proto, kind, self._reader, label)

    def _subgraph(self, proto: onnx.GraphProto, scope: _Scope) -> Graph:
        return self._graph(proto, _Scope(scope.body, Graph(loose_text(proto.name)), proto.node, scope, scope.depth + 1))

    def _expand(
        self, function: onnx.FunctionProto, key: FunctionKey, call: onnx.NodeProto, scope: _Scope, label: str
    ) -> None:
        """Put the function's nodes in place of the call."""
        expanding = scope.body.expanding
        if key in expanding:
            chain = " -> ".join(_function_name(k) for k in (*expanding[expanding.index(key) :], key))
            raise InvalidGraph("a local function calls itself", node=label, found=chain, expected="no recursion")
        if len(expanding) >= self._limits.nesting:
            raise ResourceExhausted(
                "local functions call each other too deeply",
                node=label,
                expected=f"at most {self._limits.nesting} (Limits.nesting)",
            )
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise InvalidGraph(
                "a call does not fit its local function",
                node=label,
                found=f"{len(call.input)} inputs, {len(call.output)} outputs",
                expected=f"at most {len(function.input)} and {len(function.output)}",
            )
        bindings = {a.name: (a, scope) for a in function.attribute_proto}
        for attribute in call.attribute:
            if attribute.ref_attr_name:
                if attribute.ref_attr_name in scope.body.attributes:
                    bindings[attribute.name] = scope.body.attributes[attribute.ref_attr_name]
                else:
                    bindings.pop(attribute.name, None)
            else:
                bindings[attribute.name] = (attribute, scope)
        prefix = f"{scope.body.prefix}{call.name or call.op_type}/"
        imports = {canonical_domain(o.domain): int(o.version) for o in function.opset_import} or dict(
            scope.body.imports
        )
        body = _Body(imports, prefix, bindings, (*expanding, key))
        inner = _Scope(body, scope.graph, function.node, None, scope.depth)
        inner.types = {info.name: info.type for info in function.value_info}
        for index, name in enumerate(function.input):
            given = call.input[index] if index < len(call.input) else ""
            inner.values[name] = self._read(scope, given, label) if given else None
        wanted = {n: o for n, o in zip(function.output, call.output, strict=False) if o}
        passed = {n for n in wanted if n in inner.values}
        for name, given in wanted.items():
            if name not in passed:
                inner.results[name] = self._define(scope, given, label)
        self._nodes(inner)
        for name, given in wanted.items():
            if name in passed:
                source = inner.values[name]
                if source is None:
                    raise InvalidGraph(
                        "a function passes on an input that the call leaves out", node=label, value=given
                    )
                carrier = Node("Identity", [source], [self._define(scope, given, label)], name=f"{prefix}{name}")
                self._mark(carrier, body)
                scope.graph.append(carrier)
            elif inner.values.get(name) is None:
                raise InvalidGraph("a function never makes one of its outputs", node=label, value=name)

    def _mark(self, node: Node, body: _Body) -> None:
        if body.imports is not self.imports:
            self.versions[node] = body.imports

    def _read(self, scope: _Scope, name: str, label: str) -> Value | None:
        """The value that `name` means to a node of this graph."""
        at: _Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            at = at.parent
        at = scope
        while at is not None:
            if name in at.forward:
                return at.forward[name]
            if at.defines(name):
                value = at.results.get(name) or Value(self._value_name(at, name))
                at.forward[name] = value
                return value
            at = at.parent
        raise InvalidGraph(
            "a node reads a value that nothing makes",
            node=label,
            value=name,
            expected="the output of a node, an input or an initializer",
            hint=self._near(scope, name),
        )

    def _find(self, scope: _Scope, name: str) -> Value | None:
        at: _Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            at = at.parent
        return None

    def _define(self, scope: _Scope, name: str, label: str) -> Value:
        """The value that a node makes under `name`."""
        if name in scope.values:
            raise InvalidGraph(
                "a value is made twice", node=label, value=name, expected="every name written once in a graph"
            )
        value = scope.forward.pop(name, None) if scope.forward else None
        if value is None:
            value = scope.results.get(name)
        if value is None:
            value = Value(self._value_name(scope, name))
        if value.type is None and name in scope.types:
            value.type = self._stated(scope, name)
        scope.values[name] = value
        return value

    def _stated(self, scope: _Scope, name: str) -> Type | None:
        try:
            return decode_type(scope.types[name], name)
        except WhetError as error:
            error.value = name
            raise

    def _value_name(self, scope: _Scope, name: str) -> str:
        if len(name) > self._limits.name_bytes:
            raise ResourceExhausted(
                "a name is too long",
                value=name,
                found=f"{len(name)} characters",
                expected=f"at most {self._limits.name_bytes} (Limits.name_bytes)",
            )
        if scope.parent is None and not scope.body.prefix and name in self._main_outputs:
            return name
        return self.names.fresh(f"{scope.body.prefix}{name}")

    def _node_name(self, scope: _Scope, name: str) -> str:
        if not name:
            return ""
        if len(name) > self._limits.name_bytes:
            return self._value_name(scope, name)
        name = f"{scope.body.prefix}{name}"
        if name in self._node_names:
            name = self.names.fresh(name)
        else:
            self.names.reserve(name)
        self._node_names.add(name)
        return name

    def _near(self, scope: _Scope, name: str) -> str | None:
        known: list[str] = []
        at: _Scope | None = scope
        while at is not None and len(known) < 2000:
            known.extend(list(at.values)[: 2000 - len(known)])
            at = at.parent
        return did_you_mean(name, known)


def _function_name(key: FunctionKey) -> str:
    return ".".join(k for k in key if k)
