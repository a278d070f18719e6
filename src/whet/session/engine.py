"""Sessions and engines: the compiled form of a whole model on disk, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from whet.engine import EngineInfo, load_engine, save_engine
from whet.engine.container import digest_of
from whet.errors import InvalidArgument, NotImplemented
from whet.formats.onnx import load_model, release_pages
from whet.formats.onnx.source import open_source
from whet.graph import Graph, Model, Value
from whet.passes.base import PassReport
from whet.providers.base import CompileEnv
from whet.providers.cpu.executable import CpuExecutable
from whet.providers.partition import NodePlacement, Placement
from whet.session.executor import Executor
from whet.session.prepare import Compiled, Interface, Loaded, LoadSettings, Source

CPU = "CPUExecutionProvider"

_WORDS = ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version", "metadata")
"""What a model says about itself, as fields of `Model`."""


def model_digest(source: Source, settings: LoadSettings) -> str:
    """A digest of a model's file or bytes, and of the files with its external data."""
    opened = open_source(source)
    own = digest_of([opened.data])
    release_pages(opened.data.obj)
    model = load_model(
        source, settings.limits, initializers=settings.initializers, folder=settings.folder, files=settings.files
    )
    constants = (v.data for g in model.graph.all_graphs() for v in g.constants() if v.data is not None)
    owners = {id(data.mapping): data.mapping for data in constants if data.mapping is not None}
    parts = []
    for owner in owners.values():
        parts.append(digest_of([memoryview(owner).cast("B")]))  # type: ignore[arg-type]
        release_pages(owner)
    return digest_of([text.encode() for text in (own, *sorted(set(parts) - {own}))])


def save(compiled: Compiled, source: Source, settings: LoadSettings, path: str | os.PathLike[str]) -> None:
    """Write the engine of a compiled model.

    Raises NotImplemented where a part of the model does not run as machine code of the CPU provider.
    """
    interface, model = compiled.loaded.interface, compiled.loaded.model
    executable = compiled.executor.only_part()
    if not isinstance(executable, CpuExecutable):
        raise NotImplemented(
            "only a model that is one part on the CPU provider becomes an engine", file=os.fspath(path),
            found=compiled.placement.summary(), expected=f"all nodes on {CPU}",
        )  # fmt: skip
    info = EngineInfo(
        model_digest=model_digest(source, settings),
        inputs=interface.inputs,
        outputs=interface.outputs,
        nodes=[(node.node, node.op) for node in compiled.placement.nodes],
        description={
            **{name: getattr(model, name) for name in _WORDS},
            "graph": model.graph.name,
            "graph_doc": model.graph.doc_string,
        },
    )
    save_engine(executable, info, path)


def load(
    path: str, environment: Callable[[Sequence[Value], str | None], CompileEnv], settings: LoadSettings,
    model: str | None,
) -> Compiled:  # fmt: skip
    """The compiled model in an engine. `model`: the file that it must have been made of."""
    if settings.dims_by_name or settings.dims_by_denotation or settings.initializers or settings.custom_ops:
        raise InvalidArgument(
            "an engine is loaded as it was saved: it takes no other extents, initializers or operators", file=path
        )
    digest = None if model is None else model_digest(model, settings)
    found = load_engine(path, lambda inputs: environment(inputs, path), digest)
    info = found.info
    words: dict[str, Any] = {name: info.description[name] for name in _WORDS}
    graph = Graph(info.description["graph"])
    graph.doc_string = info.description["graph_doc"]
    inputs, outputs = tuple(info.inputs), tuple(info.outputs)
    placement = Placement(
        tuple(NodePlacement(label, op, CPU, 0) for label, op in info.nodes),
        ((CPU, len(info.nodes)),),
        (),
        (f"loaded from the engine {path}",),
    )
    loaded = Loaded(replace(_empty_model(graph), **words), Interface(inputs, outputs, ()), PassReport())
    executor = Executor(inputs, outputs, [(found.executable, inputs, outputs)])
    return Compiled(loaded, [], placement, executor)


def _empty_model(graph: Graph) -> Model:
    return Model(graph=graph, opset_imports={})
