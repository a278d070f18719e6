"""The order of work of a tuner: which variants of a program to build, when to run which, and when enough is known.

A *variant* is the whole program with some of its questions answered otherwise. One variant tries another tactic for as
many questions at once as have different nodes, so that a few variants time everything, and each step is timed where it
will run: between the same neighbours, on the same data, weights and threads. Variants take turns. A turn may start with
a run that does not count, because the variant before has left other weights in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from whet.compiler.tactics.question import Question
from whet.tuning.settings import EFFORTS, Effort, Progress, Tuning
from whet.tuning.timing import Known, Timing, decide, extents_in, lower_quartile

RUNS_A_TURN = 3
"""Runs that count in a turn that begins with one that does not."""
MOST_VARIANTS = 48
HOPELESS = 1.5
"""What takes this many times the best is given up after HOPELESS_RUNS."""
HOPELESS_RUNS = 6
PUBLISH_S = 1.0
"""At most so much time passes, and a round, before what is known is handed out."""


class Variant(Protocol):
    """A program that is ready to run."""

    @property
    def asked(self) -> Sequence[Question]:
        """The questions of its lowering, in order; the same work may be asked for at several nodes."""
        ...

    @property
    def warms_up(self) -> bool:
        """Whether a first run that does not count is needed for the caches to be in their usual state."""
        ...

    def time(self, runs: int, watched: frozenset[str]) -> Sequence[Mapping[str, int]]:
        """Nanoseconds of the steps of each watched node, in each of some runs, in the caches' usual state."""
        ...


class Bench(Protocol):
    """Makes variants."""

    def build(self, answers: Mapping[str, str]) -> Variant:
        """The program whose questions with these keys are answered so; the cost model answers the others."""
        ...


@dataclass(slots=True)
class Trial:
    """One tactic for one piece of work, in one variant."""

    question: Question
    tactic: str
    variant: int
    nodes: tuple[tuple[str, ...], ...]
    """The nodes of each place where the work is done: it is timed at all of them, and the mean counts."""
    samples: list[int] = field(default_factory=list)
    before: int = 0
    """Samples that the cache has."""
    given_up: bool = False

    @property
    def watched(self) -> Iterable[str]:
        return (label for nodes in self.nodes for label in nodes)

    def take(self, run: Mapping[str, int]) -> None:
        """Note a run."""
        times = [sum(run.get(label, 0) for label in nodes) for nodes in self.nodes]
        total = sum(times) // len(times)
        if total > 0:
            self.samples.append(total)

    def is_enough(self, effort: Effort) -> bool:
        """Whether this needs no more runs."""
        if self.given_up:
            return True
        count = len(self.samples) + self.before
        return count >= effort.least_runs and count >= effort.runs(lower_quartile(sorted(self.samples) or [1]))


@dataclass(frozen=True, slots=True)
class Switch:
    """A choice that measurement made otherwise than the cost model. Times are of one place of `places`."""

    family: str
    node: str
    places: int
    predicted: str
    chosen: str
    predicted_ns: int
    chosen_ns: int

    @property
    def saved_ns(self) -> int:
        """What all places take less."""
        return self.places * (self.predicted_ns - self.chosen_ns)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What tuning did. Counts are of pieces of work: asked for, timed now; `complete`: whether all of them are known as
    well as the mode wants it."""

    questions: int
    timed: int
    complete: bool
    seconds: float
    switches: tuple[Switch, ...] = ()
    findings: tuple[tuple[Question, Timing], ...] = ()
    """Every question of which anything is known, with its timings: now and before."""


Publish = Callable[[Sequence[Timing]], object]


def tune(
    bench: Bench,
    known: Known,
    threads: int,
    extents: Mapping[str, int],
    settings: Tuning,
    publish: Publish,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Time what is not known yet. `publish` gets all timings that have changed, now and then and at the end,
    also where an exception (an interrupt, say) ends the work.

    `known`: timings of before; `extents`: the numbers of the free extents.
    """
    return _Tuner(bench, known, threads, extents, settings, publish, clock).run()


