"""Choosing a tactic: the cheapest legal one, or the one that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from whet.compiler.lowering import LowerEnv
from whet.errors import InvalidArgument

G = TypeVar("G")


@dataclass(frozen=True, slots=True)
class Tactic(Generic[G]):
    """One way to do work of geometry G. `refusal`: why it cannot, or None; `cost`: predicted nanoseconds on one core,
    asked only where there is no refusal."""

    name: str
    refusal: Callable[[G, LowerEnv], str | None]
    cost: Callable[[G, LowerEnv], float]


def choose(family: str, tactics: Sequence[Tactic[G]], geometry: G, env: LowerEnv, where: str | None = None) -> str:
    """The name of the tactic to use; the first of equal ones.

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
    legal = [t for t in tactics if t.refusal(geometry, env) is None]
    assert legal, f"no tactic for {family}: {geometry}"
    return min(legal, key=lambda t: t.cost(geometry, env)).name
