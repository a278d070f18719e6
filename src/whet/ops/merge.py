"""Combining what two sources say about one value's type."""

from __future__ import annotations

from whet.graph import OptionalType, SequenceType, Shape, TensorType, Type


def refine(found: Type, declared: Type | None) -> Type:
    """`found`, with what it leaves open taken from `declared`; where they contradict each other, `found` stands."""
    if declared is None or found is declared:
        return found
    if isinstance(found, TensorType) and isinstance(declared, TensorType):
        dtype = found.dtype or declared.dtype
        shape = _refine_shape(found.shape, declared.shape)
        if dtype is found.dtype and shape is found.shape:
            return found
        return TensorType(dtype, shape, found.sparse)
    if isinstance(found, SequenceType) and isinstance(declared, SequenceType):
        return SequenceType(declared.element if found.element is None else refine(found.element, declared.element))
    if isinstance(found, OptionalType) and isinstance(declared, OptionalType):
        return OptionalType(declared.element if found.element is None else refine(found.element, declared.element))
    return found


def _refine_shape(found: Shape | None, declared: Shape | None) -> Shape | None:
    if found is None:
        return declared
    if declared is None or None not in found or len(declared) != len(found):
        return found
    return tuple(d if f is None else f for f, d in zip(found, declared, strict=True))


def join(a: Type | None, b: Type | None) -> Type | None:
    """What holds for a value that is of type `a` or of type `b` (two branches, two iterations)."""
    if a is None or b is None:
        return None
    if a == b:
        return a
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        dtype = a.dtype if a.dtype is b.dtype else None
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(dtype)
        return TensorType(dtype, tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(join(a.element, b.element))
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        return OptionalType(join(a.element, b.element))
    return None
