"""What a model takes and gives: NodeArg, ModelMetadata, and the check of every input before a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet import dtypes
from whet.dtypes import DType
from whet.errors import InvalidArgument, did_you_mean
from whet.graph import Expr, MapType, OptionalType, SequenceType, TensorType, Type, Value
from whet.graph.types import format_shape
from whet.runtime.values import Map, Optional, RuntimeValue, Tensor
from whet.runtime.values import Sequence as SequenceValue
from whet.session.ortvalue import Array, to_runtime, to_tensor, type_name


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output of a model. `shape` holds sizes, names of free dimensions, and None for unknown ones."""

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the model's file says about itself."""

    producer_name: str = ""
    graph_name: str = ""
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 0
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


def node_arg(value: Value) -> NodeArg:
    """The description of a model input or output."""
    shape: list[int | str | None] = []
    declared = value.type.element if isinstance(value.type, OptionalType) else value.type
    if isinstance(declared, TensorType) and declared.shape is not None:
        shape = [d.name if isinstance(d, Expr) else d for d in declared.shape]
    return NodeArg(value.name, ort_type(value.type), shape)


def ort_type(declared: Type | None) -> str:
    """A type as ONNX Runtime writes it: `tensor(float)`, `seq(map(int64,tensor(float)))`, ..."""
    if isinstance(declared, TensorType):
        kind = "sparse_tensor" if declared.sparse else "tensor"
        return f"{kind}({declared.dtype.ort_name if declared.dtype else ''})"
    if isinstance(declared, SequenceType):
        return f"seq({ort_type(declared.element)})"
    if isinstance(declared, OptionalType):
        return f"optional({ort_type(declared.element)})"
    if isinstance(declared, MapType):
        return f"map({declared.key.ort_name},{ort_type(declared.value)})"
    return ""


_NUMBERS: dict[str, tuple[type, ...]] = {
    "int": (int, np.integer),
    "uint": (int, np.integer),
    "float": (int, float, np.integer, np.floating),
}
"""What may stand for the elements of each kind in a map."""


def _plain(given: Any, dtype: DType | None) -> Array:
    """An array of Python numbers, text or lists of them, of `dtype` where their kind fits it.

    Raises ValueError, TypeError or OverflowError for ragged lists and numbers that `dtype` cannot hold.
    """
    array = np.array(given)
    if dtype is None or array.dtype.kind in "OSUT" or dtype is dtypes.STRING:
        return np.array(given, np.object_) if dtype is dtypes.STRING else array
    if array.size == 0 or dtype.is_float or array.dtype.kind in ("b" if dtype.kind == "bool" else "biu"):
        # From the list again, not from the array: numpy refuses a Python number that the type cannot hold.
        return np.array(given, dtype.numpy)
    return array


