"""The state of lowering one graph: where each value lies, which steps have been emitted, which memory they use."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from whet.codegen.target import Target
from whet.compiler.bounds import Bounds, upper
from whet.compiler.step import Assign, Jump, Label, Load, Row, Step, Word, address
from whet.compiler.tactics.question import Choices
from whet.compiler.views import Buffer, View, dense_strides, hint, memory_order, product
from whet.compiler.weights import STORE, Array, Weight
from whet.config import DEFAULT_LIMITS, Limits
from whet.dtypes import DType
from whet.errors import NotImplemented
from whet.graph import Graph, Node, TensorData, TensorType, Value
from whet.graph.dims import Expr, Known, minimum
from whet.kernels.base import KernelSpec

PARALLEL_NS = 6000.0
"""Steps that one thread finishes in less stay on it: sharing costs about as much."""
GUESS_FLOPS_PER_NS = 30.0
GUESS_BYTES_PER_NS = 12.0


RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that keep the order of elements."""


@dataclass(frozen=True, slots=True)
class LowerEnv:
    """What lowering may know of its surroundings."""

    target: Target
    limits: Limits = DEFAULT_LIMITS
    goal: str = "latency"
    tactics: Mapping[str, str] = field(default_factory=dict)
    """Tactics that are forced, by family of operators; for tests and measurements."""
    threads: int = 1
    """How many threads blocks of work are cut for: the machine's, whatever a run is going to have, so that answers
    are the same for any number of threads."""
    choices: Choices | None = None
    """What has measured tactics; None leaves every choice to the cost model."""


@dataclass(slots=True)
class Destination:
    """Where a value should be written so that nobody needs to copy it: a slice of `parent` along `axis`."""

    parent: Value
    axis: int
    offset: Known


LowerNodes = Callable[["Lowering", Graph], None]


