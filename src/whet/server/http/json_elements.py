"""Values that JSON holds become the elements of a tensor."""

from __future__ import annotations

import warnings
from math import isfinite
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.server.datatypes import BY_NAME, BYTES, Datatype
from whet.server.request import Array

FP32 = BY_NAME["FP32"]

# Elements that overflow are looked for and refused; numpy would also say so in the log.
warnings.filterwarnings(
    "ignore", "(overflow|invalid value) encountered in", RuntimeWarning, r"whet\.server\.http\.json_elements"
)

_ALLOWED: dict[str, frozenset[type]] = {
    "float": frozenset((int, float)),
    "int": frozenset((int,)),
    "uint": frozenset((int,)),
    "bool": frozenset((bool,)),
    "string": frozenset((str,)),
}


def array_of(flat: list[Any], kind: Datatype, name: str, first: int = 0) -> Array:
    """The elements as an array of one dimension. `first`: the place of the first one in its tensor.

    Raises InvalidArgument for elements of the wrong kind, and for numbers that the data type does not have.
    """
    allowed = _ALLOWED[kind.dtype.kind]
    if not set(map(type, flat)) <= allowed:
        at, wrong = next((i, v) for i, v in enumerate(flat) if type(v) not in allowed)
        raise InvalidArgument(
            "an element has the wrong JSON type", value=name, found=f"{_shown(wrong)} (element {first + at})",
            expected=kind.name,
        )  # fmt: skip
    if kind is FP32:
        array = np.array(flat, np.float32)
        # The cheapest call that never overlooks an infinity; it takes some large numbers for one.
        return array if isfinite(array.dot(array)) else _finite(array, flat, kind, name, first)
    if kind is BYTES:
        out = np.empty(len(flat), object)
        out[:] = [_utf8(v, name, first + i) for i, v in enumerate(flat)]
        return out
    if kind.dtype.kind == "float":
        return _finite(np.array(flat, np.float64).astype(kind.dtype.numpy), flat, kind, name, first)
    try:
        return np.array(flat, kind.dtype.numpy)
    except OverflowError as error:
        limits = np.iinfo(kind.dtype.numpy)
        at = next(i for i, v in enumerate(flat) if not limits.min <= v <= limits.max)
        raise InvalidArgument(
            "an element does not fit the datatype", value=name, found=f"{flat[at]} (element {first + at})",
            expected=f"{kind.name}, {limits.min} to {limits.max}",
        ) from error  # fmt: skip


def _finite(array: Array, flat: list[Any], kind: Datatype, name: str, first: int) -> Array:
    """The array, if no element became infinite: JSON has no infinities."""
    infinite = np.isinf(array.astype(np.float64))
    if infinite.any():
        at = int(infinite.argmax())
        raise InvalidArgument(
            "an element does not fit the datatype", value=name, found=f"{flat[at]} (element {first + at})",
            expected=f"a number that {kind.name} has", hint="The binary form of a tensor has infinities.",
        )  # fmt: skip
    return array


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _utf8(text: str, name: str, at: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("an element is not valid Unicode", value=name, found=f"{error} (element {at})") from error