class _Tuner:
    def __init__(
        self, bench: Bench, known: Known, threads: int, extents: Mapping[str, int], settings: Tuning,
        publish: Publish, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._bench, self._known, self._threads, self._extents = bench, known, threads, extents
        self._settings, self._publish, self._clock = settings, publish, clock
        self._effort = EFFORTS[settings.mode]
        self._start = self._published = clock()
        self._variants: list[Variant] = []
        self._questions: dict[str, Question] = {}
        self._places: dict[str, int] = {}
        """At how many places the work is done."""
        self._context: dict[str, dict[str, str]] = {}
        """The answers that a question is asked under, for those that the first variant does not ask."""
        self._pending: dict[str, list[str]] = {}
        """Tactics that no variant tries yet, by question."""
        self._trials: list[Trial] = []
        self._changed: set[str] = set()
        self._turn_s: dict[int, float] = {}

    def run(self) -> Outcome:
        self._build({})
        hidden: dict[str, int] = {}
        while self._pending and len(self._variants) < MOST_VARIANTS and not self._is_late():
            answers = self._next_answers()
            asked = self._build(answers)
            for key in answers:
                if key not in self._pending:
                    continue  # part of the surroundings of another one
                if key in asked:
                    self._pending[key].pop(0)
                else:
                    hidden[key] = hidden.get(key, 0) + 1
                if not self._pending[key] or hidden.get(key, 0) > 1:
                    del self._pending[key]
        built_all = not self._pending
        try:
            finished = self._rounds()
        finally:
            self._publish_changes()
        complete = built_all and finished
        wanted = {t.question.key for t in self._trials}
        self._tell("tuned" if complete else "stopped by the budget", None)
        seconds = self._clock() - self._start
        known = ((question, self._now(question)) for question in self._questions.values())
        findings = tuple((question, timing) for question, timing in known if timing is not None)
        switches = tuple(self._switches(findings))
        return Outcome(len(self._questions), len(wanted), complete, seconds, switches, findings)

    def _switches(self, findings: Sequence[tuple[Question, Timing]]) -> Iterator[Switch]:
        """The choices that all timings together make otherwise than the cost model."""
        for question, timing in findings:
            chosen = decide(question, timing)
            if chosen == question.predicted:
                continue
            before, after = (lower_quartile(timing.samples[name]) for name in (question.predicted, chosen))
            node = question.nodes[0] if question.nodes else ""
            yield Switch(question.family, node, self._places[question.key], question.predicted, chosen, before, after)

    # Variants

    def _next_answers(self) -> dict[str, str]:
        """Answers for the next variant: of each node at most one question is answered otherwise."""
        answers: dict[str, str] = {}
        busy: set[str] = set()
        for key, tactics in self._pending.items():
            context = self._context.get(key, {})
            nodes = set(self._questions[key].nodes)
            for other in context:
                nodes.update(self._questions[other].nodes)
            if nodes & busy or any(answers.get(other, tactic) != tactic for other, tactic in context.items()):
                continue
            busy |= nodes
            answers |= {**context, key: tactics[0]}
        return answers

    def _build(self, answers: dict[str, str]) -> set[str]:
        """Build a variant and note its trials; the keys that it asks for."""
        variant = self._bench.build(answers)
        index = len(self._variants)
        self._variants.append(variant)
        places: dict[str, list[tuple[str, ...]]] = {}
        asked: dict[str, Question] = {}
        for question in variant.asked:
            asked.setdefault(question.key, question)
            places.setdefault(question.key, []).append(question.nodes)
        for key, question in asked.items():
            if key not in self._questions:
                every = tuple(dict.fromkeys(label for nodes in places[key] for label in nodes))
                merged = Question(question.family, question.work, question.candidates, every)
                self._questions[key] = merged
                self._places[key] = len(places[key])
                around = {other for other in answers if set(self._questions[other].nodes) & set(every)}
                if around:
                    self._context[key] = {other: answers[other] for other in around}
                others = self._others(merged)
                if others:
                    self._pending[key] = others
                    self._note(merged, question.predicted, index, places[key])
            elif key in self._pending and answers.get(key) == self._pending[key][0]:
                self._note(self._questions[key], answers[key], index, places[key])
        self._tell(f"{index + 1} variants are ready", None)
        return set(asked)

    def _others(self, question: Question) -> list[str]:
        """The tactics that are worth timing beside the predicted one and are not known well enough."""
        least = question.candidates[0][1]
        near = [name for name, cost in question.candidates[1:] if cost <= least * self._effort.prune]
        timing = self._timing(question)
        if timing is None:
            return near
        enough = {n for n, times in timing.samples.items() if self._is_known(times)} | set(timing.given_up)
        missing = [name for name in near if name not in enough]
        # Where the predicted one is known too little, all are timed again: times are compared within one session.
        return missing if question.predicted in enough else near

    def _timing(self, question: Question) -> Timing | None:
        return self._known.get((question.key, extents_in(question.work, self._extents)))

    def _is_known(self, times: Sequence[int]) -> bool:
        return len(times) >= max(self._effort.least_runs, self._effort.runs(lower_quartile(times)))

    def _note(self, question: Question, tactic: str, variant: int, places: Sequence[tuple[str, ...]]) -> None:
        known = self._timing(question)
        before = 0 if known is None else known.count(tactic)
        self._trials.append(Trial(question, tactic, variant, tuple(places), before=before))

    # Runs

    def _rounds(self) -> bool:
        """Let the variants take turns until everything is known or the time is over; whether everything is."""
        while True:
            due = {t.variant for t in self._trials if not t.is_enough(self._effort)}
            if not due:
                return True
            # The predicted tactics are timed beside the others, for as long as any of the others is.
            for trial in self._trials:
                if any(o.question.key == trial.question.key and o.variant in due for o in self._trials):
                    due.add(trial.variant)
            for index in sorted(due):
                if self._is_late(self._turn_s.get(index, 0.0)):
                    return False
                self._turn(index)
            self._give_up_hopeless()
            if self._clock() - self._published > PUBLISH_S:
                self._publish_changes()
            self._tell("timing", self._eta())

    def _turn(self, index: int) -> None:
        trials = [t for t in self._trials if t.variant == index and not t.given_up]
        start = self._clock()
        watched = frozenset(label for t in trials for label in t.watched)
        for run in self._variants[index].time(self._runs(index), watched):
            for trial in trials:
                trial.take(run)
                self._changed.add(trial.question.key)
        self._turn_s[index] = self._clock() - start
        self._tell("timing", self._eta())

    def _runs(self, index: int) -> int:
        """Runs of a turn: the fewer, the more evenly what disturbs them is spread over the variants."""
        return RUNS_A_TURN if self._variants[index].warms_up else 1

    def _give_up_hopeless(self) -> None:
        best: dict[str, int] = {}
        known = [(t, min(t.samples)) for t in self._trials if len(t.samples) >= HOPELESS_RUNS]
        for trial, ns in known:
            key = trial.question.key
            best[key] = min(best.get(key, ns), ns)
        for trial, ns in known:
            # The predicted one stays: without it nothing could be decided.
            if ns > HOPELESS * best[trial.question.key] and trial.tactic != trial.question.predicted:
                trial.given_up = True

    # Accounts

    def _is_late(self, more: float = 0.0) -> bool:
        seconds = self._settings.seconds
        return seconds is not None and self._clock() - self._start + more > seconds

    def _eta(self) -> float | None:
        if len(self._turn_s) < len({t.variant for t in self._trials}):
            return None
        left = 0.0
        for index, seconds in self._turn_s.items():
            missing = 0
            for trial in self._trials:
                if trial.variant == index and not trial.is_enough(self._effort) and trial.samples:
                    wanted = max(self._effort.least_runs, self._effort.runs(lower_quartile(sorted(trial.samples))))
                    missing = max(missing, wanted - len(trial.samples) - trial.before)
            left += -(-missing // self._runs(index)) * seconds
        limit = self._settings.seconds
        return left if limit is None else max(min(left, limit - (self._clock() - self._start)), 0.0)

    def _tell(self, what: str, eta: float | None) -> None:
        if self._settings.report is not None:
            done = sum(t.is_enough(self._effort) for t in self._trials)
            self._settings.report(Progress(done, len(self._trials), self._clock() - self._start, eta, what))

    def _now(self, question: Question) -> Timing | None:
        """What is known by now."""
        known = self._timing(question)
        trials = [t for t in self._trials if t.question.key == question.key and t.samples]
        if not trials:
            return known
        extents = extents_in(question.work, self._extents)
        known = known or Timing(question.family, question.work, self._threads, extents)
        return known.with_samples({t.tactic: t.samples for t in trials}, [t.tactic for t in trials if t.given_up])

    def _publish_changes(self) -> None:
        """Hand out what has been timed so far."""
        found = (self._now(self._questions[key]) for key in sorted(self._changed))
        changed = [timing for timing in found if timing is not None]
        self._changed.clear()
        self._published = self._clock()
        if changed:
            self._publish(changed)