class FeedChecker:
    """Turns a caller's feed into runtime values in the model's order, refusing what does not fit by name."""

    def __init__(self, inputs: Sequence[Value], model: str) -> None:
        self._model = model
        self._inputs = tuple((value.name, value.type) for value in inputs)
        self._index = {name: i for i, (name, _) in enumerate(self._inputs)}

    def __call__(self, feed: Mapping[str, Any]) -> list[RuntimeValue]:
        """The values of `feed` in input order.

        Raises InvalidArgument for a missing or unknown name, a wrong element type, rank or size, and for free
        dimensions of one name that differ between inputs.
        """
        if not isinstance(feed, Mapping):
            raise InvalidArgument(
                "the feed is not a mapping", file=self._model, found=type(feed).__name__, expected="{name: value}"
            )
        if len(feed) != len(self._inputs) or any(name not in self._index for name in feed):
            self._check_names(feed)
        extents: dict[str, tuple[int, str]] = {}
        values: list[RuntimeValue] = []
        for name, declared in self._inputs:
            if name not in feed:
                values.append(Optional(None))
                continue
            value = self._convert(name, feed[name], declared)
            if isinstance(declared, TensorType):
                if not isinstance(value, Tensor):
                    raise self._error("an input has the wrong type", name, type_name(value), ort_type(declared))
                self._check_tensor(name, value, declared, extents)
            elif declared is not None:
                value = self._check_container(name, value, declared)
            values.append(value)
        return values

    def _convert(self, name: str, given: Any, declared: Type | None) -> RuntimeValue:
        """The runtime form of `given`; Python numbers, text and (nested) lists take a tensor input's own type."""
        if isinstance(declared, OptionalType):
            declared = declared.element
        try:
            plain = isinstance(given, (list, tuple, bool, int, float, str)) and not isinstance(given, np.generic)
            if plain and isinstance(declared, TensorType):
                return to_tensor(_plain(given, declared.dtype), name)
            return to_runtime(given, name)
        except (ValueError, TypeError, OverflowError) as error:
            if isinstance(error, InvalidArgument):
                error.file = self._model
                raise
            raise self._error(
                "an input cannot be made a tensor", name, f"{type(given).__name__} ({error})", ort_type(declared)
            ) from error

    def _check_names(self, feed: Mapping[str, Any]) -> None:
        for name in feed:
            if name not in self._index:
                hint = did_you_mean(str(name), self._index) or f"The inputs are: {', '.join(self._index) or 'none'}."
                raise InvalidArgument("the model has no such input", file=self._model, value=str(name), hint=hint)
        missing = [n for n, t in self._inputs if n not in feed and not isinstance(t, OptionalType)]
        if missing:
            raise InvalidArgument(
                f"Required inputs ({missing}) are missing from input feed ({list(feed)})",
                file=self._model,
                value=missing[0],
                expected=", ".join(f"{n}: {t}" for n, t in self._inputs if n in missing),
            )

    def _check_tensor(
        self, name: str, tensor: Tensor, declared: TensorType, extents: dict[str, tuple[int, str]]
    ) -> None:
        if declared.dtype is not None and tensor.dtype is not declared.dtype:
            raise self._error(
                "an input has the wrong element type",
                name,
                f"tensor({tensor.dtype.ort_name})",
                f"tensor({declared.dtype.ort_name})",
                f"Convert it: x.astype({declared.dtype.numpy.name!r})."
                if declared.dtype is not dtypes.STRING
                else None,
            )
        if declared.shape is None:
            return
        if len(tensor.shape) != len(declared.shape):
            raise self._error(
                f"an input has the wrong rank {len(tensor.shape)}",
                name,
                list(tensor.shape),
                format_shape(declared.shape),
            )
        for axis, (found, dim) in enumerate(zip(tensor.shape, declared.shape, strict=True)):
            if isinstance(dim, int):
                if found != dim:
                    raise self._error(
                        f"an input has the wrong size in dimension {axis}",
                        name,
                        list(tensor.shape),
                        format_shape(declared.shape),
                    )
            elif dim is not None and dim.name is not None:
                first = extents.setdefault(dim.name, (found, name))
                if first[0] != found:
                    raise self._error(
                        f"dimension {dim.name!r} has two sizes",
                        name,
                        f"{found} in {name!r}, {first[0]} in {first[1]!r}",
                        "one size for one name",
                    )

    def _check_container(self, name: str, value: RuntimeValue, declared: Type) -> RuntimeValue:
        if isinstance(declared, OptionalType):
            if isinstance(value, Optional):
                return value
            if declared.element is not None:
                inner = self._check_container(name, value, declared.element)
                return Optional(inner)
            return Optional(value)
        if isinstance(declared, SequenceType):
            if not isinstance(value, SequenceValue):
                raise self._error(
                    "an input has the wrong type", name, type_name(value), ort_type(declared), "Pass a list."
                )
            if declared.element is not None:
                return SequenceValue(tuple(self._check_container(name, v, declared.element) for v in value.items))
        if isinstance(declared, MapType):
            if not isinstance(value, Map):
                raise self._error(
                    "an input has the wrong type", name, type_name(value), ort_type(declared), "Pass a dict."
                )
            self._check_map(name, value, declared)
        if isinstance(declared, TensorType):
            if not isinstance(value, Tensor):
                raise self._error("an input has the wrong type", name, type_name(value), ort_type(declared))
            self._check_tensor(name, value, declared, {})
        return value

    def _check_map(self, name: str, value: Map, declared: MapType) -> None:
        element = declared.value.dtype if isinstance(declared.value, TensorType) else None
        for what, dtype, items in (("key", declared.key, value.items), ("value", element, value.items.values())):
            if dtype is None:
                continue
            kinds = (str,) if dtype is dtypes.STRING else _NUMBERS.get(dtype.kind, ())
            for item in items:
                if kinds and (not isinstance(item, kinds) or isinstance(item, (bool, np.bool_))):
                    raise self._error(f"a map has the wrong type of {what}", name, repr(item), ort_type(declared))

    def _error(
        self, problem: str, name: str, found: object, expected: object, hint: str | None = None
    ) -> InvalidArgument:
        return InvalidArgument(problem, file=self._model, value=name, found=found, expected=expected, hint=hint)
