"""From compiled executables to an engine on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whet.codegen.cache import ObjectCache
from whet.codegen.compiler import compile_sources
from whet.codegen.target import host_target
from whet.compiler.weights import ALIGNMENT, Array
from whet.engine.container import Part, write
from whet.engine.fields import machine_fields
from whet.engine.notation import write_value
from whet.engine.tables import TableWriter, write_blueprint
from whet.errors import NotImplemented
from whet.graph import Value
from whet.kernels.base import KernelCode
from whet.providers.cpu.executable import CpuExecutable
from whet.providers.cpu.specialization import Specialization


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of the model that it was made of."""

    model_digest: str
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    nodes: Sequence[tuple[str, str]]
    """Label and operator of each node, for the placement report."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """The model's own words about itself; must be JSON."""


def save_engine(executable: CpuExecutable, info: EngineInfo, path: str | os.PathLike[str]) -> None:
    """Write an engine: the programs of this moment, their objects and packed weights.

    Raises NotImplemented where nothing has been compiled yet, Fail where the folder is not private.
    """
    stored = executable.stored()
    if not stored.specializations:
        raise NotImplemented(
            "nothing has been compiled yet: the programs of this model depend on its inputs", file=os.fspath(path),
            hint="Run the model once for each kind of inputs before the engine is saved.",
        )  # fmt: skip
    tables, weights, codes = TableWriter(), _Weights(), {}
    programs = []
    for key, specialization in stored.specializations.items():
        if not specialization.blueprint.codes and specialization.blueprint.program.kernels:
            raise NotImplemented("an engine is not saved again: copy its file", file=os.fspath(path))
        codes.update({code.symbol: code for code in specialization.blueprint.codes})
        programs.append(_program(key, specialization, tables, weights))
    objects = _objects(list(codes.values()))
    document = {
        "inputs": [write_value(v) for v in info.inputs],
        "outputs": [write_value(v) for v in info.outputs],
        "nodes": list(info.nodes),
        "description": dict(info.description),
        "structural": stored.structural,
        "by_shape": stored.by_shape,
        "programs": programs,
        "objects": [len(data) for data in objects],
        "weights": weights.places,
    }
    sections: dict[str, Sequence[Part]] = {
        "document": [json.dumps(document).encode()],
        "tables": [_bytes(table) for table in tables.parts],
        "code": objects,
        "weights": weights.parts,
    }
    write(Path(path), (*machine_fields(host_target()), ("model", info.model_digest)), sections)


def _program(key: Any, specialization: Specialization, tables: TableWriter, weights: _Weights) -> dict[str, Any]:
    form, blueprint = specialization.form, specialization.blueprint
    return {
        "key": None if key == () else [[[shape, data.hex()] for shape, data in key[0]], key[1]],
        "sources": form.sources,
        "input_names": form.input_names,
        "output_names": form.output_names,
        "dtypes": [d.name for d in form.dtypes],
        "batch": form.batch,
        "weights": [weights.add(w.array) for w in blueprint.weights],
        "blueprint": write_blueprint(blueprint, tables),
    }


def _objects(codes: Sequence[KernelCode]) -> list[bytes]:
    return compile_sources([code.source for code in codes], ObjectCache())


class _Weights:
    """Collects arrays, each once, at aligned places with room behind them for reads of whole registers."""

    def __init__(self) -> None:
        self.places: list[dict[str, Any]] = []
        self.parts: list[Part] = []
        self._size = 0
        self._known: dict[int, int] = {}

    def add(self, array: Array) -> int:
        """The number of the array."""
        found = self._known.get(id(array))
        if found is None:
            found = self._known[id(array)] = len(self.places)
            self.places.append({"at": self._size, "bytes": array.nbytes})
            padding = -array.nbytes % ALIGNMENT + ALIGNMENT
            self.parts += [_bytes(array), bytes(padding)]
            self._size += array.nbytes + padding
        return found


def _bytes(array: Array) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
