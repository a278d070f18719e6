"""Which opset a graph in canonical form can be written at, and how its nodes read there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from whet.errors import InvalidGraph
from whet.formats.onnx.schemas import (
    KNOWN_DOMAINS,
    ML_DOMAIN,
    NEWEST_OPSET,
    ONNX_DOMAIN,
    Signature,
    newest,
    signature,
)
from whet.graph import Attribute, Node, TensorType, Value

READER_OPSET: dict[str, int] = {"": 26, "ai.onnx.ml": 5}
"""The newest opset of each domain that readers of saved models are taken to know (ONNX Runtime 1.31)."""
READER_IR = 13
"""The newest IR version that readers of saved models are taken to know (ONNX Runtime 1.31)."""
LEAST_OPSET = 17
"""No graph is written at an older opset than this, unless it is asked for."""

# The first opset at which an operator has the canonical form's meaning, where older ones read the same node otherwise
# (another default, coordinate system, broadcast or mode) and neither names nor defaults in the schemas show it.
_SAME_MEANING_SINCE: dict[str, int] = {
    "BatchNormalization": 15,
    "Dropout": 12,
    "GridSample": 20,
    "GroupNormalization": 21,
    "Hardmax": 13,
    "LogSoftmax": 13,
    "PRelu": 7,
    "Resize": 11,
    "RoiAlign": 16,
    "Scan": 9,
    "Softmax": 13,
}

# The opset from which on an attribute may have a value that its type alone does not rule out before.
_VALUE_SINCE: dict[tuple[str, str], dict[str, int]] = {
    ("Pad", "mode"): {"wrap": 19},
    ("Resize", "coordinate_transformation_mode"): {"half_pixel_symmetric": 19},
    ("ScatterElements", "reduction"): {"max": 18, "min": 18},
    ("ScatterND", "reduction"): {"max": 18, "min": 18},
}
_FLOAT_MOD_SINCE = 28
"""Mod of floating-point numbers with the divisor's sign."""

