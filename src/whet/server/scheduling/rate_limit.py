"""The rate limit: runs of instances hold named resources, of which the server has so many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from whet.errors import InvalidArgument
from whet.server.errors import Unsupported
from whet.server.model_config import RateLimit

MOST = (1 << 31) - 1
"""The largest count of a resource: configurations hold no larger one."""


def read_resources(given: Iterable[str]) -> dict[str, int]:
    """Totals from texts NAME:COUNT, as Triton's --rate-limit-resource has them; the last of a name counts.

    Raises InvalidArgument, and Unsupported for a device: resources are counted for the whole server.
    """
    found = {}
    for text in given:
        name, _, rest = text.partition(":")
        count, _, device = rest.partition(":")
        if device:
            raise Unsupported(
                "resources are counted for the whole server, not by device", value="--rate-limit-resource", found=text,
                hint=f"Leave the device out: {name}:{count}.",
            )  # fmt: skip
        if not name or not (count.isascii() and count.isdigit()) or int(count) > MOST:
            raise InvalidArgument("not a resource", value="--rate-limit-resource", found=text, expected="NAME:COUNT")
        found[name] = int(count)
    return found


class Ticket:
    """A model's right to ask for its resources: `acquire` before a run, `release` after it.

    `when_free` is called after a refusal, when it is this model's turn to try again. `leave`: the model is gone.
    """

    def __init__(self, limiter: RateLimiter, limit: RateLimit, number: int) -> None:
        self._limiter = limiter
        self.number = number
        self.limit = limit
        self.runs = 0
        self.waits = False
        self.when_free: Callable[[], None] | None = None

    def acquire(self) -> bool:
        """Hold what one run needs; False where it cannot be had now."""
        return self._limiter.acquire(self)

    def release(self) -> None:
        """Give one run's part back."""
        self._limiter.release(self)

    def leave(self) -> None:
        self._limiter.leave(self)


class RateLimiter:
    """What there is of each resource: what the server was told, and otherwise the most that any one run needs.

    Among the models that wait, the one with the fewest runs times its `priority` comes first: with priority 2 a model
    runs half as often as one with 1. One that waits is not overtaken by another that needs the same resource.
    """

    def __init__(self, resources: Mapping[str, int] | None = None) -> None:
        self._given = dict(resources or {})
        self._used: dict[str, int] = {}
        self._tickets: list[Ticket] = []
        self._granted = 0
        self._made = 0

    def ticket(self, limit: RateLimit, model: str) -> Ticket:
        """A ticket for a model. Raises InvalidArgument for more of a resource than there is."""
        for name, count in limit.resources.items():
            if name in self._given and count > self._given[name]:
                raise InvalidArgument(
                    f"model {model!r}: a run needs more of a resource than the server has", value=name, found=count,
                    expected=f"at most {self._given[name]}",
                )  # fmt: skip
        self._made += 1
        made = Ticket(self, limit, self._made)
        # A new model starts level with the others: it has nothing to catch up on.
        made.runs = min((t.runs * t.limit.priority for t in self._tickets), default=0) // limit.priority
        self._tickets.append(made)
        return made

    def available(self, name: str) -> int:
        """How much of the resource nobody holds."""
        total = self._given.get(name)
        if total is None:
            total = max((t.limit.resources.get(name, 0) for t in self._tickets), default=0)
        return total - self._used.get(name, 0)

    def acquire(self, ticket: Ticket) -> bool:
        needs = ticket.limit.resources
        place = self._place(ticket)
        blocked = any(
            t.waits and self._place(t) < place and not needs.keys().isdisjoint(t.limit.resources) for t in self._tickets
        )
        if blocked or not self._fits(ticket):
            ticket.waits = True
            return False
        ticket.waits = False
        ticket.runs += 1
        self._granted += 1
        for name, count in needs.items():
            self._used[name] = self._used.get(name, 0) + count
        return True

    def release(self, ticket: Ticket) -> None:
        for name, count in ticket.limit.resources.items():
            self._used[name] -= count
        self._wake()

    def leave(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self._wake()

    def _wake(self) -> None:
        """Let those that wait try again, in their order, for as long as any of them gets something."""
        granted = -1
        while granted != self._granted:
            granted = self._granted
            for waiting in sorted((t for t in self._tickets if t.waits), key=self._place):
                # Whoever has nothing to run any more does not ask again, and must not hold up the others.
                waiting.waits = False
                if waiting.when_free is not None:
                    waiting.when_free()

    def _fits(self, ticket: Ticket) -> bool:
        return all(self.available(name) >= count for name, count in ticket.limit.resources.items())

    def _place(self, ticket: Ticket) -> tuple[int, int]:
        """Where the ticket stands among those that wait; no two stand in the same place."""
        return ticket.runs * ticket.limit.priority, ticket.number
