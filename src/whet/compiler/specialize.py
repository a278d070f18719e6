"""Specializations: a graph with its structural values as constants and its free extents as symbols, ready to lower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whet.compiler.claim import is_decided_at_run
from whet.compiler.extents import name_extents
from whet.compiler.structural import structural_inputs
from whet.compiler.weights import Array
from whet.config import Limits
from whet.errors import NotImplemented
from whet.graph import Expr, Graph, Model, TensorType, Value
from whet.graph.copy import copy_model
from whet.graph.dims import Dim, symbol
from whet.passes.base import PassDriver, Pipeline, Repeat
from whet.passes.basic.branches import BranchInlining
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.fold import ConstantFolding
from whet.passes.basic.propagate import ShapePropagation

SETTLE: Pipeline = (
    ShapePropagation(),
    # Branches first: what a branch that is not taken holds may make no sense with the extents at hand.
    Repeat((BranchInlining(), DeadCode(), ConstantFolding(), ShapePropagation())),
    DeadCode(),
)
"""What makes structural values disappear: folded shapes, branches taken, nothing that nobody reads."""

Extent = tuple[int, int]
"""An input and one of its axes."""


@dataclass(frozen=True, slots=True)
class Specialized:
    """A graph whose every extent is a number or an expression over `symbols`."""

    model: Model
    symbols: tuple[str, ...]
    sources: tuple[Extent, ...]
    """Where a run finds each symbol's number."""

    @property
    def graph(self) -> Graph:
        return self.model.graph


class Specializer:
    """Makes the specializations of one graph. `structural` are the inputs whose elements a specialization holds."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self.inputs = tuple(model.graph.inputs)
        self.structural = structural_inputs(model.graph, lambda node: is_decided_at_run(node, model.graph.inputs))

    @property
    def constant_bytes(self) -> int:
        """Bytes of the graph's constants and its subgraphs', which all specializations are made from."""
        values = [value for graph in self._model.graph.all_graphs() for value in graph.constants()]
        return sum({id(v.data): v.data.nbytes for v in values if v.data is not None}.values())

    def specialize(self, values: Mapping[int, Array], shapes: Sequence[tuple[int, ...]] | None = None) -> Specialized:
        """The graph for these structural values (by input), with free extents, or those of `shapes` where given.

        Raises NotImplemented naming a value whose extents stay unknown.
        """
        model = copy_model(self._model)
        graph = model.graph
        free = _free_names(graph)
        # Branches that need not wait are taken, whatever the passes before have left.
        changed = bool(values) or shapes is not None or any(True for node in graph for _ in node.subgraphs())
        symbols: dict[str, Extent] = {}
        for index, value in enumerate(graph.inputs):
            changed |= _name_extents(value, index, symbols, free, None if shapes is None else shapes[index])
        for index, array in values.items():
            _fix(graph.inputs[index], array)
        changed |= _forget(graph, set(symbols))
        if changed:
            PassDriver(model, self._limits).run(SETTLE)
        name_extents(graph)
        _check(graph)
        return Specialized(model, tuple(symbols), tuple(symbols.values()))


def _free_names(graph: Graph) -> set[str]:
    """Names that stand alone as an extent of some input."""
    names = set()
    for value in graph.inputs:
        for dim in value.shape or ():
            if isinstance(dim, Expr) and dim.name is not None:
                names.add(dim.name)
    return names


def _name_extents(
    value: Value, index: int, symbols: dict[str, Extent], free: set[str], shape: tuple[int, ...] | None
) -> bool:
    """Give every free extent of an input a symbol or, with `shape`, its number; whether that changed its type."""
    kind = value.type
    if not isinstance(kind, TensorType) or kind.shape is None:
        return False
    dims: list[Dim] = []
    for axis, dim in enumerate(kind.shape):
        if shape is not None:
            dims.append(shape[axis])
        elif isinstance(dim, int):
            dims.append(dim)
        elif isinstance(dim, Expr) and dim.name is not None:
            symbols.setdefault(dim.name, (index, axis))
            dims.append(dim)
        elif isinstance(dim, Expr) and dim.names() <= free:
            dims.append(dim)
        else:
            name = f"input {index} axis {axis}"
            symbols[name] = (index, axis)
            dims.append(symbol(name))
    value.type = TensorType(kind.dtype, tuple(dims), kind.sparse)
    return tuple(dims) != kind.shape


def _forget(graph: Graph, symbols: set[str]) -> bool:
    """Take out of all types the extents that are written in names that no run sets; whether there were any."""

    def foreign(dim: Dim) -> bool:
        return isinstance(dim, Expr) and not dim.names() <= symbols

    found = False
    for inner in graph.all_graphs():
        own_inputs = () if inner is graph else inner.inputs
        for value in (*own_inputs, *(v for node in inner for v in node.outputs)):
            kind = value.type
            if isinstance(kind, TensorType) and kind.shape is not None and any(map(foreign, kind.shape)):
                dims = tuple(None if foreign(d) else d for d in kind.shape)
                value.type = TensorType(kind.dtype, dims, kind.sparse)
                found = True
            if value.symbolic is not None and any(map(foreign, value.symbolic)):
                value.symbolic = None
                found = True
    return found


def _fix(value: Value, array: Array) -> None:
    """Let every reader of an input read a constant instead; the input itself stays."""
    constant = Value.constant(f"{value.name} (structural)", np.array(array))
    for node in list(value.uses):
        node.replace_input(value, constant)


def _check(graph: Graph) -> None:
    for inner in graph.all_graphs():
        for value in (*(v for node in inner for v in node.outputs if v.use_count), *inner.outputs):
            shape = value.shape
            if shape is None or any(d is None for d in shape):
                raise NotImplemented(
                    "an extent stays unknown until the model runs",
                    node=value.producer.label if value.producer is not None else None,
                    value=value.name,
                    found=str(value.type),
                )
