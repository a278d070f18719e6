"""Operators that a user writes in Python."""

from __future__ import annotations

from dataclasses import dataclass

from whet.ops.base import Infer, Kernel


@dataclass(frozen=True, slots=True)
class CustomOp:
    """An operator of a user's own domain.

    `evaluate` computes it with numpy (see Kernel for the arguments); `infer`, where given, types its outputs;
    `lowering` is for providers that compile and is passed on unread.
    """

    domain: str
    op_type: str
    evaluate: Kernel
    infer: Infer | None = None
    lowering: object | None = None

    @property
    def op(self) -> str:
        """The key of this operator, as `Node.op` writes it."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type
