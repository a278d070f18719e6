"""What a specialization takes and gives, and its loaded program for a class of extents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whet.compiler.assemble import Blueprint
from whet.compiler.specialize import Extent
from whet.dtypes import DType
from whet.runtime.loaded import LoadedProgram
from whet.runtime.program import Table

PLANS = 16
"""Classes of extents that keep their memory plan, per specialization."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a specialization takes and gives."""

    sources: tuple[Extent, ...]
    """Where a run finds each symbol's number: an input and one of its axes."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dtypes: tuple[DType, ...]
    """Of the outputs."""
    batch: int | None = None
    """The symbol that counts samples which are computed apart (see `compiler.samples`)."""


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
