"""The program of one set of structural values, and its memory plans by class of extents."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.codegen.cache import ObjectCache
from whet.compiler.assemble import Blueprint
from whet.compiler.compile import compile_graph
from whet.compiler.link import Linked, Linker
from whet.compiler.lowering import LowerEnv, dtype_of
from whet.compiler.specialize import Extent, Specialized
from whet.dtypes import DType
from whet.errors import ResourceExhausted
from whet.runtime import program as p
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.loaded import LoadedProgram
from whet.runtime.program import Table

PLANS = 16
"""Classes of extents that keep their memory plan, per specialization."""

_linker = Linker(ObjectCache(), workers=core_budget())


@dataclass(frozen=True, slots=True)
class Form:
    """What a specialization takes and gives."""

    sources: tuple[Extent, ...]
    """Where a run finds each symbol's number: an input and one of its axes."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dtypes: tuple[DType, ...]
    """Of the outputs."""


@dataclass(slots=True, eq=False)
class Plan:
    """A loaded program for a class of extents."""

    loaded: LoadedProgram
    blueprint: Blueprint
    open_outputs: tuple[int, ...]
    """The outputs whose extents are known after a run only."""
    input_slots: Table
    """The slots of all inputs' extents, one behind the other."""
    output_slots: Table
    """The same of all outputs; of an open one, the slot of its most elements alone."""

    @classmethod
    def of(cls, loaded: LoadedProgram, blueprint: Blueprint) -> Plan:
        """What runs of a laid-out program need at hand."""
        outputs = (
            dims if bound is None else (bound,)
            for dims, bound in zip(blueprint.output_dims, blueprint.output_bounds, strict=True)
        )
        return cls(
            loaded,
            blueprint,
            blueprint.open_outputs,
            np.array([slot for dims in blueprint.input_dims for slot in dims], np.int64),
            np.array([slot for dims in outputs for slot in dims], np.int64),
        )


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
        self._measure = None if blueprint.is_static else self._load(blueprint.program)
        self.static_plan = self._make((), ()) if blueprint.is_static else None

    def _load(self, program: p.Program) -> LoadedProgram:
        return LoadedProgram(program, [k.address for k in self.linked], self._weights, self)

    def _make(self, least: tuple[int, ...], most: tuple[int, ...]) -> Plan:
        if self.blueprint.wraps(list(zip(least, most, strict=True))):
            # A size would come out as one that fits.
            raise ResourceExhausted("the extents are too large to compute with", found=most)
        if self._measure is None:
            slots: Any = self.blueprint.program.slots
        else:
            context = RunContext(self._measure, 1)
            context.prepare(most)
            slots = context.slots
        return Plan.of(self._load(self.blueprint.lay_out(slots)), self.blueprint)

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
    )
    return Specialization(blueprint, linked, form)
