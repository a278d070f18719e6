"""The program of one set of structural values, and its memory plans by class of extents."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from whet.codegen.cache import ObjectCache
from whet.compiler.assemble import Blueprint
from whet.compiler.compile import compile_graph
from whet.compiler.link import Linked, Linker
from whet.compiler.lowering import LowerEnv, dtype_of
from whet.compiler.samples import batch_symbol
from whet.compiler.specialize import Specialized
from whet.errors import ResourceExhausted
from whet.graph import Graph
from whet.providers.cpu.batches import Batches
from whet.providers.cpu.plan import PLANS, Form, Plan
from whet.runtime import program as p
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.loaded import LoadedProgram
from whet.runtime.program import Table

_linker = Linker(ObjectCache(), workers=core_budget())


class Specialization:
    """A blueprint whose kernels are in memory, with a plan for each class of extents that runs ask for."""

    def __init__(self, blueprint: Blueprint, linked: Sequence[Linked], form: Form) -> None:
        self.blueprint = blueprint
        self.form = form
        self.sources, self.dtypes = form.sources, form.dtypes
        self.linked = tuple(linked)
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[bool, tuple[int, ...]], Plan] = OrderedDict()
        """By whether it is for these very extents, and the largest extents that it is for."""
        self._prepared: list[tuple[tuple[int, ...], tuple[int, ...], Plan]] = []
        """(least, most, plan) of the ranges that were asked for."""
        self._weights = [int(w.array.ctypes.data) for w in blueprint.weights]
        self.batches = None if form.batch is None else Batches(form.batch)
        """Set where a batch may be run a sample at a time."""
        self._measure = None if blueprint.is_static else self._load(blueprint.program)
        self.static_plan = self._make((), ()) if blueprint.is_static else None

    def _load(self, program: p.Program) -> LoadedProgram:
        # Code and weights themselves, not this object: it holds its programs, and a circle outlives its last holder.
        keep = (self.linked, self.blueprint.weights)
        return LoadedProgram(program, [k.address for k in self.linked], self._weights, keep)

    def _make(self, least: tuple[int, ...], most: tuple[int, ...]) -> Plan:
        if self.blueprint.wraps(list(zip(least, most, strict=True))):
            # A size would come out as one that fits.
            raise ResourceExhausted("the extents are too large to compute with", found=most)
        if self._measure is None:
            slots: Any = self.blueprint.program.slots
        else:
            slots = self.slots(most)
        return Plan.of(self._load(self.blueprint.lay_out(slots)), self.blueprint)

    def slots(self, symbols: tuple[int, ...]) -> Table:
        """The slots of a run of these extents."""
        assert self._measure is not None
        context = RunContext(self._measure, 1)
        context.prepare(symbols)
        return context.slots

    def prepare(self, least: tuple[int, ...], most: tuple[int, ...]) -> Plan:
        """The plan for all extents from `least` to `most`, which stays for good."""
        if self.static_plan is not None:
            return self.static_plan
        made = self._make(least, most)
        with self._lock:
            self._prepared.append((least, most, made))
        return made

    def plan(self, symbols: tuple[int, ...], exact: bool = False) -> Plan:
        """The plan for a run's extents: a prepared one that covers them, or else that of their power-of-two class.

        With `exact`, and where the class's memory would pass its limit, that of these very extents.
        """
        if self.static_plan is not None:
            return self.static_plan
        if not exact:
            for least, most, plan in self._prepared:
                if all(a <= n <= b for a, n, b in zip(least, symbols, most, strict=True)):
                    return plan
        most = tuple(1 << max(n - 1, 0).bit_length() for n in symbols)
        with self._lock:
            for known in ((True, symbols),) if exact else ((False, most), (True, symbols)):
                found = self._plans.get(known)
                if found is not None:
                    self._plans.move_to_end(known)
                    return found
        try:
            made = self._make(symbols, symbols) if exact else self._make((0,) * len(symbols), most)
        except ResourceExhausted:
            if exact:
                raise
            return self.plan(symbols, exact=True)
        with self._lock:
            made = self._plans.setdefault((exact, symbols if exact else most), made)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return made

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of all plans."""
        with self._lock:
            plans = [*self._plans.values(), *(plan for _, _, plan in self._prepared)]
        if self.static_plan is not None:
            plans.append(self.static_plan)
        return sum(plan.loaded.nbytes for plan in plans) + (self._measure.nbytes if self._measure is not None else 0)


def compile_specialization(specialized: Specialized, env: LowerEnv) -> Specialization:
    """Compile a specialized graph and link its kernels."""
    graph = specialized.graph
    blueprint = compile_graph(specialized, env, _linker.describe)
    linked, _ = _linker.link(blueprint.codes, env.target)
    form = Form(
        specialized.sources,
        tuple(v.name for v in graph.inputs),
        tuple(v.name for v in graph.outputs),
        tuple(dtype_of(v) for v in graph.outputs),
        batch_symbol(specialized) if not blueprint.open_outputs and _whole_bytes(graph) else None,
    )
    return Specialization(blueprint, linked, form)


def _whole_bytes(graph: Graph) -> bool:
    """Whether each sample of every input and result starts at a byte of its own."""
    return all(dtype_of(v).bits % 8 == 0 for v in (*graph.inputs, *graph.outputs))
