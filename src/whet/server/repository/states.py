"""What is known of each model version: its state, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True)
class VersionState:
    """Where a model version stands, and why. `load_s`: how long its last load took."""

    state: State
    reason: str = ""
    load_s: float = 0.0


class States:
    """The state of every version that was asked for and is still there. `on_change` is told of each change."""

    def __init__(self) -> None:
        self._states: dict[str, dict[int, VersionState]] = {}
        self.on_change: Callable[[], None] | None = None

    @property
    def all(self) -> Mapping[str, Mapping[int, VersionState]]:
        return self._states

    def set(self, name: str, version: int, state: VersionState) -> None:
        self._states.setdefault(name, {})[version] = state
        self._changed()

    def keep(self, name: str, versions: Iterable[int]) -> None:
        """Forget the model's versions but these; all of the model where there are none."""
        wanted = set(versions)
        known = self._states.get(name, {})
        for version in [v for v in known if v not in wanted]:
            del known[version]
        if not known:
            self._states.pop(name, None)
        self._changed()

    def why_not(self, name: str, version: str = "") -> VersionState | None:
        """The state of a version that does not answer, "" for the newest; None for one that is not known."""
        known = self._states.get(name, {})
        if not version:
            return known[max(known)] if known else None
        return known.get(int(version)) if version.isdecimal() and len(version) < 20 else None

    def index(self, ready: bool, names: Iterable[str] = ()) -> list[dict[str, str]]:
        """Every version with `name`, `version`, `state`, `reason`; only those that answer where `ready`.

        `names`: what lies in the repository. A model that nobody asked for has an empty version.
        """
        rows = [
            {"name": name, "version": str(number), "state": state.state, "reason": state.reason}
            for name, versions in self._states.items()
            for number, state in sorted(versions.items())
            if state.state == "READY" or not ready
        ]
        if not ready:
            rows += [
                {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "not loaded"}
                for name in names
                if name not in self._states
            ]
        return sorted(rows, key=lambda row: row["name"])

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()
