"""Runs new generators where a crash does no harm: fuzzing them in a child process, one verdict per case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from whet.codegen.process import Child, ProcessDied


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case: a result, an exception, or the end of the process with what it wrote last."""

    case: Any
    result: Any = None
    error: Exception | None = None
    death: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None and self.death is None


def run_cases(function: str, cases: Iterable[Any], timeout_s: float = 60.0) -> Iterable[Verdict]:
    """Call `function` ("package.module:name") with each case in a child process; a dead child is replaced.

    `timeout_s` bounds one case. Cases and results are pickled. Cases share a child until one kills it, so that its
    start is paid once.
    """
    child: Child | None = None
    try:
        for case in cases:
            if child is None:
                child = Child()
            try:
                yield Verdict(case, result=child.call(function, case, timeout_s=timeout_s))
            except ProcessDied as death:
                child.close()
                child = None
                yield Verdict(case, death=f"{death.reason}: {death.stderr}")
            except Exception as error:  # the case's own; the child lives on
                yield Verdict(case, error=error)
    finally:
        if child is not None:
            child.close()
