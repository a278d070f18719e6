"""The interface that every execution provider implements, and the values that cross it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

from whet.compiler.tactics.question import Choices
from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import Terminated
from whet.graph import Graph, Model, Node
from whet.passes.base import Pass
from whet.runtime.cancel import CancelToken
from whet.runtime.values import RuntimeValue
from whet.tuning.settings import NO_TUNING, Tuning
from whet.tuning.tuner import Outcome


@dataclass(frozen=True, slots=True)
class Accept:
    """The provider runs this node, at every shape that its types allow."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The provider does not run this node, and why (shown in the placement report)."""

    reason: str


Claim = Accept | Refuse

Level = Literal["disabled", "basic", "extended", "all"]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes that are to be ready before the first run; anything else runs too, but is made ready when it comes."""

    least: Mapping[str, tuple[int, ...]]
    """A shape for each input of the model with free extents, as the others."""
    usual: Mapping[str, tuple[int, ...]]
    most: Mapping[str, tuple[int, ...]]
    extents: Mapping[str, tuple[int, int, int]]
    """The same by name of the free extent: least, usual, most."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that an executable, or a whole session, holds."""

    weights: int = 0
    """Constants in memory: packed as kernels want them, or as the file has them where nothing is compiled (yet)."""
    shared_weights: int = 0
    """Those among them that other sessions of this process hold, too."""
    arena: int = 0
    """Values between steps, of all run contexts; pages that no run has touched take no memory."""
    contexts: int = 0
    """Everything else of the run contexts, one for each run at the same time."""
    code: int = 0
    tables: int = 0
    specializations: int = 0
    """Programs that are kept (a count)."""

    def __add__(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.arena + self.contexts + self.code + self.tables


@dataclass(frozen=True, slots=True)
class CompileEnv:
    """What a provider may know when it compiles a subgraph."""

    limits: Limits = DEFAULT_LIMITS
    level: Level = "all"
    intra_op_threads: int = 0
    """Threads for one run; 0 leaves the choice to the provider."""
    goal: Literal["latency", "throughput"] = "latency"
    precision: str = "float32"
    deterministic: bool = False
    tactics: Mapping[str, str] = field(default_factory=dict)
    """Ways of working that are forced, by family of operators."""
    model_path: str | None = None
    shapes: tuple[ShapeRange, ...] = ()
    """Shapes to make ready."""
    tuning: Tuning = NO_TUNING
    """What may be measured, and where measurements are kept."""
    choices: Choices | None = None
    """Chooses among ways of working in place of the measurements."""


@dataclass(slots=True)
class RunState:
    """What one run owns: its cancel flag, deadline and, when profiling, its events."""

    cancel: CancelToken | None = None
    """Set by another thread to stop the run; None when nobody can."""
    deadline: float | None = None
    """`time.monotonic()` seconds after which the run stops, or None."""
    events: list[ProfileEvent] | None = None
    seed: int | None = None

    @property
    def stoppable(self) -> bool:
        """Whether anything can stop this run early."""
        return self.cancel is not None or self.deadline is not None

    def check(self) -> None:
        """Raise Terminated when the run has been cancelled or its deadline has passed; called between nodes."""
        if self.cancel is not None and self.cancel.is_set():
            raise Terminated("the run was stopped by RunOptions.terminate")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Terminated("the run passed its deadline")


@dataclass(frozen=True, slots=True)
class ProfileEvent:
    """One node's or step's execution, for the profile."""

    name: str
    op: str
    provider: str
    start_ns: int
    duration_ns: int
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A part of a model for one provider: a graph whose inputs are everything it reads, captured values included."""

    graph: Graph
    model: Model
    """The model around it (opsets, names, metadata); its own `graph` is this part."""
    nodes: tuple[Node, ...] = ()


class Executable(Protocol):
    """A compiled subgraph. Thread-safe."""

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """Compute the subgraph's outputs. Inputs are borrowed and never written; no output aliases an input."""
        ...


@runtime_checkable
class ReportsMemory(Protocol):
    """An executable that knows what it holds."""

    def memory(self) -> MemoryUse:
        """Bytes held now."""
        ...


@runtime_checkable
class ReportsTuning(Protocol):
    """An executable that may have been tuned."""

    @property
    def tuned(self) -> Sequence[Outcome]:
        """What tuning did, for each of its programs."""
        ...


class ExecutionProvider(Protocol):
    """Runs part of a graph. One object a session, made from the session's provider options."""

    name: str

    def claim(self, node: Node, graph: Graph) -> Claim:
        """Whether this provider runs `node`; called at load with symbolic shapes, binding for every later shape."""
        ...

    def passes(self, level: Level) -> tuple[Pass, ...]:
        """Passes of this provider's own, run on its subgraph after partitioning."""
        ...

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> Executable:
        """Make the subgraph executable. Raises EPFail or NotImplemented naming the node."""
        ...

    def options(self) -> dict[str, str]:
        """The provider options in effect, as strings."""
        ...