# The IR version from which on a model may hold each element type.
_TYPE_IR: dict[str, int] = {
    "float8e4m3fn": 9, "float8e4m3fnuz": 9, "float8e5m2": 9, "float8e5m2fnuz": 9, "uint4": 10, "int4": 10,
    "float4e2m1": 11, "float8e8m0": 12, "uint2": 13, "int2": 13,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a node cannot be written at an opset."""

    reason: str


def attributes_at(node: Node, version: int) -> dict[str, Attribute] | Misfit:
    """The node's attributes as the opset `version` of its domain writes them, or why it has no such node.

    Nodes of domains that onnx does not define are written as they are.
    """
    if node.domain not in KNOWN_DOMAINS:
        return node.attributes
    now = newest(node.domain, node.op_type)
    then = signature(node.domain, node.op_type, version)
    if now is None:
        return node.attributes
    if then is None:
        return Misfit("it does not exist there")
    if now is then or now.since == then.since:
        return node.attributes
    if not node.domain and version < _SAME_MEANING_SINCE.get(node.op_type, 0):
        return Misfit(f"it has its present meaning since opset {_SAME_MEANING_SINCE[node.op_type]}")
    misfit = _arity(node, then) or _types(node, then) or _values(node, version)
    return misfit or _attributes(node, now, then)


def _arity(node: Node, then: Signature) -> Misfit | None:
    used = len(node.inputs)
    if then.most_inputs is not None and used > then.most_inputs:
        return Misfit(f"it takes at most {then.most_inputs} inputs there, and has {used}")
    if used < then.least_inputs:
        return Misfit(f"it needs {then.least_inputs} inputs there, and has {used}")
    for value, required, name in zip(node.inputs, then.required_inputs, then.input_names, strict=False):
        if value is None and required:
            return Misfit(f"it needs its input {name} there")
    if then.most_outputs is not None and len(node.outputs) > then.most_outputs:
        return Misfit(f"it has at most {then.most_outputs} outputs there")
    return None


def _types(node: Node, then: Signature) -> Misfit | None:
    for values, formal in ((node.inputs, then.input_types), (node.outputs, then.output_types)):
        if not formal:
            continue
        for index, value in enumerate(values):
            variable = formal[min(index, len(formal) - 1)]
            allowed = then.constraints.get(variable)
            text = _type_text(value)
            if text is not None and allowed is not None and text not in allowed:
                return Misfit(f"it does not take {text} there")
    return None


def _values(node: Node, version: int) -> Misfit | None:
    for name, value in node.attributes.items():
        since = _VALUE_SINCE.get((node.op_type, name), {})
        if isinstance(value, str) and version < since.get(value, 0):
            return Misfit(f"its {name} can be {value!r} since opset {since[value]}")
    if node.op_type == "Mod" and not node.int_attr("fmod", 0) and version < _FLOAT_MOD_SINCE:
        kind = node.output.type
        if isinstance(kind, TensorType) and kind.dtype is not None and kind.dtype.is_float:
            return Misfit(f"it takes floats with fmod=0 since opset {_FLOAT_MOD_SINCE}")
    return None


def _type_text(value: Value | None) -> str | None:
    if value is None or not isinstance(value.type, TensorType) or value.type.dtype is None or value.type.sparse:
        return None
    return f"tensor({value.type.dtype.ort_name})"


def _attributes(node: Node, now: Signature, then: Signature) -> dict[str, Attribute] | Misfit:
    written = dict(node.attributes)
    for name, value in node.attributes.items():
        if name in then.attributes:
            if then.attributes[name] != now.attributes.get(name):
                return Misfit(f"its attribute {name} has another type there")
        elif name in now.defaults and now.defaults[name] == value:
            del written[name]
        else:
            return Misfit(f"its attribute {name} does not exist there")
    for name in then.attributes:
        if name in node.attributes:
            continue
        default = now.defaults.get(name)
        if name not in now.attributes:
            if name in then.required:
                return Misfit(f"it needs its attribute {name} there")
        elif default is not None and then.defaults.get(name) != default:
            written[name] = default  # type: ignore[assignment]
        elif default is None and name in then.required:
            return Misfit(f"it needs its attribute {name} there")
    return written


def choose_opsets(nodes: list[Node], imports: dict[str, int], opset: int | None) -> dict[str, int]:
    """The version of each domain to write. `opset` fixes ai.onnx's; else it is the least that fits, from the model's
    own on (at least LEAST_OPSET). Raises InvalidGraph, naming the node, when none that readers know fits."""
    by_domain: dict[str, list[Node]] = {ONNX_DOMAIN: []}
    for node in nodes:
        by_domain.setdefault(node.domain, []).append(node)
    chosen = {}
    for domain, members in by_domain.items():
        own = imports.get(domain, 0)
        if domain == ONNX_DOMAIN:
            candidates: Iterable[int] = (
                [opset]
                if opset is not None
                else range(min(max(own, LEAST_OPSET), READER_OPSET[""]), READER_OPSET[""] + 1)
            )
        elif domain == ML_DOMAIN:
            # Operators that version 5 deprecated are still known to readers at 4.
            candidates = sorted(range(1, READER_OPSET[domain] + 1), key=lambda v: (v < own, abs(v - own)))
        else:
            chosen[domain] = max(own, 1)
            continue
        chosen[domain] = _fitting(domain, members, candidates)
    return chosen


def _fitting(domain: str, nodes: list[Node], candidates: Iterable[int]) -> int:
    blocking: tuple[Node, str] | None = None
    version = 0
    for version in candidates:
        if blocking is not None and isinstance(_at(blocking[0], version), Misfit):
            continue
        blocking = None
        for node in nodes:
            fit = _at(node, version)
            if isinstance(fit, Misfit):
                blocking = (node, fit.reason)
                break
        if blocking is None:
            return version
    assert blocking is not None
    raise InvalidGraph(
        f"a node cannot be written at {domain or 'ai.onnx'} opset {version}",
        node=blocking[0].label,
        found=blocking[1],
        hint=f"Opset {NEWEST_OPSET} has every operator; not every reader knows it." if not domain else None,
    )


def _at(node: Node, version: int) -> dict[str, Attribute] | Misfit:
    return attributes_at(node, version)


def ir_version(opsets: dict[str, int], types: set[str], own: int) -> int:
    """The IR version to write: enough for the opsets and element types, not below the model's own where readers know
    that."""
    least = [8, min(own, READER_IR)]
    for domain in (ONNX_DOMAIN, ML_DOMAIN):
        version = onnx.helper.OP_SET_ID_VERSION_MAP.get((domain or "ai.onnx", opsets.get(domain, 0)))
        if version is not None:
            least.append(version)
    return max(*least, *(_TYPE_IR.get(t, 0) for t in types), 0)
