"""From a model's bytes to something that runs: load, optimize, place, compile. Each stage is a plain function."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import EPFail, InvalidArgument, NotImplemented, did_you_mean
from whet.formats.onnx import load_model, release_pages
from whet.graph import Graph, Model, TensorData, TensorType, Type, Value, extract
from whet.graph.dims import Dim, Expr
from whet.ops.custom import CustomOp
from whet.passes.base import PassDriver, PassReport
from whet.passes.pipeline import optimize
from whet.providers import catalog
from whet.providers.base import CompileEnv, ExecutionProvider, Level, Subgraph
from whet.providers.partition import Part, Placement, partition
from whet.session.executor import Executor

Source = str | bytes | os.PathLike[str]
ProviderList = Sequence[tuple[str, dict[str, str]]]


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What changes the graph between the file and the passes."""

    level: Level = "all"
    limits: Limits = DEFAULT_LIMITS
    as_inputs: frozenset[str] = frozenset()
    """Overridable initializers that this specialization takes as inputs."""
    dims_by_name: Mapping[str, int] = field(default_factory=dict)
    dims_by_denotation: Mapping[str, int] = field(default_factory=dict)
    initializers: Mapping[str, TensorData] = field(default_factory=dict)
    """Contents that initializers have in place of the file's."""
    folder: str | None = None
    """Where external data lies, in place of the model's own folder."""
    files: Mapping[str, memoryview] = field(default_factory=dict)
    """External files by location, held in memory."""
    disabled_passes: frozenset[str] = frozenset()
    custom_ops: Sequence[CustomOp] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """The names and types of a model's inputs, outputs and overridable initializers, as its file declares them."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    overridable: tuple[Value, ...]


@dataclass(slots=True)
class Loaded:
    """An optimized model, not yet placed."""

    model: Model
    interface: Interface
    report: PassReport


@dataclass(slots=True)
class Compiled:
    """A model that runs, with the account of how."""

    loaded: Loaded
    parts: list[Part]
    placement: Placement
    executor: Executor


def load(source: Source, settings: LoadSettings, *, stop_after: int | None = None) -> Loaded:
    """Load a model and run the passes of its level (only the first `stop_after` patches, for bisection)."""
    model = load_model(
        source,
        settings.limits,
        as_inputs=settings.as_inputs,
        initializers=settings.initializers,
        folder=settings.folder,
        files=settings.files,
    )
    _override_dims(model, settings)
    declared = [(v.name, v.type) for v in model.graph.outputs]
    report = optimize(
        model,
        settings.level,
        limits=settings.limits,
        stop_after=stop_after,
        disabled=settings.disabled_passes,
        custom={op.op: op.infer for op in settings.custom_ops if op.infer is not None},
    )
    outputs = tuple(
        Value(name, _merged(declared_type, value.type))
        for (name, declared_type), value in zip(declared, model.graph.outputs, strict=True)
    )
    for value, stated in zip(model.graph.outputs, outputs, strict=True):
        # A saved model must state its outputs' ranks, also where inference knows less than the file.
        if value.type is None or (isinstance(value.type, TensorType) and value.type.shape is None):
            value.type = stated.type
    interface = Interface(tuple(model.graph.inputs), outputs, tuple(model.graph.overridable))
    return Loaded(model, interface, report)


def compile_model(
    loaded: Loaded, providers: Sequence[ExecutionProvider], env: CompileEnv, notes: Sequence[str] = ()
) -> Compiled:
    """Place every node and compile each provider's parts."""
    model = loaded.model
    parts, placement = partition(model, providers, notes)
    compiled = []
    for index, part in enumerate(parts):
        graph = extract(model.graph, part.nodes, part.inputs, part.outputs, f"{model.graph.name or 'graph'}_{index}")
        subgraph = Subgraph(graph, _around(model, graph), tuple(part.nodes))
        passes = part.provider.passes(env.level) if env.level == "all" else ()
        if passes:
            PassDriver(subgraph.model, env.limits).run(passes)
        compiled.append((part.provider.compile(subgraph, env), part.inputs, part.outputs))
    executor = Executor(model.graph.inputs, model.graph.outputs, compiled)
    _release(model.graph)
    return Compiled(loaded, parts, placement, executor)


def _release(graph: Graph) -> None:
    """Give back the memory of the model's file: providers hold what they need of it, mostly in forms of their own."""
    constants = (v.data for g in graph.all_graphs() for v in g.constants() if v.data is not None)
    owners = {id(data.mapping): data.mapping for data in constants}
    for owner in owners.values():
        release_pages(owner)


