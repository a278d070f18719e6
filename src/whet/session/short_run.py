"""The short way through a session: arrays that fit as they are, to a part that takes arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from whet.graph import Expr, TensorType, Value
from whet.providers.base import RunState
from whet.runtime.values import Array
from whet.session.executor import Executor

SELECTIONS = 64
"""Lists of output names that are remembered."""


class _TakesArrays(Protocol):
    def run_plain(self, arrays: Sequence[Array], state: RunState | None = None) -> list[Array]: ...


class ShortRun:
    """Runs a model that is one part from a feed of plain arrays.

    Feeds before the first checked run, and those that are anything but C-ordered native arrays of the right types and
    extents, are left to the session: `run` returns None for them.
    """

    __slots__ = ("_count", "_fixed", "_inputs", "_names", "_ranks", "_run", "_same", "_selections", "_shapes")

    def __init__(
        self, run: Callable[[Sequence[Array], RunState | None], list[Array]], inputs: Sequence[Value],
        names: Sequence[str],
    ) -> None:  # fmt: skip
        self._run = run
        self._inputs = tuple(
            (v.name, v.type.dtype.numpy) for v in inputs if isinstance(v.type, TensorType) and v.type.dtype is not None
        )
        self._count = len(self._inputs)
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        self._ranks = [-1] * self._count
        self._fixed: list[tuple[int, int, int]] = []
        """(input, axis, extent) of extents that do not change."""
        self._same: list[tuple[int, int, int, int]] = []
        """(input, axis, another input, axis) of free extents that have one name."""
        self._tabulate(inputs)
        self._names = tuple(names)
        self._selections: dict[tuple[Any, ...], tuple[int, ...] | None] = {}

    def _tabulate(self, inputs: Sequence[Value]) -> None:
        first: dict[str, tuple[int, int]] = {}
        for index, value in enumerate(inputs):
            if value.shape is None or any(isinstance(d, Expr) and d.name is None for d in value.shape):
                continue  # such an input leaves new extents to the session's checks
            self._ranks[index] = len(value.shape)
            for axis, dim in enumerate(value.shape):
                if isinstance(dim, int):
                    self._fixed.append((index, axis, dim))
                elif isinstance(dim, Expr) and dim.name is not None:
                    before = first.setdefault(dim.name, (index, axis))
                    if before != (index, axis):
                        self._same.append((*before, index, axis))

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any], state: RunState | None) -> list[Array] | None:
        """The outputs of these names, or None where this call needs the session's checks."""
        if type(feed) is not dict or len(feed) != self._count:
            return None
        chosen = None
        if names and (chosen := self._chosen(names)) == ():
            return None
        arrays = []
        shapes = []
        for name, dtype in self._inputs:
            array = feed.get(name)
            if type(array) is not np.ndarray or (array.dtype is not dtype and array.dtype != dtype):
                return None
            flags = array.flags
            if not (flags.c_contiguous and flags.aligned):
                return None
            arrays.append(array)
            shapes.append(array.shape)
        given = tuple(shapes)
        if given != self._shapes:
            # New extents of an accepted rank: what else could be wrong with them is told by two short tables.
            if self._shapes is None or any(len(shape) != rank for shape, rank in zip(shapes, self._ranks, strict=True)):
                return None
            if any(given[i][axis] != extent for i, axis, extent in self._fixed):
                return None
            if any(given[i][axis] != given[j][other] for i, axis, j, other in self._same):
                return None
            self._shapes = given
        if state is not None:
            state.check()
        outputs = self._run(arrays, state)
        return outputs if chosen is None else [outputs[i] for i in chosen]

    def _chosen(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """The positions of these outputs; None for all in their order, nothing where the session must look."""
        if type(names) is not tuple and type(names) is not list:
            return ()
        key = tuple(names)
        try:
            return self._selections[key]
        except KeyError:
            pass
        except TypeError:
            return ()  # something that is no name
        known = self._names
        if any(name not in known for name in key) or len(set(key)) < len(key):
            return ()
        chosen = None if key == known else tuple(known.index(name) for name in key)
        if len(self._selections) < SELECTIONS:
            self._selections[key] = chosen
        return chosen

    def accept(self, feed: Mapping[str, Any]) -> None:
        """Remember the shapes of a feed that the session has checked and run."""
        found = [feed.get(name) for name, _ in self._inputs]
        if all(type(a) is np.ndarray for a in found):
            self._shapes = tuple(a.shape for a in found if a is not None)


def short_run(executor: Executor, inputs: Sequence[Value], names: Sequence[str]) -> ShortRun | None:
    """The short way through a compiled model, where there is one."""
    part = executor.only_part()
    if part is None or not hasattr(part, "run_plain"):
        return None
    if not all(isinstance(v.type, TensorType) and v.type.dtype is not None for v in inputs):
        return None
    return ShortRun(cast(_TakesArrays, part).run_plain, inputs, names)
