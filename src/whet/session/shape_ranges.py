"""Optimization profiles: shapes that a session makes ready when it is made, as least, usual and most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whet.errors import InvalidArgument, did_you_mean
from whet.graph import Expr, TensorType, Value
from whet.providers.base import ShapeRange

KEYS = ("shapes.min", "shapes.opt", "shapes.max")
Shapes = dict[str, tuple[int, ...]]


def parse_shapes(key: str, text: str) -> list[Shapes]:
    """The shapes of `input:1x3x224x224,other:8`; several profiles are separated by `;`. Raises InvalidArgument."""
    profiles: list[Shapes] = []
    for part in text.split(";"):
        shapes: Shapes = {}
        for entry in filter(None, part.split(",")):
            name, separator, extents = entry.strip().rpartition(":")
            numbers = extents.split("x")
            if not separator or not name or not all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
                raise InvalidArgument(
                    "not a shape", value=key, found=entry, expected="INPUT:1x3x224x224, more separated by ','"
                )
            shapes[name] = tuple(int(n) for n in numbers)
        profiles.append(shapes)
    return profiles


def shape_ranges(config: Mapping[str, str], inputs: Sequence[Value]) -> tuple[ShapeRange, ...]:
    """The ranges that the session keys KEYS ask for.

    `shapes.max` alone stands for a range from the smallest shapes on; `shapes.opt` left out is `shapes.max`. Raises
    InvalidArgument for shapes that the model's inputs do not have, or a least that is larger than the most.
    """
    given = {key: parse_shapes(key, config[key]) for key in KEYS if key in config}
    if not given:
        return ()
    if "shapes.max" not in given:
        raise InvalidArgument("a range of shapes needs its largest", value="shapes.max", expected="INPUT:1x3x224x224")
    most = given["shapes.max"]
    usual = given.get("shapes.opt", most)
    least = given.get("shapes.min", [{name: (0,) * len(s) for name, s in shapes.items()} for shapes in most])
    if not len(most) == len(usual) == len(least):
        raise InvalidArgument(
            "the keys give another number of profiles each", value=", ".join(KEYS),
            found=f"{len(least)}, {len(usual)} and {len(most)}",
        )  # fmt: skip
    free = {v.name: v for v in inputs if any(not isinstance(d, int) for d in v.shape or ())}
    return tuple(_range(free, a, b, c) for a, b, c in zip(least, usual, most, strict=True))


def _range(free: Mapping[str, Value], least: Shapes, usual: Shapes, most: Shapes) -> ShapeRange:
    extents: dict[str, tuple[int, int, int]] = {}
    for key, shapes in zip(KEYS, (least, usual, most), strict=True):
        for name in shapes:
            if name not in free:
                raise InvalidArgument(
                    "the model has no input of this name with free extents", value=f"{key}: {name}",
                    expected=", ".join(free) or "none", hint=did_you_mean(name, free),
                )  # fmt: skip
        for name in free:
            if name not in shapes:
                raise InvalidArgument("an input with free extents has no shape", value=f"{key}: {name}")
    for name, value in free.items():
        kind = value.type
        dims = kind.shape if isinstance(kind, TensorType) else None
        low, middle, high = least[name], usual[name], most[name]
        if dims is None or not len(dims) == len(low) == len(middle) == len(high):
            found = " to ".join("x".join(map(str, s)) for s in (low, middle, high))
            raise InvalidArgument("a shape of another rank than the input", value=name, found=found, expected=str(kind))
        for dim, a, b, c in zip(dims, low, middle, high, strict=True):
            if isinstance(dim, int):
                a, b, c = (dim if n == 0 else n for n in (a, b, c))
                if not a == b == c == dim:
                    raise InvalidArgument("another extent than the input's own", value=name, found=c, expected=dim)
            elif not a <= b <= c:
                raise InvalidArgument(
                    "a range of shapes goes from min over opt to max", value=f"{name}: {dim}", found=f"{a}, {b}, {c}"
                )
            if isinstance(dim, Expr) and dim.name is not None:
                before = extents.setdefault(dim.name, (a, b, c))
                if before != (a, b, c):
                    raise InvalidArgument(
                        "one free extent has two ranges", value=f"{name}: {dim}", found=f"{before} and {(a, b, c)}"
                    )
    return ShapeRange(least, usual, most, extents)
