"""From a model's bytes to something that runs: load, optimize, place, compile. Each stage is a plain function."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import EPFail, InvalidArgument, NotImplemented, did_you_mean
from whet.formats.onnx import load_model
from whet.graph import Graph, Model, TensorData, TensorType, Value, extract
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
    model = load_model(source, settings.limits, as_inputs=settings.as_inputs)
    _replace_initializers(model, settings.initializers)
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
        Value(name, declared_type if _says_something(declared_type) else value.type)
        for (name, declared_type), value in zip(declared, model.graph.outputs, strict=True)
    )
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
    return Compiled(loaded, parts, placement, executor)


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


def _says_something(declared: object) -> bool:
    return declared is not None and not (isinstance(declared, TensorType) and declared.shape is None)


def _override_dims(model: Model, settings: LoadSettings) -> None:
    """Replace free dimensions by name or denotation. Raises InvalidArgument for a name that no input has."""
    by_name = dict(settings.dims_by_name)
    unknown = set(by_name)
    for value in model.graph.inputs:
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            continue
        denotations = model.denotations.get(value.name, ())
        shape: list[Dim] = []
        for axis, dim in enumerate(value.type.shape):
            denotation = denotations[axis] if axis < len(denotations) else ""
            new = dim
            if isinstance(dim, Expr):
                unknown -= dim.names()
                new = dim.substitute(by_name)
            if not isinstance(new, int) and denotation in settings.dims_by_denotation:
                new = settings.dims_by_denotation[denotation]
            shape.append(new)
        value.type = TensorType(value.type.dtype, tuple(shape), value.type.sparse)
    if unknown:
        names = {n for v in model.graph.inputs for d in v.shape or () if isinstance(d, Expr) for n in d.names()}
        raise InvalidArgument(
            "a free dimension override names no dimension of the model's inputs",
            value=", ".join(sorted(unknown)),
            expected=", ".join(sorted(names)) or "a model with free dimensions",
        )


def _replace_initializers(model: Model, replacements: Mapping[str, TensorData]) -> None:
    """Give initializers other contents. Raises InvalidArgument for a name or a type that does not fit."""
    if not replacements:
        return
    constants = {v.name: v for g in model.graph.all_graphs() for v in (*g.constants(), *g.overridable)}
    for name, data in replacements.items():
        value = constants.get(name)
        if value is None or value.data is None:
            raise InvalidArgument("the model has no such initializer", value=name, hint=did_you_mean(name, constants))
        if (data.dtype, data.shape) != (value.data.dtype, value.data.shape):
            raise InvalidArgument("an initializer has the wrong type", value=name, found=data, expected=value.data)
        value.data = data
