"""One operation of a tape."""

from __future__ import annotations

from dataclasses import dataclass

from whet.dtypes import DType


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: its name in SCALAR_OPS, the type of its result, the values it reads, and fixed numbers."""

    op: str
    dtype: DType
    args: tuple[int, ...]
    numbers: tuple[float | int, ...] = ()
