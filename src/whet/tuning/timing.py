"""What was measured of one piece of work, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.compiler.tactics.question import Question, question_key

SWITCH = 1.03
"""How much slower than another tactic the predicted one must be to be given up."""
SWITCH_NS = 250
"""The same as a time: clocks do not tell less apart."""
LEAST_SAMPLES = 5
"""With fewer, nothing is decided: what disturbs two turns may leave the third one alone."""
MOST_SAMPLES = 32
"""Samples of one tactic that are kept: the lowest."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations in nanoseconds of one piece of work, by tactic: each sorted, of runs inside a model."""

    family: str
    work: str
    threads: int
    extents: str = ""
    """The numbers that the free extents in `work` had: `batch=1`."""
    samples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    given_up: tuple[str, ...] = ()
    """Tactics that were so slow that they were not timed to the end."""

    def with_samples(self, new: Mapping[str, Sequence[int]], given_up: Sequence[str] = ()) -> Timing:
        """This, with more samples."""
        samples = dict(self.samples)
        for name, more in new.items():
            samples[name] = tuple(sorted((*samples.get(name, ()), *more))[:MOST_SAMPLES])
        return replace(self, samples=samples, given_up=tuple(dict.fromkeys((*self.given_up, *given_up))))

    @property
    def question(self) -> str:
        """The key of the question that this is of."""
        return question_key(self.family, self.work)

    def count(self, name: str) -> int:
        """Samples of a tactic."""
        return len(self.samples.get(name, ()))

    @property
    def weight(self) -> tuple[int, int]:
        """How much is known: tactics, and samples in all. Of two timings of the same work the larger one is kept."""
        return len(self.samples), sum(len(times) for times in self.samples.values())


def least(times: Sequence[int]) -> int:
    """The shortest of sorted durations."""
    return times[0]


def lower_quartile(times: Sequence[int]) -> int:
    """The lower quartile of sorted durations."""
    return times[(len(times) - 1) // 4]


MEASURES = (least, lower_quartile)


def decide(question: Question, timing: Timing) -> str:
    """The tactic to use: the predicted one unless another is faster by SWITCH, at the least and at the lower quartile,
    and usually faster than the predicted one ever was: on a busy machine either may be lucky.

    A function of its arguments alone: the same timings give the same choice.
    """
    known = {n: timing.samples[n] for n, _ in question.candidates if timing.count(n) >= LEAST_SAMPLES}
    expected = known.get(question.predicted)
    if expected is None:
        return question.predicted
    best, shortest = question.predicted, lower_quartile(expected)
    for name, times in known.items():
        gains = (of(times) * SWITCH < of(expected) and of(times) + SWITCH_NS < of(expected) for of in MEASURES)
        faster = all(gains) and lower_quartile(times) < least(expected)
        if faster and lower_quartile(times) < shortest:
            best, shortest = name, lower_quartile(times)
    return best


Known = Mapping[tuple[str, str], Timing]
"""Timings by `Question.key` and `extents_in`, the one that was written last at the end."""


def extents_in(work: str, extents: Mapping[str, int]) -> str:
    """Those of some free extents that a piece of work names, with their numbers."""
    named = (n for n in sorted(extents) if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", work))
    return ", ".join(f"{name}={extents[name]}" for name in named)


class Measured:
    """Answers questions from timings: those of the very extents, else the last of the same work at other ones."""

    def __init__(self, timings: Known, extents: Mapping[str, int]) -> None:
        self._timings, self._extents = timings, dict(extents)
        self._any = {key: timing for (key, _), timing in timings.items()}

    def pick(self, question: Question) -> str | None:
        """The measured choice, or None where the work has not been timed."""
        key = question.key
        timing = self._timings.get((key, extents_in(question.work, self._extents))) or self._any.get(key)
        return None if timing is None else decide(question, timing)
