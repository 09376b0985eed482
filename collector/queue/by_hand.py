"""Events and dead letters as commands choose and see them, whatever the queue is."""

from typing import NamedTuple

FOREVER_MS = 2**63 - 1


class Choice(NamedTuple):
    """Which dead letters, or delivered events, are meant; by default all. Times are milliseconds since the epoch.

    In the order in which the statements about dead letters take it.
    """

    app_id: str | None = None
    reason: str | None = None
    """Text that the reason contains."""
    since_ms: int = 0
    until_ms: int = FOREVER_MS
    number: int | None = None


class Letter(NamedTuple):
    """A dead letter, or a row of events that wait or were delivered."""

    number: int
    app_id: str
    when_ms: int
    """Burial or delivery; 0 where they wait."""
    reason: str | None
    lines: bytes

    @property
    def events(self) -> int:
        """How many events it is."""
        return self.lines.count(b"\n") + 1
