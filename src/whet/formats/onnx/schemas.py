"""What onnx's operator schemas say, in a form that is quick to ask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx
from onnx import defs

ONNX_DOMAIN = ""
ML_DOMAIN = "ai.onnx.ml"
NEWEST_OPSET: int = defs.onnx_opset_version()
"""The opset whose forms a loaded graph has."""
KNOWN_DOMAINS: frozenset[str] = frozenset(
    {"", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.training", "ai.onnx.preview.training"}
)
"""Domains whose operators onnx defines."""


_TYPE_CODES: dict[str, int] = {name: int(code) for name, code in onnx.AttributeProto.AttributeType.items()}


@dataclass(frozen=True, slots=True)
class Signature:
    """One version of an operator: arity, attributes, type constraints."""

    since: int
    deprecated: bool
    least_inputs: int
    most_inputs: int | None
    least_outputs: int
    most_outputs: int | None
    required_inputs: tuple[bool, ...]
    input_names: tuple[str, ...]
    input_types: tuple[str, ...]
    """Each formal input's type: a type variable's name or a concrete type (the last one repeats if variadic)."""
    output_types: tuple[str, ...]
    attributes: dict[str, int]
    """Attribute name to its AttributeProto type."""
    required: tuple[str, ...]
    defaults: dict[str, object]
    constraints: dict[str, frozenset[str]]
    """Type variable to the types it may take, as onnx writes them: `tensor(float)`."""


@cache
def signature(domain: str, op_type: str, version: int) -> Signature | None:
    """The operator's form in force at `version` of its domain, or None when there is none.

    An operator that has been deprecated keeps its last form: models that still use it are not ambiguous.
    """
    history = _history(domain, op_type)
    in_force = [s for s in history if s.since_version <= version]
    if not in_force:
        return None
    live = [s for s in in_force if not (s.deprecated and not s.inputs and not s.outputs)]
    return _signature(live[-1] if live else in_force[-1])


@cache
def newest(domain: str, op_type: str) -> Signature | None:
    """The operator's newest form."""
    return signature(domain, op_type, 1 << 30)


@cache
def operator_names(domain: str) -> frozenset[str]:
    """Every operator that the domain ever had."""
    return frozenset(s.name for s in defs.get_all_schemas_with_history() if s.domain == domain)


def _history(domain: str, op_type: str) -> list[defs.OpSchema]:
    found: list[defs.OpSchema] = []
    version = NEWEST_OPSET if domain == ONNX_DOMAIN else defs.onnx_ml_opset_version() if domain == ML_DOMAIN else 64
    while version > 0:
        try:
            schema = defs.get_schema(op_type, version, domain)
        except defs.SchemaError:
            break
        found.append(schema)
        version = schema.since_version - 1
    return found[::-1]


def _signature(schema: defs.OpSchema) -> Signature:
    unbounded = (1 << 31) - 1
    single = defs.OpSchema.FormalParameterOption.Single
    inputs = list(schema.inputs)
    attributes = dict(schema.attributes)
    return Signature(
        since=schema.since_version,
        deprecated=schema.deprecated,
        least_inputs=schema.min_input,
        most_inputs=None if schema.max_input >= unbounded else schema.max_input,
        least_outputs=schema.min_output,
        most_outputs=None if schema.max_output >= unbounded else schema.max_output,
        required_inputs=tuple(p.option == single for p in inputs),
        input_names=tuple(p.name for p in inputs),
        input_types=tuple(p.type_str for p in inputs),
        output_types=tuple(p.type_str for p in schema.outputs),
        attributes={name: _TYPE_CODES[str(a.type).rpartition(".")[2]] for name, a in attributes.items()},
        required=tuple(name for name, a in attributes.items() if a.required),
        defaults={name: _default(a.default_value) for name, a in attributes.items() if a.default_value.type},
        constraints={c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


def _default(proto: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (int, float)):
        return value
    return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
