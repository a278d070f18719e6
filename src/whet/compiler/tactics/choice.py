"""Choosing a tactic: the one that is asked for, the one that was measured to be the fastest, or the cheapest legal one.

A family of tactics that is chosen by `choose` is tunable as it stands: `whet.tuning` learns of the choice from the
question that it puts, and times the candidates in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from whet.compiler.lowering import LowerEnv
from whet.compiler.tactics.question import Question
from whet.errors import InvalidArgument

G = TypeVar("G")


@dataclass(frozen=True, slots=True)
class Tactic(Generic[G]):
    """One way to do work of geometry G. `refusal`: why it cannot, or None; `cost`: predicted nanoseconds on one core,
    asked only where there is no refusal."""

    name: str
    refusal: Callable[[G, LowerEnv], str | None]
    cost: Callable[[G, LowerEnv], float]


def choose(
    family: str, tactics: Sequence[Tactic[G]], geometry: G, env: LowerEnv, where: str | None = None, *,
    detail: object = None, nodes: Sequence[str] = (),
) -> str:  # fmt: skip
    """The name of the tactic to use; the first of equal ones.

    `where` is the label of the node at hand, `nodes` those of all nodes whose steps the choice decides on where they
    are several. `detail` is what times depend on besides the geometry (an epilogue, the layout of an operand); its
    `repr`, like the geometry's, must be the same in every process.

    Raises InvalidArgument where `env.tactics` asks for one that there is not, or that cannot do this work.
    """
    forced = env.tactics.get(family)
    if forced is not None:
        for tactic in tactics:
            if tactic.name == forced:
                reason = tactic.refusal(geometry, env)
                if reason is not None:
                    raise InvalidArgument(f"the tactic {forced} cannot be used", node=where, found=reason)
                return forced
        names = ", ".join(t.name for t in tactics)
        raise InvalidArgument(f"there is no tactic of this name for {family}", value=forced, expected=names)
    legal = [(t.name, t.cost(geometry, env)) for t in tactics if t.refusal(geometry, env) is None]
    assert legal, f"no tactic for {family}: {geometry}"
    legal.sort(key=lambda candidate: candidate[1])
    if env.choices is not None and len(legal) > 1:
        work = f"{geometry!r}" if detail is None else f"{geometry!r} {detail!r}"
        labels = tuple(nodes) or (() if where is None else (where,))
        picked = env.choices.pick(Question(family, work, tuple(legal), labels))
        if picked is not None:
            return picked
    return legal[0][0]
