"""Steps: what the lowering of a graph emits, before memory has addresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.compiler.views import Buffer, View
from whet.graph import Node
from whet.graph.dims import Known
from whet.kernels.base import KernelSpec


@dataclass(frozen=True, slots=True)
class Address:
    """An argument word: the address of an element of a buffer; `offset` counts bytes."""

    buffer: Buffer
    offset: Known = 0


def address(view: View) -> Address:
    """The address of a view's first element."""
    return Address(view.buffer, view.offset * (view.element.bits // 8))


Word = int | Known | Address


@dataclass(slots=True)
class Step:
    """One kernel over a grid: its arguments by name, the buffers that it reads and writes."""

    spec: KernelSpec
    words: Mapping[str, Word]
    tiles: Known
    node: Node | None
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    parallel: bool = True
    flops: Known = 0
    """Arithmetic operations, for reports."""
    nbytes: Known = 0
    """Bytes read and written at least, for reports."""
    in_place: tuple[tuple[Buffer, Buffer], ...] = ()
    """Pairs (input, output) that may share memory when the input is not needed afterwards."""
    tactic: str = ""
    ops: str = ""
    extra: dict[str, object] = field(default_factory=dict)
