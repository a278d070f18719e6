"""What a choice between tactics is about, as data: for whoever has measured them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol


def question_key(family: str, work: str) -> str:
    """A name for the work: a digest of family and work."""
    return hashlib.sha256(f"{family}\n{work}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Question:
    """A choice that lowering has to make: how some work is done, of tactics that all can do it."""

    family: str
    work: str
    """Everything that the candidates' times depend on, but for the machine and its threads: the same text is the same
    work, in any model."""
    candidates: tuple[tuple[str, float], ...]
    """(name, predicted nanoseconds on one core), the cheapest first; of equal ones the first of the family's list."""
    nodes: tuple[str, ...]
    """Labels of the nodes whose steps the choice decides on."""

    @property
    def key(self) -> str:
        """A name for the work."""
        return question_key(self.family, self.work)

    @property
    def predicted(self) -> str:
        """The candidate that the cost model prefers."""
        return self.candidates[0][0]


class Choices(Protocol):
    """What answers questions, from measurements."""

    def pick(self, question: Question) -> str | None:
        """The name of one of the question's candidates, or None to leave it to the cost model."""
        ...
