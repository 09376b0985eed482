"""What this collector has leased, and what it holds in order to: from messages that are fetched to their settlement.

A lease is made of slices of messages, first to last. A message is deleted once nothing of it is open; before that it is
held, leased or not, until it is given back to whoever asks first.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from collector.clock import Clock
from collector.observe.logs import get_logger
from collector.queue.base import Lease
from collector.queue.jetstream.deliveries import NO_REPLY, Deliveries
from collector.queue.jetstream.lanes import Lane, Message, MessageId, Origin, Slice

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = get_logger(__name__)

FETCH_MESSAGES = 256
"""Most messages in one fetch: with single events in each, four fetches make a batch."""


class Leases:
    """Those that are not settled. `arrivals` is set when something can be leased that could not before."""

    def __init__(self, deliveries: Deliveries, *, batch_events: int, clock: Clock, arrivals: asyncio.Event) -> None:
        self._deliveries = deliveries
        self._batch_events = batch_events
        self._clock = clock
        self._arrivals = arrivals
        self._leases: dict[int, list[Slice]] = {}
        self._last_number = 0
        self._leasing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._leases)

    async def lease(self, lane: Lane, max_events: int) -> Lease | None:
        """See `Queue.lease`. Both ends of its range are its number here."""
        async with self._leasing:
            while lane.ready_events < max_events and lane.available > lane.ready_events:
                # Whoever is cancelled meanwhile must not lose what the server gives.
                fetching = asyncio.ensure_future(self._fetch(lane, max_events - lane.ready_events))
                try:
                    await asyncio.shield(fetching)
                except asyncio.CancelledError:
                    await asyncio.wait([fetching])
                    raise
            pieces = lane.take(max_events)
            if not pieces:
                return None
            self._last_number += 1
            self._leases[self._last_number] = pieces
            lines = [line for piece in pieces for line in piece.lines]
            return Lease(lane.app_id, self._last_number, self._last_number, len(lines), b"\n".join(lines))

    def origins(self, lease: Lease) -> list[Origin]:
        """Where each event of a lease comes from, by its position."""
        return [
            Origin(piece.message, position, line)
            for piece in self._leases[lease.first]
            for position, line in zip(piece.positions, piece.lines, strict=True)
        ]

    async def settle(self, lane: Lane, lease: Lease, back: set[int]) -> None:
        """The lease has ended: what is at the positions of `back` can be leased again, the rest is gone.

        Of a message some of whose events wait on, nothing is settled there: after a crash all of them are sent again,
        which upstream's own key absorbs. Raises QueueUnavailable with nothing changed here. One at a time of a lane.
        """
        origins = self.origins(lease)
        rest, open_events = _rest(origins, back), dict[MessageId, int]()
        for number, (message, _, _) in enumerate(origins):
            if number not in back:
                open_events[message] = open_events.get(message, lane.message(message).open_events) - 1
        done = [message for message, events in open_events.items() if not events]
        await self._deliveries.finish(done)
        for message, events in open_events.items():
            lane.message(message).open_events = events
        for message in done:
            del lane.messages[message]
        settled = len(origins) - len(back)
        lane.waiting_events = max(0, lane.waiting_events - settled)
        size = sum(len(line) + 1 for number, (_, _, line) in enumerate(origins) if number not in back)
        lane.waiting_bytes = max(0, lane.waiting_bytes - size)
        lane.leased_events -= len(origins)
        del self._leases[lease.first]
        if rest:
            for piece in rest:
                lane.message(piece.message).since = min(lane.message(piece.message).since, self._clock.monotonic())
            lane.give_back(rest)
            self._arrivals.set()

    async def give_back(self, lanes: Iterable[Lane], *, whole_only: bool = False) -> None:
        """What is held and not leased is anybody's; with `whole_only` but for messages of which a part is settled.

        Those would be sent again as a whole.
        """
        kept = {piece.message for pieces in self._leases.values() for piece in pieces}
        free: list[Message] = []
        for lane in lanes:
            left = [each for each in lane.messages.values() if each.id not in kept]
            free += (given := [each for each in left if each.is_whole or not whole_only])
            for message in given:
                del lane.messages[message.id]
            lane.ready = [piece for piece in lane.ready if piece.message in lane.messages]
        await self._deliveries.give_back(free)

    async def adopt(self, lane: Lane) -> None:
        """Takes in messages that are there, and that the consumer takes for acknowledged.

        A server that has lost the end of a stream gives its numbers again, and perhaps not the consumer's state. Where
        one was delivered all the same, it is delivered again, which upstream absorbs.
        """
        for stored in await self._deliveries.left_over(lane.app_id, FETCH_MESSAGES):
            lines = stored.data.split(b"\n")
            message_id = MessageId(stored.sequence, stored.when)
            lane.add(Message(message_id, NO_REPLY, len(lines), self._clock.monotonic()), lines)
        log.warning("queue.messages_adopted", app=lane.app_id, messages=len(lane.messages))
        self._arrivals.set()

    async def _fetch(self, lane: Lane, events: int) -> None:
        """Asks the server for messages with about so many events. Raises QueueUnavailable."""
        wanted = min(FETCH_MESSAGES, self._messages_of(lane, events))
        async for message in self._deliveries.fetch(lane.app_id, wanted):
            wanted -= 1
            self._hold(lane, message)
        lane.is_exhausted = wanted > 0

    def _messages_of(self, lane: Lane, events: int) -> int:
        """How many messages that are probably needed for so many events, by what was fetched last."""
        held = [message.open_events for message in list(lane.messages.values())[-8:]]
        mean = sum(held) / len(held) if held else self._batch_events
        return max(1, -(-events // max(1, round(mean))))

    def _hold(self, lane: Lane, message: "Msg") -> None:
        """Takes in what the server gave; since when it waits is known here, or by the server's stamp."""
        message_id = MessageId.of(message.reply)
        lines = message.data.split(b"\n")
        since = lane.arrivals.pop(message_id.sequence, None)
        if since is None:
            age = self._clock.now_us() / 1e6 - message_id.stored.timestamp()
            since = self._clock.monotonic() - max(0.0, age)
        lane.add(Message(message_id, message.reply, len(lines), since), lines)


def _rest(origins: Sequence[Origin], back: set[int]) -> list[Slice]:
    """Those that wait on, by message."""
    by_message: dict[MessageId, list[tuple[int, bytes]]] = {}
    for number in sorted(back):
        message, position, line = origins[number]
        by_message.setdefault(message, []).append((position, line))
    return [
        Slice(message, tuple(position for position, _ in events), tuple(line for _, line in events))
        for message, events in by_message.items()
    ]