def make_providers(
    requested: ProviderList,
    custom_ops: Sequence[CustomOp],
    libraries: Sequence[str],
    *,
    allow_reference: bool,
    strict: bool,
) -> tuple[list[ExecutionProvider], list[str]]:
    """The providers of a session in order, and notes for the placement report.

    A provider that is not installed is an error, unless a later one of `requested` is there and `strict` is off: then
    a warning and a note. The reference provider is added last when `allow_reference`.
    """
    made: list[ExecutionProvider] = []
    notes: list[str] = []
    for index, (name, options) in enumerate(requested):
        catalog.check_name(name)
        if not catalog.is_available(name):
            later = [n for n, _ in requested[index + 1 :] if catalog.is_available(n)]
            if strict or not later:
                raise EPFail("the execution provider is not installed", found=name, hint=catalog.install_hint(name))
            note = f"{name} is not installed: its nodes go to {later[0]}. {catalog.install_hint(name)}"
            warnings.warn(note, UserWarning, stacklevel=5)
            notes.append(note)
            continue
        made.append(catalog.make(name, options, custom_ops, libraries))
    if allow_reference and not any(p.name == catalog.REFERENCE for p in made):
        made.append(catalog.make(catalog.REFERENCE, {}, custom_ops))
    return made, notes


def check_no_reference(placement: Placement, requested: ProviderList) -> None:
    """Raise NotImplemented when a node landed on the reference provider although the caller did not name it."""
    if any(name == catalog.REFERENCE for name, _ in requested):
        return
    for node in placement.nodes:
        if node.provider == catalog.REFERENCE:
            raise NotImplemented(
                "a node would run on the reference provider, which session.disable_cpu_ep_fallback forbids",
                node=node.node,
                found="; ".join(f"{name}: {reason}" for name, reason in node.refusals),
                expected=f"every node on {', '.join(n for n, _ in requested)}",
            )


def _around(model: Model, graph: Graph) -> Model:
    return Model(
        graph=graph,
        opset_imports=dict(model.opset_imports),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        metadata=dict(model.metadata),
        path=model.path,
        names=model.names,
    )


def _merged(declared: Type | None, inferred: Type | None) -> Type | None:
    """The file's own words for an output, with what inference adds: a missing type or shape, fixed extents."""
    if declared is None or not isinstance(declared, TensorType) or not isinstance(inferred, TensorType):
        return declared or inferred
    if declared.shape is None or inferred.shape is None or len(declared.shape) != len(inferred.shape):
        return inferred if declared.shape is None else declared
    shape = (i if isinstance(i, int) else d for d, i in zip(declared.shape, inferred.shape, strict=True))
    return TensorType(declared.dtype or inferred.dtype, tuple(shape), declared.sparse)


def _override_dims(model: Model, settings: LoadSettings) -> None:
    """Fix free dimensions by name or denotation, in all types that the model states.

    Raises InvalidArgument for a name or denotation that no input has.
    """
    by_name = dict(settings.dims_by_name)
    if not by_name and not settings.dims_by_denotation:
        return
    free: dict[str, None] = {}
    denoted: dict[str, None] = {}
    for value in model.graph.inputs:
        denotations = model.denotations.get(value.name, ())
        shape: list[Dim] = list(value.shape or ())
        for axis, dim in enumerate(shape):
            if isinstance(dim, Expr):
                free.update(dict.fromkeys(dim.names()))
            denotation = denotations[axis] if axis < len(denotations) else ""
            if not denotation:
                continue
            denoted[denotation] = None
            size = settings.dims_by_denotation.get(denotation)
            if size is None or isinstance(dim, int):
                continue
            shape[axis] = size
            # A named dimension has this size wherever the name stands.
            if isinstance(dim, Expr) and dim.name is not None:
                by_name.setdefault(dim.name, size)
        if isinstance(value.type, TensorType) and value.type.shape is not None:
            value.type = TensorType(value.type.dtype, tuple(shape), value.type.sparse)
    for wanted, known, what in (
        (settings.dims_by_name, free, "name"),
        (settings.dims_by_denotation, denoted, "denotation"),
    ):
        for name in wanted:
            if name not in known:
                raise InvalidArgument(
                    f"no input of the model has a free dimension of this {what}",
                    file=model.path,
                    value=name,
                    expected=", ".join(known) or "none",
                    hint=did_you_mean(name, known),
                )
    for graph in model.graph.all_graphs():
        for value in (*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)):
            if isinstance(value.type, TensorType) and value.type.shape is not None:
                fixed = tuple(d.substitute(by_name) if isinstance(d, Expr) else d for d in value.type.shape)
                value.type = TensorType(value.type.dtype, fixed, value.type.sparse)
