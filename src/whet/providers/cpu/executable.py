"""A compiled subgraph on the CPU: specializations by structural value, plans by class of extents, contexts by run."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.codegen.cache import ObjectCache
from whet.codegen.target import host_target
from whet.compiler.assemble import Blueprint
from whet.compiler.compile import compile_graph
from whet.compiler.link import Linked, Linker
from whet.compiler.lowering import LowerEnv, dtype_of
from whet.compiler.specialize import Specialized, Specializer
from whet.errors import Fail, InvalidArgument, NotImplemented, RuntimeException, Terminated
from whet.kernels.base import BAD_VALUE, EXTENT_MISMATCH, INDEX_OUT_OF_BOUNDS, STATUS_CODE_BITS
from whet.providers.base import CompileEnv, ProfileEvent, RunState, Subgraph
from whet.runtime import program as p
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.loaded import LoadedProgram
from whet.runtime.values import RuntimeValue, Tensor

SPECIALIZATIONS = 16
"""Sets of structural values (and, where branches depend on extents, of shapes) that keep their program."""
PLANS = 16
"""Classes of extents that keep their memory plan, per specialization."""

_linker = Linker(ObjectCache(), workers=core_budget())


@dataclass(slots=True, eq=False)
class Plan:
    """A loaded program for a class of extents."""

    loaded: LoadedProgram
    blueprint: Blueprint


class Specialization:
    """The program of one set of structural values, and its plans."""

    def __init__(self, specialized: Specialized, env: LowerEnv) -> None:
        self.blueprint = compile_graph(specialized, env)
        self.sources = specialized.sources
        linked, self.link_report = _linker.link(self.blueprint.codes, env.target)
        self._linked: list[Linked] = linked
        self.dtypes = tuple(dtype_of(v) for v in specialized.graph.outputs)
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._weights = [int(w.array.ctypes.data) for w in self.blueprint.weights]
        self._measure = None if self.blueprint.is_static else self._load(self.blueprint.program)
        self.static_plan = self._make(()) if self.blueprint.is_static else None

    def _load(self, program: p.Program) -> LoadedProgram:
        return LoadedProgram(program, [k.address for k in self._linked], self._weights, self)

    def _make(self, symbols: tuple[int, ...]) -> Plan:
        if self._measure is None:
            slots: Any = self.blueprint.program.slots
        else:
            context = RunContext(self._measure, 1)
            context.prepare(symbols)
            slots = context._slots
        return Plan(self._load(self.blueprint.lay_out(slots)), self.blueprint)

    def plan(self, symbols: tuple[int, ...], exact: bool = False) -> Plan:
        """The plan for a run's extents: that of their power-of-two class, or of these very extents with `exact`."""
        if self.static_plan is not None:
            return self.static_plan
        key = symbols if exact else tuple(1 << max(n - 1, 0).bit_length() for n in symbols)
        with self._lock:
            found = self._plans.get(key)
            if found is not None:
                self._plans.move_to_end(key)
                return found
        made = self._make(key)
        with self._lock:
            made = self._plans.setdefault(key, made)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return made


class Context:
    """A run context with what Python remembers of its last run."""

    __slots__ = ("native", "plan", "shapes", "symbols")

    def __init__(self, native: RunContext, plan: Plan) -> None:
        self.native = native
        self.plan = plan
        self.symbols: tuple[int, ...] | None = None
        self.shapes: list[tuple[int, ...]] = []


