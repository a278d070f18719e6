"""Every value that a compiled model still has, against float64, with every tactic forced in turn."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whet.compiler.tactics.question import Question
from whet.graph import Model, Value
from whet.graph.types import TensorType
from whet.profiling.members import step_results
from whet.providers.base import CompileEnv, ProfileEvent, RunState
from whet.session.config_keys import tactic_families
from whet.session.feeds import FeedChecker
from whet.session.ortvalue import to_python
from whet.session.prepare import Compiled, Loaded, LoadSettings, Source, compile_model, load
from whet.verify.compare import Difference, compare_all
from whet.verify.levels import providers_of, reference_provider

CPU = "CPUExecutionProvider"
AUTOMATIC = "auto"


class Preference:
    """Answers of a lowering's questions: a family's tactic wherever it is possible, else the cost model's choice."""

    def __init__(self, tactics: Mapping[str, str]) -> None:
        self.tactics = dict(tactics)
        """One for each family that has a preference; the last one is what this is about."""
        self.asked: dict[tuple[str, str], None] = {}
        """Every (family, tactic) that was a candidate."""
        self.used = 0
        """Questions that the last tactic answered."""

    def __str__(self) -> str:
        return " ".join(f"{family}={tactic}" for family, tactic in self.tactics.items())

    def pick(self, question: Question) -> str | None:
        """The tactic, where it is a candidate of a question of its family."""
        names = sorted(name for name, _ in question.candidates)
        self.asked |= dict.fromkeys((question.family, name) for name in names)
        wanted = self.tactics.get(question.family)
        if wanted not in names:
            return None
        self.used += question.family == list(self.tactics)[-1]
        return wanted


@dataclass(slots=True)
class ValueReport:
    """The surviving values of one model with one tactic, compared with float64."""

    tactic: str
    """family=name, behind others where it is not possible without them; empty for the cost model's choices."""
    used: int
    """Choices that it decided."""
    differences: list[Difference]
    other_steps: list[str]
    """Steps of the plain program that the one with these values as outputs does otherwise."""

    @property
    def worst(self) -> Difference | None:
        """The value that is the farthest off, over its own range."""
        return max(self.differences, key=lambda d: d.error, default=None)


@dataclass(slots=True)
class _Run:
    preference: Preference
    steps: list[str]
    names: list[str]
    values: dict[str, Any] = field(default_factory=dict)


def compare_values(source: Source, feed: Mapping[str, Any], env: CompileEnv | None = None) -> list[ValueReport]:
    """Compare each surviving value of a model on the CPU provider with a float64 evaluation of the unoptimized graph:
    with the cost model's choices, then with each tactic that the lowering could have chosen anywhere.

    A value survives where a step of the compiled program leaves it behind, and the unoptimized graph has it, too. Those
    are made outputs behind the passes, so that nothing is fused otherwise than in the plain program.
    """
    # Families that are left out unless a session asks for them have their say here.
    automatic = {family: AUTOMATIC for family, values in tactic_families().items() if AUTOMATIC in values}
    base = replace(env or CompileEnv(), tactics=automatic)
    original = load(source, LoadSettings(level="disabled"))
    known = {value.name for node in original.model.graph for value in node.outputs if _is_float(value)}
    runs, waiting, seen = [], deque([Preference({})]), set[tuple[str, str]]()
    while waiting:
        runs.append(_run(source, feed, base, waiting.popleft(), known))
        preference = runs[-1].preference
        for family, tactic in preference.asked:
            if (family, tactic) not in seen and family not in preference.tactics:
                seen.add((family, tactic))
                waiting.append(Preference({**preference.tactics, family: tactic}))
    wanted = list(dict.fromkeys(name for run in runs for name in run.names))
    exact = _exact(original, feed, wanted)
    reports = []
    for run in runs:
        tapped = _run(source, feed, base, Preference(run.preference.tactics), known, run.names)
        found = compare_all(
            run.names, [tapped.values[n] for n in run.names], [exact[n] for n in run.names], same_type=False
        )
        other = sorted((Counter(run.steps) - Counter(tapped.steps)).elements())
        reports.append(ValueReport(str(run.preference), run.preference.used, found, other))
    return reports


def _run(
    source: Source, feed: Mapping[str, Any], env: CompileEnv, preference: Preference, known: set[str],
    outputs: Sequence[str] = (),
) -> _Run:  # fmt: skip
    """One run with `outputs` as the model's outputs, or with its own."""
    loaded = load(source, LoadSettings(level="all"))
    if outputs:
        _set_outputs(loaded.model, outputs)
    compiled = compile_model(loaded, providers_of([(CPU, {})]), replace(env, choices=preference))
    events: list[ProfileEvent] = []
    results = _results(compiled, feed, events)
    names = []
    for event, left in zip(events, step_results(loaded.model.graph, events), strict=True):
        names += [v.name for v in left if event.provider == CPU and v.name in known]
    steps = [f"{event.name}: {event.op} ({event.args.get('tactic', event.provider)})" for event in events]
    values = dict(zip((v.name for v in loaded.model.graph.outputs), results, strict=True))
    names += [name for name in values if name in known]
    return _Run(preference, steps, list(dict.fromkeys(names)), values)


def _exact(original: Loaded, feed: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values in float64, of the unoptimized graph."""
    _set_outputs(original.model, names)
    compiled = compile_model(original, [reference_provider(float64=True)], CompileEnv(level="disabled"))
    return dict(zip(names, _results(compiled, feed, None), strict=True))


def _results(compiled: Compiled, feed: Mapping[str, Any], events: list[ProfileEvent] | None) -> list[Any]:
    check = FeedChecker(compiled.loaded.interface.inputs, "the model")
    return [to_python(value) for value in compiled.executor.run(check(feed), RunState(events=events))]


def _set_outputs(model: Model, names: Sequence[str]) -> None:
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.set_outputs([values[name] for name in names])


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is not None and value.type.dtype.is_float
