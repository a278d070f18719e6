"""How a session tunes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import platformdirs

Mode = Literal["off", "quick", "full"]

QUICK_SECONDS = 3.0
"""What quick tuning may take at most, unless the session says otherwise."""


def default_folder() -> Path:
    """Where timings go unless the caller says otherwise."""
    return platformdirs.user_cache_path("whet") / "timings"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far tuning is. Counts are of candidates; `eta_s` is None until a first round has been timed."""

    done: int
    total: int
    elapsed_s: float
    eta_s: float | None
    what: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """`off` times nothing; `quick` and `full` time what the cache does not know yet, and all use what it knows."""

    mode: Mode = "off"
    budget_s: float | None = None
    """Seconds for one program; None: QUICK_SECONDS for quick tuning, as long as it takes for full."""
    folder: Path | None = field(default_factory=default_folder)
    """Where timings are kept; None: nowhere, and none are used."""
    report: Callable[[Progress], None] | None = None
    """Told how far it is, often."""

    @property
    def seconds(self) -> float | None:
        """The budget in effect."""
        return QUICK_SECONDS if self.budget_s is None and self.mode == "quick" else self.budget_s


NO_TUNING = Tuning(folder=None)
"""Choose by the cost model alone."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What a mode spends."""

    prune: float
    """Candidates are timed that are predicted within this factor of the best."""
    total_ns: int
    """Time that each candidate is to run, all in all..."""
    least_runs: int
    most_runs: int
    """...in at least and at most so many runs."""

    def runs(self, one_ns: float) -> int:
        """How many runs a candidate gets whose run takes `one_ns`."""
        return min(max(-(-self.total_ns // max(int(one_ns), 1)), self.least_runs), self.most_runs)


EFFORTS: dict[Mode, Effort] = {
    "quick": Effort(prune=1.2, total_ns=3_000_000, least_runs=4, most_runs=12),
    "full": Effort(prune=1.5, total_ns=10_000_000, least_runs=10, most_runs=30),
}