class CpuExecutable:
    """Runs one subgraph as machine code. Thread-safe: each run owns a context."""

    def __init__(self, subgraph: Subgraph, env: CompileEnv) -> None:
        self._env = env
        self._threads = env.intra_op_threads or core_budget()
        self._specializer = Specializer(subgraph.model, env.limits)
        self._lower_env = LowerEnv(host_target(), env.limits, env.goal)
        self._structural = self._specializer.structural
        self._by_shape = self._specializer.needs_extents
        self._lock = threading.Lock()
        self._specializations: OrderedDict[Any, Specialization] = OrderedDict()
        self._free: deque[Context] = deque()
        self._only: Specialization | None = None
        if not self._structural and not self._by_shape:
            try:
                self._only = self._specialize((), {}, None)
            except NotImplemented:
                # Something depends on the extents in a way that no expression holds: a program for each shape then.
                if not self._has_free_extents():
                    raise
                self._by_shape = True

    def _has_free_extents(self) -> bool:
        inputs = self._specializer.inputs
        return any(not isinstance(dim, int) for value in inputs for dim in value.shape or ())

    def _specialize(self, key: Any, values: dict[int, Any], shapes: Any) -> Specialization:
        made = Specialization(self._specializer.specialize(values, shapes), self._lower_env)
        with self._lock:
            self._specializations[key] = made
            while len(self._specializations) > SPECIALIZATIONS:
                self._specializations.popitem(last=False)
        return made

    def _specialization(self, arrays: Sequence[Any]) -> Specialization:
        if self._only is not None:
            return self._only
        values = {i: arrays[i] for i in self._structural}
        shapes = tuple(a.shape for a in arrays) if self._by_shape else None
        key = (tuple((a.shape, a.tobytes()) for a in values.values()), shapes)
        with self._lock:
            found = self._specializations.get(key)
            if found is not None:
                self._specializations.move_to_end(key)
                return found
        try:
            return self._specialize(key, values, shapes)
        except NotImplemented:
            if shapes is not None or not self._has_free_extents():
                raise
            self._by_shape = True
        return self._specialization(arrays)

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """The subgraph's outputs, in memory of their own."""
        arrays = [_plain(value) for value in inputs]
        specialization = self._specialization(arrays)
        symbols = tuple([arrays[i].shape[axis] for i, axis in specialization.sources])
        context = self._context(specialization, symbols)
        try:
            outputs = [
                np.empty(shape, dtype.numpy)
                for shape, dtype in zip(context.shapes, specialization.dtypes, strict=True)
            ]
            outcome = context.native.run(
                [a.__array_interface__["data"][0] for a in arrays],
                [a.__array_interface__["data"][0] for a in outputs],
            )
            if outcome != p.DONE:
                raise self._failure(context, outcome, state)
        finally:
            self._free.append(context)
        return [Tensor.from_numpy(a, dtype) for a, dtype in zip(outputs, specialization.dtypes, strict=True)]

    def _context(self, specialization: Specialization, symbols: tuple[int, ...]) -> Context:
        """A free context that is prepared for a run with these extents."""
        plan = specialization.plan(symbols)
        context = self._take(plan)
        if context.symbols == symbols and context.plan is plan:
            return context
        if context.native.prepare(symbols) != p.DONE:
            # An extent that shrinks where others grow: the class's largest run is not this class's largest memory.
            plan = specialization.plan(symbols, exact=True)
            context.native.rebind(plan.loaded)
            context.plan = plan
            if context.native.prepare(symbols) != p.DONE:
                raise Fail("a program does not fit the extents that it was planned for", found=symbols)
        context.symbols = symbols
        context.shapes = [
            tuple(context.native.slot(slot) for slot in dims) for dims in plan.blueprint.output_dims
        ]
        return context

    def _take(self, plan: Plan) -> Context:
        try:
            context = self._free.pop()
        except IndexError:
            return Context(RunContext(plan.loaded, self._threads), plan)
        if context.plan is not plan:
            context.native.rebind(plan.loaded)
            context.plan, context.symbols = plan, None
        return context

    def _failure(self, context: Context, outcome: int, state: RunState) -> Exception:
        if outcome in (p.CANCELLED, p.LATE):
            state.check()
            return Terminated("the run was stopped")
        if outcome != p.KERNEL_FAILED:
            return Fail("the native executor refused a program", found=outcome)
        program = context.plan.loaded.program
        row = context.native.failed_row
        node = program.nodes[int(program.rows[row, 5])]
        status = context.native.failed_status
        code, element = status & ((1 << STATUS_CODE_BITS) - 1), status >> STATUS_CODE_BITS
        if code == INDEX_OUT_OF_BOUNDS:
            return InvalidArgument(
                "an index lies outside its axis", node=node, found=f"the index at position {element}"
            )
        if code == BAD_VALUE:
            return InvalidArgument("an operand holds a value that is not allowed", node=node,
                                   found=f"the element at position {element}")  # fmt: skip
        if code == EXTENT_MISMATCH:
            return InvalidArgument("the extents of the operands do not fit", node=node, found=f"an extent of {element}")
        return RuntimeException("a kernel failed", node=node, found=f"status {code} at {element}")


def _plain(value: RuntimeValue) -> Any:
    """The value's array in C order, native and aligned."""
    assert isinstance(value, Tensor)
    array = value.numpy()
    if not array.flags.carray and not array.flags.c_contiguous or not array.flags.aligned:
        array = np.array(array, order="C")
    return array


__all__ = ["CpuExecutable", "ProfileEvent"]
