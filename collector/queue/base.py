"""The queue as its neighbours see it.

A queue takes batches of events, tells new ones from known ones by their key, keeps the new ones until they are
settled, and hands them out by app in the order of arrival. SQLite and JetStream are implementations; sources and
flusher know neither.
"""

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from collector.errors import CollectorError
from collector.events import KEY_BYTES
from collector.queue.limits import Limits

REASON_LETTERS = 1000
"""Dead letters are counted by reason over the latest so many, so that a look costs the same however many there are."""
SHOWN_REASONS = 10
SHOWN_LETTERS = 10


class Batch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Up to `flush.batch_events` events of one app on their way in: one key and one line of JSON for each event."""

    app_id: str
    keys: bytes
    """One behind the other, KEY_BYTES each (see events.py)."""
    lines: bytes
    """The events as JSON, one a line, without a line end at the end."""

    @property
    def events(self) -> int:
        """How many there are."""
        return len(self.keys) // KEY_BYTES

    @property
    def bytes(self) -> int:
        """Size of the lines, each with its line end."""
        return len(self.lines) + 1


class Verdict(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What became of a batch: `duplicates` are the positions of events that were known already; the rest is new."""

    accepted: int
    duplicates: tuple[int, ...] = ()


def lines_without(lines: bytes, positions: Collection[int]) -> bytes:
    """A batch's lines but for those at the positions."""
    each = lines.split(b"\n")
    for position in sorted(positions, reverse=True):
        del each[position]
    return b"\n".join(each)


class Lease(msgspec.Struct, frozen=True):
    """Events of one app that the flusher is delivering. They stay in the queue until they are settled."""

    app_id: str
    first: int
    last: int
    """The range of the queue's own positions that the lease covers."""
    events: int
    lines: bytes
    """As in `Batch`."""


class Burial(NamedTuple):
    """An event of a lease, by its position, that upstream will never take, and why."""

    position: int
    reason: str


class Backlog(NamedTuple):
    """What of one app could be leased now: how many events, and since when (monotonic seconds) the oldest waits."""

    app_id: str
    events: int
    waiting_since: float


class AppStats(msgspec.Struct, frozen=True, rename="camel"):
    """One app's share of the queue.

    Bytes are those of the events' JSON, of dead letters with their reasons; age is in milliseconds. Kept are events
    that were delivered and are there all the same.
    """

    app_id: str
    waiting_events: int
    waiting_bytes: int
    oldest_age_ms: int | None
    dead_events: int
    dead_bytes: int
    kept_events: int


class QueueStats(msgspec.Struct, frozen=True, rename="camel"):
    """The queue at one instant, over all apps, and each app's share."""

    waiting_events: int
    waiting_bytes: int
    oldest_age_ms: int | None
    dead_events: int
    dead_bytes: int
    kept_events: int
    remembered_keys: int
    file_bytes: int
    wal_bytes: int
    apps: list[AppStats]

    @classmethod
    def over(cls, apps: list[AppStats], *, remembered_keys: int, file_bytes: int, wal_bytes: int) -> "QueueStats":
        """What the apps come to together, with what is no single app's."""
        ages = [app.oldest_age_ms for app in apps if app.oldest_age_ms is not None]
        return cls(
            waiting_events=sum(app.waiting_events for app in apps),
            waiting_bytes=sum(app.waiting_bytes for app in apps),
            oldest_age_ms=max(ages, default=None),
            dead_events=sum(app.dead_events for app in apps),
            dead_bytes=sum(app.dead_bytes for app in apps),
            kept_events=sum(app.kept_events for app in apps),
            remembered_keys=remembered_keys,
            file_bytes=file_bytes,
            wal_bytes=wal_bytes,
            apps=apps,
        )


class Reason(msgspec.Struct, frozen=True, rename="camel"):
    """Why events became dead letters, and how many of the latest ones."""

    reason: str
    events: int
    latest_ms: int


class DeadLetter(msgspec.Struct, frozen=True, rename="camel"):
    """One dead letter, without the event."""

    app_id: str
    buried_ms: int
    reason: str


class DeadLetters(msgspec.Struct, frozen=True, rename="camel"):
    """The most frequent reasons of the latest `REASON_LETTERS`, and the latest letters, newest first."""

    reasons: list[Reason] = []
    latest: list[DeadLetter] = []


class Queue(Protocol):
    """What sources and the flusher may rely on."""

    arrivals: asyncio.Event
    """Set whenever something may have become available to lease; the flusher clears it."""

    def put(self, batches: Sequence[Batch]) -> Awaitable[Sequence[Verdict]]:
        """A verdict for each batch, of which there is at least one, after the commit that holds all is on disk.

        All batches are stored together or none is. Cancelling the caller does not undo the commit.
        Raises Retryable (QueueFull, QueueBusy, QueueUnavailable) with nothing stored.
        """
        ...

    def backlog(self) -> Iterable[Backlog]:
        """Every app that has events to lease."""
        ...

    def waiting_events_of(self, app_id: str) -> int:
        """Events of one app that are not settled, leased or not, by anybody."""
        ...

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        """The app's oldest events that nobody holds, about `max_events` of them; None where there are none.

        A queue hands out events as it stored them together, so a lease may be larger than asked for; who sends it cuts
        it into requests. A lease lasts until it is settled or the process ends. Raises QueueUnavailable.
        """
        ...

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        """The lease has ended, in one commit; whatever is not named was delivered and is gone.

        The events at `returned` positions wait again, those of `buried` are dead letters. Raises, with nothing
        changed, QueueUnavailable: settle again; and DeadLettersFull: settle with nothing buried.
        """
        ...


class Backend(Queue, Protocol):
    """A queue as its owner has it, who opens, tends and closes it, and as those see it who only look."""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    async def open(self) -> None:
        """What waits in it is known. A queue opens once, in the loop that will use it.

        Raises Unusable or QueueUnavailable, with nothing left open.
        """
        ...

    async def close(self) -> None:
        """Returns after every put and settle that was begun is on disk, and everything held is free. Repeatable."""
        ...

    async def maintain(self) -> None:
        """Until cancelled: forgets old keys, and notices what other processes have done. Raises Unusable."""
        ...

    async def refresh(self) -> None:
        """Learns what waits, also what other processes have put. Raises Retryable."""
        ...

    @property
    def is_flusher(self) -> bool:
        """This process delivers from the queue."""
        ...

    def take_flusher_role(self) -> None:
        """This process leases and settles. Raises QueueInUse where another one does and they cannot share."""
        ...

    def release_flusher_role(self) -> None:
        """Another process may deliver."""
        ...

    def use_limits(self, limits: Limits) -> None:
        """From now on these hold. What is there already stays."""
        ...

    async def round_trip(self) -> None:
        """Returns when what takes events has done what it was given before; never, where it hangs."""
        ...

    def fleet_share(self) -> float:
        """The part of what upstream allows all who deliver from this queue that this process may use: 1 if alone."""
        ...

    @property
    def waiting_events(self) -> int:
        """Events of all apps that are not settled, leased or not."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their lines."""
        ...

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of events that wait in memory for their commit."""
        ...

    @property
    def trouble(self) -> CollectorError | None:
        """Why the queue cannot take events at the moment; None where it can."""
        ...

    def oldest_waiting_seconds(self) -> float:
        """How long the oldest event that is not leased has waited; 0 where there is none."""
        ...

    async def stats(self) -> QueueStats:
        """The queue at this instant. Raises CollectorError."""
        ...

    async def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest of them. Raises CollectorError."""
        ...
