"""A comparison of extents that only a run can decide, before a kernel relies on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import Value
from whet.kernels.base import EXTENT_MISMATCH, Frame

Relation = Literal["equal", "at_most"]


@dataclass(frozen=True, slots=True)
class Check:
    """Ends the run with EXTENT_MISMATCH unless `a` is equal to `b`, or at most `b`.

    Words: `a`, `b`. Grid: one tile. The status names the number `a`.
    """

    relation: Relation

    def emit(self, frame: Frame) -> None:
        k = frame.k
        a, b = k.index(frame.number("a")), k.index(frame.number("b"))
        wrong: Value = a != b if self.relation == "equal" else a > b
        frame.fail_if(wrong, EXTENT_MISMATCH, a)
