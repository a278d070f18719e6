"""Runs batches on a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whet.server.request import Array
from whet.server.scheduling.instances import Stop
from whet.session.inference_session import InferenceSession
from whet.session.options import RunOptions

SEEN = 8
"""Shapes that are remembered."""


class SessionRunner:
    """A runner on a session. A run that may be stopped gets options of its own.

    `seen` holds shapes of runs (inputs with their shapes), from a sample of them: another load of the model is warmed
    up with these.
    """

    def __init__(self, session: InferenceSession) -> None:
        self.session = session
        self._all = tuple(o.name for o in session.get_outputs())
        self.seen: dict[tuple[tuple[str, tuple[int, ...]], ...], None] = {}
        self._runs = 0

    def __call__(self, names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None) -> Sequence[Array]:
        runs = self._runs
        self._runs = runs + 1
        if runs < SEEN or not runs & 63:
            self._note(feed)
        if stop is None:
            # All outputs in their order are asked for by None, which the session has a shorter way for.
            return self.session.run(None if names == self._all else names, feed)
        options = RunOptions()

        def terminate() -> None:
            options.terminate = True

        stop.on_terminate(terminate)
        return self.session.run(names, feed, options)

    def _note(self, feed: Mapping[str, Array]) -> None:
        # Runs of other threads may do this too: each step is one that cannot be seen half done.
        seen = self.seen
        seen[tuple((name, array.shape) for name, array in feed.items())] = None
        if len(seen) > SEEN:
            seen.pop(next(iter(tuple(seen))), None)
