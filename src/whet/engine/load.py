"""From an engine on disk to an executable: nothing is compiled and no weight is packed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whet.codegen.jit import Library
from whet.codegen.target import host_target
from whet.compiler.link import Linked
from whet.compiler.weights import Weight
from whet.engine.container import read
from whet.engine.fields import machine_fields
from whet.engine.notation import dtype_named, read_value
from whet.engine.save import EngineInfo
from whet.engine.tables import read_blueprint
from whet.graph import Value
from whet.providers.base import CompileEnv
from whet.providers.cpu.executable import CpuExecutable, Stored
from whet.providers.cpu.plan import Form
from whet.providers.cpu.specialization import Specialization
from whet.runtime.program import Table


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An executable with what its engine says of its model."""

    executable: CpuExecutable
    info: EngineInfo


def load_engine(
    path: str | os.PathLike[str], environment: Callable[[Sequence[Value]], CompileEnv], model_digest: str | None = None
) -> LoadedEngine:
    """The engine in a file, mapped, for an environment that may depend on the model's inputs.

    `model_digest`: that of the model that it must have been made of. Raises NoSuchFile, and Fail for an engine that is
    not private, not whole, or made for another machine, version or model, naming what differs.
    """
    target = host_target()
    expected = machine_fields(target)
    if model_digest is not None:
        expected = (*expected, ("model", model_digest))
    fields, sections = read(Path(path), expected)
    document: dict[str, Any] = json.loads(bytes(sections["document"]))
    numbers: Table = np.frombuffer(sections["tables"], np.int64)
    inputs = [read_value(v) for v in document["inputs"]]
    env = environment(inputs)
    library = Library(_split(sections["code"], document["objects"]), target)
    weights = [Weight(_array(sections["weights"], place)) for place in document["weights"]]
    limit = env.limits.tensor_bytes
    programs = {}
    for entry in document["programs"]:
        blueprint = read_blueprint(entry["blueprint"], numbers, [weights[i] for i in entry["weights"]], limit)
        form = Form(
            tuple((i, axis) for i, axis in entry["sources"]),
            tuple(entry["input_names"]),
            tuple(entry["output_names"]),
            tuple(dtype_named(name) for name in entry["dtypes"]),
            entry["batch"],
        )
        linked = [Linked(library.address(symbol), library) for symbol in blueprint.program.kernels]
        programs[_key(entry["key"])] = Specialization(blueprint, linked, form)
    stored = Stored(tuple(document["structural"]), bool(document["by_shape"]), programs)
    info = EngineInfo(
        model_digest=fields["model"],
        inputs=inputs,
        outputs=[read_value(v) for v in document["outputs"]],
        nodes=[(label, op) for label, op in document["nodes"]],
        description=document["description"],
    )
    return LoadedEngine(CpuExecutable.from_stored(stored, env), info)


def _key(content: Any) -> Any:
    if content is None:
        return ()
    values, shapes = content
    given = tuple((tuple(shape), bytes.fromhex(data)) for shape, data in values)
    return given, None if shapes is None else tuple(map(tuple, shapes))


def _split(section: memoryview, sizes: Sequence[int]) -> list[bytes]:
    objects, at = [], 0
    for size in sizes:
        objects.append(bytes(section[at : at + size]))
        at += size
    return objects


def _array(section: memoryview, place: dict[str, Any]) -> Any:
    return np.frombuffer(section, np.uint8, count=place["bytes"], offset=place["at"])