class Lowering:
    """Lowers a graph whose shapes are all known, as numbers or symbolically, in topological order of its nodes."""

    def __init__(self, graph: Graph, env: LowerEnv, lower_nodes: LowerNodes) -> None:
        self.graph = graph
        self.lower_nodes = lower_nodes
        self.env = env
        self.target = env.target
        self.rows: list[Row] = []
        self.loops: list[tuple[Label, Label]] = []
        """The first and the last row of what repeats."""
        self.bounds = Bounds()
        """The names that the rows find out, and the most that each may be."""
        self.inputs: list[Buffer] = []
        self.outputs: list[Buffer] = []
        self.weights: list[Weight] = []
        self._names = 0
        self.buffers: list[Buffer] = []
        """Buffers of the arena."""
        self.node: Node | None = None
        self.factored: dict[Value, tuple[Value, Value]] = {}
        """Values that are nowhere in memory: what they are the product of, which their one reader takes in place."""
        self.spatial_sums: dict[Value, View] = {}
        """Sums over parts of an image's pixels, [images, channels, parts, 1..], of values that are in memory too."""
        self._views: dict[Value, View] = {}
        self._wanted: dict[Value, View] = {}
        self._weight_buffers: dict[Hashable, Buffer] = {}
        self._weight_keys: dict[Buffer, Hashable] = {}
        self._destinations: dict[Value, Destination] = {}
        self._output_of: dict[Value, Buffer] = {}
        self._symbols = {name for v in graph.inputs for d in shape_of(v) if isinstance(d, Expr) for name in d.names()}
        for index, value in enumerate(graph.inputs):
            shape, dtype = shape_of(value), dtype_of(value)
            buffer = Buffer("input", dtype, product(shape), index, value.name)
            self.inputs.append(buffer)
            self._views[value] = View(buffer, shape, dense_strides(shape))
        for index, value in enumerate(graph.outputs):
            buffer = Buffer("output", dtype_of(value), product(shape_of(value)), index, value.name)
            self.outputs.append(buffer)
            if value.producer is not None and value not in self._output_of:
                self._output_of[value] = buffer
                self._claim_sources(value, buffer)

    def _claim_sources(self, value: Value, buffer: Buffer) -> None:
        """Let what an output is a reshaped view of be written where the output lies."""
        while value.producer is not None and value.producer.op in RESHAPES:
            source = value.producer.inputs[0]
            if source is None or source.producer is None or source.only_use is not value.producer:
                return
            if product(shape_of(source)) != product(shape_of(value)):
                return
            self._output_of.setdefault(source, buffer)
            value = source

    # Values

    def view(self, value: Value) -> View:
        """Where a value lies; constants are brought into memory as they are."""
        found = self._views.get(value)
        if found is None:
            assert value.data is not None, f"{value.name} is read before it is lowered"
            found = self._views[value] = self.constant(value.data)
        return found

    def has_view(self, value: Value) -> bool:
        """Whether the value has been given memory already."""
        return value in self._views

    def define(self, value: Value, view: View) -> None:
        """Let `value` be a view of memory that holds it already."""
        assert len(view.shape) == len(shape_of(value)), f"{value.name}: {view.shape} for {shape_of(value)}"
        self._views[value] = view

    def constant(self, data: TensorData) -> View:
        """A constant as it is, in C order."""
        buffer = self.weight(("plain", data.identity()), data.numpy, data.dtype)
        return View(buffer, data.shape, dense_strides(data.shape))

    def weight(self, key: Hashable, make: Callable[[], Array], dtype: DType) -> Buffer:
        """A buffer that holds what `make` returns; `key` says what that is, in any process of this version."""
        found = self._weight_buffers.get(key)
        if found is None:
            weight = STORE.get(key, make)
            found = Buffer("weight", dtype, weight.array.size, len(self.weights), str(key)[:60])
            self.weights.append(weight)
            self._weight_buffers[key] = found
            self._weight_keys[found] = key
        return found

    def constant_array(self, view: View) -> tuple[Hashable, Callable[[], Array]] | None:
        """What a view of a constant holds, as a key and a way to its array; None where it is no constant."""
        key = self._weight_keys.get(view.buffer)
        shape = [n for n in view.shape if isinstance(n, int)]
        strides = [n for n in view.strides if isinstance(n, int)]
        offset = view.offset
        if key is None or len(shape) + len(strides) < 2 * view.rank or not isinstance(offset, int):
            return None
        array, element = self.weights[view.buffer.index].array, view.element

        def read() -> Array:
            flat = array.reshape(-1).view(element.numpy)[offset:]
            steps = [s * element.numpy.itemsize for s in strides]
            return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

        return ("view", key, element.name, *shape, *strides, offset), read

    def zeros(self, elements: int, dtype: DType) -> View:
        """A read-only row of zeros."""
        size = 64
        while size < elements:
            size *= 2
        buffer = self.weight(("zeros", dtype.name, size), lambda: np.zeros(size, dtype.numpy), dtype)
        return View(buffer, (elements,), (1,))

    # Memory

    def scratch_buffer(self, dtype: DType, elements: Known, label: str = "") -> Buffer:
        """Memory of the arena for a value that no graph value stands for."""
        buffer = Buffer("arena", dtype, elements, len(self.buffers), label)
        self.buffers.append(buffer)
        return buffer

    def temporary(
        self, dtype: DType, shape: Sequence[Known], order: Sequence[int] | None = None, label: str = ""
    ) -> View:
        """A dense view of new memory; `order` lists the dimensions from slow to fast (C order unless given)."""
        shape = tuple(shape)
        buffer = self.scratch_buffer(dtype, product(shape), label)
        return View(buffer, shape, dense_strides(shape, order))

    def place(self, value: Value, parent: Value, axis: int, offset: Known) -> None:
        """Ask that `value` be written as the slice of `parent` that starts at `offset` along `axis`."""
        self._destinations[value] = Destination(parent, axis, offset)

    def want(self, value: Value, view: View) -> None:
        """Ask that `value` be written at `view`, a view of its shape."""
        self._wanted[value] = view

    def new(self, value: Value, order: Sequence[int] | None = None) -> View:
        """Memory for a value that a step is going to write, dense in `order` (C order unless given).

        A value that is to become part of another one, or an output of the graph, is written there at once where the
        order fits; so strides may be larger than a dense view's, but the order of dimensions is the one asked for.
        """
        shape = shape_of(value)
        view = self._placed(value, tuple(order) if order is not None else None)
        if view is None:
            view = self.temporary(dtype_of(value), shape, order, value.name)
        self._views[value] = view
        return view

    def _placed(self, value: Value, order: tuple[int, ...] | None) -> View | None:
        shape = shape_of(value)
        destination = self._destinations.get(value)
        view = self._wanted.get(value)
        if destination is not None:
            parent = self._views.get(destination.parent)
            if parent is None:
                parent = self.new(destination.parent, order)
            view = parent.slice(destination.axis, destination.offset, shape[destination.axis])
        if view is not None:
            wanted = dense_strides(shape, order)
            probe = View(view.buffer, shape, wanted)
            same = memory_order(_without_ones(probe)) == memory_order(_without_ones(view))
            return view if same else None
        output = self._output_of.get(value)
        if output is not None:
            probe = View(output, shape, dense_strides(shape, order))
            if probe.is_dense():
                return View(output, shape, dense_strides(shape))
        return None

    # Steps

    def emit(
        self,
        spec: KernelSpec,
        words: Mapping[str, Word],
        tiles: Known,
        reads: Sequence[View],
        writes: Sequence[View],
        *,
        flops: Known = 0,
        nbytes: Known | None = None,
        parallel: bool = True,
        in_place: Sequence[tuple[View, View]] = (),
        tactic: str = "",
        ops: str = "",
    ) -> Step:
        """Add a step. `flops` and `nbytes` (found from the views unless given) decide whether threads share it."""
        if nbytes is None:
            nbytes = 0
            for view in (*reads, *writes):
                nbytes = nbytes + view.size * (view.element.bits // 8)
        guess = max(hint(flops) / GUESS_FLOPS_PER_NS, hint(nbytes) / GUESS_BYTES_PER_NS)
        step = Step(
            spec,
            dict(words),
            tiles,
            self.node,
            tuple(dict.fromkeys(v.buffer for v in reads)),
            tuple(dict.fromkeys(v.buffer for v in writes)),
            parallel and guess > PARALLEL_NS,
            flops,
            nbytes,
            # Memory that is read in a second way too must stay as it is until the step ends.
            tuple((a.buffer, b.buffer) for a, b in in_place if sum(v.buffer is a.buffer for v in reads) == 1),
            tactic or type(spec).__name__.lower(),
            ops or (self.node.op if self.node is not None else ""),
        )
        self.rows.append(step)
        return step

    @property
    def steps(self) -> list[Step]:
        """The rows that run kernels."""
        return [row for row in self.rows if isinstance(row, Step)]

    # Control

    def name(self, label: str) -> str:
        """A name for a number that rows are going to find out; no other name is like it."""
        self._names += 1
        return f"{label} #{self._names}"

    def is_open(self, value: Known) -> bool:
        """Whether the number is one that a run finds out."""
        return isinstance(value, Expr) and not value.names() <= self._symbols

    def undeclared(self, value: Value) -> dict[int, str]:
        """The axes of a value whose extents the rows must find out, with their names."""
        names = {axis: d.name for axis, d in enumerate(shape_of(value)) if isinstance(d, Expr)}
        return {
            axis: name for axis, name in names.items()
            if name is not None and name not in self._symbols and name not in self.bounds
        }  # fmt: skip

    def load(self, names: Mapping[str, tuple[View, Known | None]]) -> None:
        """Let names become the numbers that stand at the start of views, each with the most that it may be."""
        for name, (view, bound) in names.items():
            self.bounds[name] = bound
            self.rows.append(Load(name, address(view), view.element, self.node, (view.buffer,)))
        self.rows.append(Assign({}, tuple(names)))

    def assign(self, values: Mapping[str, Known], bound: Known | None = None) -> None:
        """Let names become the values of expressions, computed with what the names are before.

        The most that a new name may be is told by its expression, and by `bound` where given.
        """
        for name, value in values.items():
            if name not in self.bounds:
                most = upper(value, self.bounds)
                self.bounds[name] = most if bound is None else bound if most is None else minimum(most, bound)
        self.rows.append(Assign(dict(values)))

    def label(self, label: Label) -> None:
        """Let jumps to `label` go on with the next row."""
        self.rows.append(label)

    def jump(self, target: Label, unless: Known | None = None) -> None:
        """Go on at `target`, or only if `unless` is 0."""
        self.rows.append(Jump(target, unless))

    def refuse(self, reason: str) -> NotImplemented:
        """The error for a node that claimed to be lowered and cannot be: a defect of its claim."""
        return NotImplemented(
            "the CPU compiler cannot lower this node", node=self.node.label if self.node else None, found=reason
        )


def _without_ones(view: View) -> View:
    keep = [i for i, extent in enumerate(view.shape) if extent != 1]
    return View(view.buffer, tuple(view.shape[i] for i in keep), tuple(view.strides[i] for i in keep))


def shape_of(value: Value) -> tuple[Known, ...]:
    """The value's extents, all of which are known by now."""
    shape = value.shape
    assert shape is not None, f"{value.name} has no shape"
    assert all(d is not None for d in shape), f"{value.name} has an unknown extent: {value.type}"
    return tuple(d for d in shape if d is not None)


def dtype_of(value: Value) -> DType:
    """The value's element type."""
    assert isinstance(value.type, TensorType), f"{value.name} is no tensor"
    assert value.type.dtype is not None, f"{value.name} has no element type"
    return value.type.dtype


__all__ = ["Destination", "LowerEnv", "Lowering", "address", "dtype_of", "shape_of"]
