"""What runs of a model took, by their rows, and what follows from it for the next batch."""

from __future__ import annotations

from bisect import bisect_left

SMOOTHING = 0.2
"""Weight of the newest run in an average."""
NEW_SIZE_BUDGET = 0.05
"""Part of all running time that may go into first runs of new sizes: a new class of shapes is compiled then."""
NEW_SIZE_ALWAYS_NS = 2_000_000
"""First runs that cost no more than this above a later one are no reason to avoid a size."""
WORTH = 1.1
"""How many times better a choice has to be by its prediction before it is taken."""
HANDOFF_NS = 100_000
"""What lies between two runs: the threads' handing over, and the loop's answers."""
AGAIN = 64
"""How often a size is avoided before it is measured again: it may have been slow because the machine was busy."""
LIKELY = 0.5
"""Rows that a wait has to bring on average."""
LONGEST_WAIT = 0.25
"""The longest wait, as part of the time that the run itself takes."""
WINDOWS_NS = tuple(25_000 << n for n in range(12))
"""The waits that are considered."""


class RunTimes:
    """Measured run times by batch size, and what comes while a batch could wait. Times in nanoseconds.

    **Which size.** A size is *known* once it has run; its first run, which may compile, is counted apart. Of `rows`
    that could run together, fewer are taken where several runs of a known size are predicted to take less time than the
    one (a size that is avoided so is tried again, every `AGAIN` times), or where the size is new, first runs have been
    slow, and they have had their part (`NEW_SIZE_BUDGET`) of the time.

    **How long to wait**, with an instance free, for more rows where the configuration does not say. From the moment of
    such a *decision*, whatever it was, the rows that come are counted for each of `WINDOWS_NS`; an average of that is
    what a wait is expected to bring. The wait that gives the most rows a second, itself included, is taken if that is
    `WORTH` times what running at once gives, if it brings `LIKELY` rows or more, and if it is at most `LONGEST_WAIT`
    of the run. So one client that asks again when it has its answer never waits: nothing ever comes before that
    answer.
    """

    def __init__(self) -> None:
        self._average: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._avoided: dict[int, int] = {}
        self._total_ns = 0.0
        self._new_ns = 0.0
        self._new_count = 0
        self._joined = [0.0] * len(WINDOWS_NS)
        self._counted: list[int] = []
        self._counted_since_ns = 0
        self._counted_until_ns = 0

    def observe(self, rows: int, ns: int) -> None:
        """A run of so many rows took so long."""
        self._total_ns += ns
        if rows not in self._first:
            self._first[rows] = float(ns)
            return
        old = self._average.get(rows)
        if old is None:
            self._new_ns += max(0.0, self._first[rows] - ns)
            self._new_count += 1
            self._average[rows] = float(ns)
            return
        # One run that was disturbed from outside says little about the next ones.
        self._average[rows] = old + SMOOTHING * (min(float(ns), 4 * old) - old)

    def decided(self, now_ns: int) -> None:
        """An instance is free, and whether to run now or wait is decided: count what comes from here on."""
        if now_ns < self._counted_until_ns:
            return
        self._note_counted()
        longest = LONGEST_WAIT * max(self._average.values(), default=0.0)
        windows = sum(w <= longest for w in WINDOWS_NS)
        self._counted = [0] * windows
        self._counted_since_ns = now_ns
        self._counted_until_ns = now_ns + (WINDOWS_NS[windows - 1] if windows else 0)

    def arrived(self, rows: int, now_ns: int) -> None:
        """A request came."""
        if now_ns <= self._counted_until_ns and self._counted:
            self._counted[bisect_left(WINDOWS_NS, now_ns - self._counted_since_ns)] += rows

    def _note_counted(self) -> None:
        if not self._counted:
            return
        total = 0
        for window, count in enumerate(self._counted):
            total += count
            self._joined[window] += SMOOTHING / 2 * (total - self._joined[window])
        self._counted = []

    def predicted(self, rows: float) -> float | None:
        """What a run of so many rows is expected to take: measured, or between and beyond what was; None if nothing."""
        known = self._average
        if rows in known:
            return known[int(rows)]
        if not known:
            return None
        below = max((r for r in known if r < rows), default=None)
        above = min((r for r in known if r > rows), default=None)
        if below is None:
            assert above is not None
            return known[above]
        if above is None:
            return known[below] * rows / below
        part = (rows - below) / (above - below)
        return known[below] + part * (known[above] - known[below])

    def fewer(self, rows: int) -> int:
        """How many of `rows` to run together; the rest is left for the next run."""
        known = self._average
        if rows in known:
            best, best_ns = rows, known[rows] / WORTH
            for less, less_ns in known.items():
                if less < rows:
                    count, rest = divmod(rows, less)
                    total = count * (less_ns + HANDOFF_NS) - HANDOFF_NS
                    if rest:
                        total += HANDOFF_NS + (self.predicted(rest) or 0.0)
                    if total < best_ns:
                        best, best_ns = less, total
            if best < rows:
                avoided = self._avoided.get(rows, 0) + 1
                self._avoided[rows] = avoided % AGAIN
                if avoided == AGAIN:
                    return rows
            return best
        if rows in self._first or not self._new_is_dear():
            return rows
        return max((r for r in known if rows // 2 <= r < rows), default=rows)

    def _new_is_dear(self) -> bool:
        if not self._new_count or self._new_ns <= NEW_SIZE_ALWAYS_NS * self._new_count:
            return False
        return self._new_ns > NEW_SIZE_BUDGET * self._total_ns

    def wait_ns(self, rows: int, joined: int, most_rows: int) -> int:
        """How long, from the decision on, to wait until `rows` become more; `joined` have come since. 0: not at all."""
        now = self.predicted(rows)
        if now is None:
            return 0
        best, wait = WORTH * rows / now, 0
        for window, expected in zip(WINDOWS_NS, self._joined, strict=True):
            if window > LONGEST_WAIT * now:
                break
            more = min(expected - joined, most_rows - rows)
            then = self.predicted(rows + more)
            if more >= LIKELY and then is not None and (rows + more) / (window + then) > best:
                best, wait = (rows + more) / (window + then), window
        return wait

    def document(self) -> dict[str, object]:
        """The averages, in microseconds."""
        return {
            "run_us": {rows: round(ns / 1e3, 1) for rows, ns in sorted(self._average.items())},
            "rows_expected": {w // 1000: round(n, 2) for w, n in zip(WINDOWS_NS, self._joined, strict=True) if n},
        }
