"""Rows: what the lowering of a graph emits, before memory has addresses. Steps, and what decides on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.compiler.views import Buffer, View
from whet.dtypes import DType
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


@dataclass(frozen=True, slots=True)
class StepReport:
    """What profiles say of a step."""

    name: str
    ops: str
    tactic: str
    parallel: bool
    flops: Known
    nbytes: Known


def report(step: Step) -> StepReport:
    """The account of a step, which keeps nothing of the graph alive."""
    name = step.node.name or step.node.label if step.node is not None else step.tactic
    return StepReport(name, step.ops or step.tactic, step.tactic, step.parallel, step.flops, step.nbytes)


@dataclass(eq=False, slots=True)
class Label:
    """A place among the rows that others go on with; does nothing itself."""

    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()


@dataclass(slots=True)
class Jump:
    """Go on at `target`; where `unless` is given, only if that number is 0."""

    target: Label
    unless: Known | None = None
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()


@dataclass(slots=True)
class Load:
    """The name becomes the number in memory (int64, int32 or bool)."""

    name: str
    source: Address
    dtype: DType
    node: Node | None
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...] = ()


@dataclass(slots=True)
class Assign:
    """Names become expressions of what names were before; then all that depends on those, or on the names `loaded`
    since the last such row, is computed again."""

    values: Mapping[str, Known]
    loaded: tuple[str, ...] = ()
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()


Row = Step | Label | Jump | Load | Assign
