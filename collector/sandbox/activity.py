"""What goes on at the sandbox, for the page that shows it: the last requests, and events by the minute of receipt.

In memory, of one process: the books are in the state.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from collector.clock import Clock
from collector.contract.models import FiscalSpend

MINUTES = 60
REQUESTS = 50


class Served(msgspec.Struct, rename="camel"):
    """One request, without anything of what it carried."""

    at_ms: int
    method: str
    what: str = ""
    """The operation's ID; of what no operation expects, the path; empty for the sandbox's own requests."""
    status: int = 500
    """0 where the connection was cut."""
    took_ms: float = 0.0
    app_id: str | None = None
    fault: str | None = None


class Minute(msgspec.Struct, rename="camel"):
    """The usage events taken in one minute, and how many of these were new."""

    minute: int
    """Since the epoch."""
    received: int = 0
    distinct: int = 0


class AppRow(msgspec.Struct, rename="camel", omit_defaults=True):
    """What the page says of one app."""

    app_id: str
    app_name: str | None
    requests: int
    received: int
    distinct: int
    users: int
    spend: FiscalSpend | None = None


class Picture(msgspec.Struct, rename="camel"):
    """What `GET /_sandbox/activity` answers."""

    now_ms: int
    apps: list[AppRow]
    apps_left_out: int
    received: int
    distinct: int
    minutes: Sequence[Minute]
    """The last hour, oldest first, each minute of it."""
    requests: Sequence[Served]
    """Newest first."""
    tokens: int
    unexpected: int
    faults: int


class Activity:
    """Counts as it happens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minutes: deque[Minute] = deque(maxlen=MINUTES)
        self._requests: deque[Served] = deque(maxlen=REQUESTS)
        self.unexpected = 0

    def took(self, received: int, distinct: int) -> None:
        """So many usage events were taken now."""
        now = self._clock.now_ms() // 60_000
        if not self._minutes or self._minutes[-1].minute < now:
            self._minutes.append(Minute(now))
        self._minutes[-1].received += received
        self._minutes[-1].distinct += distinct

    def served(self, request: Served) -> None:
        """A request was answered."""
        self._requests.appendleft(request)

    def minutes(self) -> list[Minute]:
        """The last hour, oldest first, each minute of it."""
        now = self._clock.now_ms() // 60_000
        taken = {minute.minute: minute for minute in self._minutes}
        return [taken.get(minute, Minute(minute)) for minute in range(now - MINUTES + 1, now + 1)]

    def requests(self) -> list[Served]:
        """The last ones, newest first."""
        return list(self._requests)

    def forget(self) -> None:
        """Nothing has happened yet."""
        self._minutes.clear()
        self._requests.clear()
        self.unexpected = 0
