"""Checks an optimized model against the unoptimized graph, and bisects a difference to the patch that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.errors import InvalidArgument
from whet.graph import Model, Value
from whet.passes.base import PassReport
from whet.providers.base import CompileEnv, ExecutionProvider, Level, RunState
from whet.session.feeds import FeedChecker
from whet.session.inference_session import InferenceSession
from whet.session.ortvalue import to_python
from whet.session.prepare import Interface, Loaded, LoadSettings, Source, compile_model, load, make_providers
from whet.verify.compare import TOLERANCE, Difference, compare_all

REFERENCE = "ReferenceExecutionProvider"


@dataclass(frozen=True, slots=True)
class PatchSuspect:
    """The first patch after which the outputs differ: its number, pass, new nodes, and the difference it makes."""

    patch: int
    rewrite: str
    nodes: tuple[str, ...]
    difference: Difference


@dataclass(frozen=True, slots=True)
class NodeSuspect:
    """The first value, in execution order, that two computations disagree about."""

    value: str
    node: str
    difference: Difference


def reference_outputs(
    source: Source, feed: Mapping[str, Any], *, float64: bool = False, settings: LoadSettings | None = None
) -> list[Any]:
    """The unoptimized graph's outputs on the reference provider, in float64 throughout when asked."""
    base = replace(settings or LoadSettings(), level="disabled")
    return run_loaded(load(source, base), feed, [_reference(float64, base)])


def run_loaded(loaded: Loaded, feed: Mapping[str, Any], providers: Sequence[ExecutionProvider]) -> list[Any]:
    """Place, compile and run a loaded model once."""
    level: Level = "disabled"
    compiled = compile_model(loaded, providers, CompileEnv(level=level))
    check = FeedChecker(loaded.interface.inputs, loaded.model.path or "<bytes>")
    return [to_python(v) for v in compiled.executor.run(check(feed), RunState())]


def exported_outputs(session: InferenceSession, feed: Mapping[str, Any]) -> list[Any]:
    """The outputs of what `session` would save, on the reference provider."""
    graph = (exported := session.exported_model()).graph
    interface = Interface(tuple(graph.inputs), tuple(graph.outputs), tuple(graph.overridable))
    settings = LoadSettings(custom_ops=tuple(session.get_session_options()._custom_ops))
    return run_loaded(Loaded(exported, interface, PassReport()), feed, [_reference(False, settings)])


def compare_level(
    source: Source, feed: Mapping[str, Any], level: Level, *, settings: LoadSettings | None = None
) -> list[Difference]:
    """Outputs at `level` on the reference provider, against the unoptimized graph, both in float64."""
    base = settings or LoadSettings()
    expected = reference_outputs(source, feed, float64=True, settings=base)
    loaded = load(source, replace(base, level=level))
    actual = run_loaded(loaded, feed, [_reference(True, base)])
    return compare_all([v.name for v in loaded.interface.outputs], actual, expected, same_type=False)


def bisect_patches(
    source: Source,
    feed: Mapping[str, Any],
    level: Level,
    *,
    tolerance: float = TOLERANCE,
    float64: bool = True,
    settings: LoadSettings | None = None,
) -> PatchSuspect | None:
    """The first patch at `level` after which an output differs by more than `tolerance`, or None when none does.

    Binary search over patch numbers; takes about log2(patches) runs of the reference provider.
    """
    base = replace(settings or LoadSettings(), level=level)
    providers = [_reference(float64, base)]
    expected = reference_outputs(source, feed, float64=float64, settings=base)

    def worst(stop_after: int | None) -> tuple[Loaded, Difference]:
        loaded = load(source, base, stop_after=stop_after)
        actual = run_loaded(loaded, feed, providers)
        names = [v.name for v in loaded.interface.outputs]
        found = compare_all(names, actual, expected, same_type=False)
        if not found:
            raise InvalidArgument("the model has no outputs to compare")
        return loaded, max(found, key=lambda d: d.error)

    loaded, difference = worst(None)
    if difference.within(tolerance) or loaded.model.patches == 0:
        return None
    good, bad = 0, loaded.model.patches
    while bad - good > 1:
        middle = (good + bad) // 2
        _, found = worst(middle)
        if found.within(tolerance):
            good = middle
        else:
            bad, difference = middle, found
    loaded, difference = worst(bad)
    made = [n for n in loaded.model.graph.all_nodes() if n.provenance is not None and n.provenance.patch == bad]
    return PatchSuspect(bad, _pass_of(loaded, bad), tuple(n.label for n in made), difference)


def bisect_nodes(
    source: Source,
    feed: Mapping[str, Any],
    actual: Sequence[ExecutionProvider],
    *,
    level: Level = "disabled",
    tolerance: float = TOLERANCE,
    settings: LoadSettings | None = None,
) -> NodeSuspect | None:
    """The first value of the main graph, in execution order, that `actual` computes differently from float64.

    Every intermediate value becomes an output, so a provider that fuses may behave better here than in a whole run.
    """
    base = replace(settings or LoadSettings(), level=level)
    ours, exact = load(source, base), load(source, base)
    values = _expose(ours.model)
    _expose(exact.model)
    producers = [v.producer for v in values]
    expected = run_loaded(exact, feed, [_reference(True, base)])
    found = run_loaded(ours, feed, actual)
    for value, node, a, e in zip(values, producers, found, expected, strict=True):
        difference = compare_all([value.name], [a], [e], same_type=False)[0]
        if not difference.within(tolerance):
            return NodeSuspect(value.name, node.label if node is not None else "input", difference)
    return None


def _expose(model: Model) -> list[Value]:
    values = [v for node in model.graph for v in node.outputs if v.name]
    model.graph.set_outputs(values)
    return values


def _pass_of(loaded: Loaded, patch: int) -> str:
    for record in loaded.report.records:
        if record.patches and record.first_patch <= patch < record.first_patch + record.patches:
            return record.name
    return "?"


def providers_of(requested: Sequence[tuple[str, dict[str, str]]]) -> list[ExecutionProvider]:
    """The named providers, with the reference provider last."""
    made, _ = make_providers(requested, (), (), allow_reference=True, strict=False)
    return made


def reference_provider(*, float64: bool) -> ExecutionProvider:
    """The reference provider, computing in float64 throughout when asked."""
    return _reference(float64, LoadSettings())


def _reference(float64: bool, settings: LoadSettings) -> ExecutionProvider:
    options = {"compute_dtype": "float64"} if float64 else {}
    made, _ = make_providers([(REFERENCE, options)], settings.custom_ops, (), allow_reference=False, strict=True)
    return made[0]
