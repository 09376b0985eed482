"""The queue by hand: what commands see of its events, and do with them, whatever the queue is."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, Self

FOREVER_MS = 2**63 - 1
ANY_NUMBER = 2**63 - 1


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
    last: int = ANY_NUMBER
    """The newest one that is meant, by its number: a person says what becomes of those that were there."""


class Entry(NamedTuple):
    """What the queue holds as one: a dead letter, or events of one app that wait, or were delivered, together."""

    number: int
    app_id: str
    when_ms: int
    """Burial or delivery; 0 where they wait."""
    reason: str | None
    """Of a dead letter."""
    lines: bytes
    """As in `Batch`."""

    @property
    def events(self) -> int:
        """How many events it is."""
        return self.lines.count(b"\n") + 1

    @property
    def when(self) -> str:
        """`when_ms` in ISO 8601."""
        return datetime.fromtimestamp(self.when_ms / 1000, UTC).isoformat(timespec="milliseconds")


class ByHand(Protocol):
    """One command's way to a queue, also while collectors use it. Enter it; all raises CollectorError."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def newest_dead(self) -> int:
        """The number of the newest dead letter; 0 where there was none."""
        ...

    def count_dead(self, choice: Choice) -> int:
        """How many dead letters are meant."""
        ...

    def count_delivered(self, choice: Choice) -> int:
        """How many delivered events are meant; they are told apart by time and app."""
        ...

    def dead(self, choice: Choice) -> Iterator[Entry]:
        """The dead letters, oldest first."""
        ...

    def waiting(self, choice: Choice) -> Iterator[Entry]:
        """What waits, of the app alone that is chosen."""
        ...

    def delivered(self, choice: Choice) -> Iterator[Entry]:
        """What was delivered and is kept, oldest first."""
        ...

    def retry(self, choice: Choice) -> int:
        """How many dead letters wait again."""
        ...

    def purge(self, choice: Choice) -> int:
        """How many dead letters are gone."""
        ...

    def replay(self, choice: Choice) -> int:
        """How many delivered events wait again."""
        ...
