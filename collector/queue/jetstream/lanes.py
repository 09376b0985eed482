"""What this collector holds of one app: messages that it has fetched, cut into leases and put together again."""

import asyncio
from bisect import insort
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from collector.errors import QueueUnavailable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MessageId(NamedTuple):
    """Which message it is: its number in the stream, and when the server stored it, to the microsecond.

    The number alone does not tell: a stream that was made anew, or has lost its end, gives numbers a second time.
    """

    sequence: int
    stored: datetime

    @classmethod
    def of(cls, reply: str) -> "MessageId":
        """That of a message which a consumer has given, by the subject for its acknowledgement."""
        tokens = reply.split(".")  # $JS.ACK[.domain.account].stream.consumer.times.sequence.number.stored_ns.waiting
        at = 5 if len(tokens) == 9 else 7
        return cls(int(tokens[at]), EPOCH + timedelta(microseconds=int(tokens[at + 2]) // 1000))


class Message:
    """A message with the lines of several events, which is done with once nothing of it is open."""

    __slots__ = ("events", "id", "open_events", "reply", "since")

    def __init__(self, message_id: MessageId, reply: str, events: int, since: float) -> None:
        self.id = message_id
        self.reply = reply
        self.events = self.open_events = events
        self.since = since

    @property
    def is_whole(self) -> bool:
        """Nothing of it is settled."""
        return self.open_events == self.events


class Slice(NamedTuple):
    """Events of one message: their positions in it, and their lines."""

    message: MessageId
    positions: tuple[int, ...]
    lines: tuple[bytes, ...]


class Origin(NamedTuple):
    """Where an event of a lease comes from: its message, and its position in there; with its line."""

    message: MessageId
    position: int
    line: bytes


class Lane:
    """One app: what waits in the whole fleet, as far as is known, and what is held here."""

    def __init__(self, app_id: str) -> None:
        self.app_id = app_id
        self.settling = asyncio.Lock()
        self.waiting_events = 0
        """Of the fleet, held by somebody or not."""
        self.waiting_bytes = 0
        self.leased_events = 0
        """Here."""
        self.held_elsewhere = 0
        self.orphan_looks = 0
        """How often in a row messages were there that the consumer does not know of."""
        self.is_exhausted = False
        """The server had nothing to give when it was last asked."""
        self.waiting_since = 0.0
        self.ready: list[Slice] = []
        """Fetched or returned, and leased by nobody; in order."""
        self.messages: dict[MessageId, Message] = {}
        self.arrivals: dict[int, float] = {}
        """When messages that were put here were stored, by number."""

    @property
    def ready_events(self) -> int:
        """How many events could be leased without asking the server."""
        return sum(len(piece.lines) for piece in self.ready)

    @property
    def available(self) -> int:
        """How many events could be leased, as far as is known."""
        if self.is_exhausted:
            return self.ready_events
        return max(self.ready_events, self.waiting_events - self.leased_events - self.held_elsewhere)

    def oldest_since(self) -> float:
        """Since when the oldest event that is not leased waits."""
        known = [self.messages[piece.message].since for piece in self.ready[:1]]
        known += [since for _, since in zip(range(1), self.arrivals.values(), strict=False)]
        return min(known, default=self.waiting_since)

    def add(self, message: Message, lines: Sequence[bytes]) -> None:
        """Takes in a message that the server has given. One that is held here already was sent again."""
        held = self.messages.get(message.id)
        if held is not None:
            held.reply = message.reply
            return
        self.messages[message.id] = message
        insort(self.ready, Slice(message.id, tuple(range(len(lines))), tuple(lines)))

    def take(self, max_events: int) -> list[Slice]:
        """The first events that are ready, up to a number; a message may be cut for that."""
        taken: list[Slice] = []
        while self.ready and max_events:
            piece = self.ready.pop(0)
            if len(piece.lines) > max_events:
                rest = Slice(piece.message, piece.positions[max_events:], piece.lines[max_events:])
                self.ready.insert(0, rest)
                piece = Slice(piece.message, piece.positions[:max_events], piece.lines[:max_events])
            taken.append(piece)
            max_events -= len(piece.lines)
        self.leased_events += sum(len(piece.lines) for piece in taken)
        return taken

    def give_back(self, pieces: Sequence[Slice]) -> None:
        """These events are ready again."""
        for piece in pieces:
            insort(self.ready, piece)

    def message(self, message_id: MessageId) -> Message:
        """A message that is held. Raises QueueUnavailable."""
        try:
            return self.messages[message_id]
        except KeyError:
            raise QueueUnavailable("a message that is not held cannot be settled") from None
