"""Extents and types as JSON."""

from __future__ import annotations

from typing import Any

from whet import dtypes
from whet.dtypes import DType
from whet.errors import Fail
from whet.graph import TensorType, Value
from whet.graph.dims import Atom, Dim, Expr, Known


def write_dim(value: Dim) -> Any:
    """An extent: a number, null, or {"terms": [[coefficient, [factor, ...]], ...]}, where a factor is an atom of `dims`
    as [operation, argument, ...]."""
    if value is None or isinstance(value, int):
        return value
    return {"terms": [[c, [[a.op, *map(_write_argument, a.args)] for a in m]] for m, c in value.terms.items()]}


def _write_argument(argument: object) -> Any:
    if isinstance(argument, str):
        return argument
    assert argument is None or isinstance(argument, (int, Expr))
    return write_dim(argument)


def read_dim(content: Any) -> Dim:
    """What `write_dim` wrote."""
    if content is None or isinstance(content, int):
        return content
    terms = {}
    for coefficient, factors in content["terms"]:
        atoms = (Atom(op, tuple(a if isinstance(a, str) else read_dim(a) for a in rest)) for op, *rest in factors)
        terms[tuple(atoms)] = int(coefficient)
    return Expr(terms)


def read_known(content: Any) -> Known:
    """An extent that is not null."""
    found = read_dim(content)
    assert found is not None
    return found


def write_value(value: Value) -> dict[str, Any]:
    """A model's input or output. Raises Fail for what is no tensor."""
    kind = value.type
    if not isinstance(kind, TensorType) or kind.dtype is None:
        raise Fail("an engine takes and gives tensors only", value=value.name, found=str(kind))
    shape = None if kind.shape is None else [write_dim(d) for d in kind.shape]
    return {"name": value.name, "dtype": kind.dtype.name, "shape": shape}


def read_value(content: dict[str, Any]) -> Value:
    """What `write_value` wrote."""
    shape = content["shape"]
    dims = None if shape is None else tuple(read_dim(d) for d in shape)
    return Value(content["name"], TensorType(dtype_named(content["dtype"]), dims))


def dtype_named(name: str) -> DType:
    """The element type of a name."""
    return dtypes.BY_NAME[name]
