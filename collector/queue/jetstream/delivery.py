"""Events leave the stream: messages are fetched, leased in pieces, and settled; dead letters are stored before that."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from collector.clock import Clock
from collector.errors import DeadLettersFull, QueueUnavailable
from collector.queue.base import Burial, Lease
from collector.queue.jetstream.connection import Connection, ServerError, decoded
from collector.queue.jetstream.figures import LetterBody
from collector.queue.jetstream.leases import Lane, Message, Slice
from collector.queue.jetstream.stream import WRONG_LAST_SEQUENCE, Streams, app_token

if TYPE_CHECKING:
    from nats.aio.msg import Msg

FETCH_MESSAGES = 256
"""Most messages in one fetch: with single events in each, four fetches make a batch."""
FETCH_SECONDS = 2.0
MESSAGE_NOT_FOUND = frozenset({10037, 10043, 10057})


class Delivery:
    """What this collector holds. The servers give it to another one unless `extend` says in time that it lives."""

    def __init__(
        self,
        connection: Connection,
        streams: Streams,
        *,
        batch_events: int,
        max_dead_bytes: int,
        clock: Clock,
        arrivals: asyncio.Event,
    ) -> None:
        self.lanes: dict[str, Lane] = {}
        self.leases: dict[int, list[Slice]] = {}
        self.dead_bytes = 0
        """Of the fleet's dead letters, as far as is known."""
        self.max_dead_bytes = max_dead_bytes
        self._connection = connection
        self._streams = streams
        self._batch_events = batch_events
        self._clock = clock
        self._arrivals = arrivals
        self._lease_number = 0
        self._leasing = asyncio.Lock()

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        """See `Queue.lease`: exactly `max_events` where there are so many, in the order of the stream."""
        async with self._leasing:
            lane = self.lanes.get(app_id)
            if lane is None:
                return None
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
            self._lease_number += 1
            self.leases[self._lease_number] = pieces
            lines = [line for piece in pieces for line in piece.lines]
            return Lease(app_id, self._lease_number, self._lease_number, len(lines), b"\n".join(lines))

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        """See `Queue.settle`. The dead letters are stored first, each once however often this is tried again.

        Of a message some of whose events wait on, nothing is acknowledged: after a crash all of them are sent again,
        which upstream's own key absorbs.
        """
        lane, pieces = self.lanes[lease.app_id], self.leases[lease.first]
        places = [
            (piece.sequence, position, line)
            for piece in pieces
            for position, line in zip(piece.positions, piece.lines, strict=True)
        ]
        await self._bury(lease.app_id, [(burial, places[burial.position]) for burial in buried])
        back = set(returned)
        rest, open_events = _rest(places, back), dict[int, int]()
        for number, (sequence, _, _) in enumerate(places):
            if number not in back:
                open_events[sequence] = open_events.get(sequence, lane.message(sequence).open_events) - 1
        done = [sequence for sequence, events in open_events.items() if not events]
        await self._finish([lane.message(sequence) for sequence in done])
        for sequence, events in open_events.items():
            lane.message(sequence).open_events = events
        for sequence in done:
            del lane.messages[sequence]
        settled = len(places) - len(back)
        lane.waiting_events = max(0, lane.waiting_events - settled)
        size = sum(len(line) + 1 for number, (_, _, line) in enumerate(places) if number not in back)
        lane.waiting_bytes = max(0, lane.waiting_bytes - size)
        lane.leased_events -= len(places)
        del self.leases[lease.first]
        if rest:
            for piece in rest:
                lane.message(piece.sequence).since = min(lane.message(piece.sequence).since, self._clock.monotonic())
            lane.give_back(rest)
            self._arrivals.set()

    async def extend(self) -> None:
        """Tells the servers that this collector is alive and holds what it holds."""
        replies = [message.reply for lane in self.lanes.values() for message in lane.messages.values()]
        if replies:
            await self._connection.send(b"".join(b"PUB %s 4\r\n+WPI\r\n" % reply.encode() for reply in replies))

    async def give_back(self, *, whole_only: bool = False) -> None:
        """What is held and not leased is anybody's; with `whole_only` but for messages of which a part is settled.

        Those would be sent again as a whole.
        """
        leased = {piece.sequence for pieces in self.leases.values() for piece in pieces}
        out = []
        for lane in self.lanes.values():
            free = [each for each in lane.messages.values() if each.sequence not in leased]
            for message in [each for each in free if each.is_whole or not whole_only]:
                out.append(b"PUB %s 4\r\n-NAK\r\n" % message.reply.encode())
                del lane.messages[message.sequence]
            lane.ready = [piece for piece in lane.ready if piece.sequence in lane.messages]
        if out and self._connection.is_up:
            await self._connection.send(b"".join(out))
            await self._connection.client.flush()

    def lane(self, app_id: str) -> Lane:
        """What is known of an app, from now on if it was unknown."""
        lane = self.lanes.get(app_id)
        if lane is None:
            lane = self.lanes[app_id] = Lane(app_id)
        return lane

    async def _fetch(self, lane: Lane, events: int) -> None:
        """Asks the server for messages with about so many events. Raises QueueUnavailable."""
        wanted = min(FETCH_MESSAGES, self._messages_of(lane, events))
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._streams.events}.{app_token(lane.app_id)}"
        body = msgspec.json.encode({"batch": wanted, "no_wait": True})
        async with self._connection.answers() as (inbox, arrived):
            await self._connection.client.publish(subject, body, reply=inbox)
            for _ in range(wanted):
                try:
                    async with asyncio.timeout(FETCH_SECONDS):
                        message = await arrived.get()
                except TimeoutError as error:
                    if lane.ready:
                        return
                    raise QueueUnavailable("JetStream does not answer") from error
                if (message.headers or {}).get("Status") is not None or not message.reply:
                    lane.is_exhausted = True
                    return
                self._hold(lane, message)

    def _messages_of(self, lane: Lane, events: int) -> int:
        """How many messages that are probably needed for so many events, by what was fetched last."""
        held = [message.open_events for message in list(lane.messages.values())[-8:]]
        mean = sum(held) / len(held) if held else self._batch_events
        return max(1, -(-events // max(1, round(mean))))

    def _hold(self, lane: Lane, message: "Msg") -> None:
        """Takes in what the server gave; since when it waits is known here, or by the server's stamp."""
        metadata = message.metadata
        sequence = metadata.sequence.stream
        lines = message.data.split(b"\n")
        since = lane.arrivals.pop(sequence, None)
        if since is None:
            age = self._clock.now_us() / 1e6 - metadata.timestamp.timestamp()
            since = self._clock.monotonic() - max(0.0, age)
        lane.add(Message(sequence, message.reply, len(lines), since), lines)

    async def _bury(self, app_id: str, letters: Sequence[tuple[Burial, tuple[int, int, bytes]]]) -> None:
        if not letters:
            return
        size = sum(len(line) + len(burial.reason) for burial, (_, _, line) in letters)
        if self.dead_bytes + size > self.max_dead_bytes:
            raise DeadLettersFull(
                f"dead letters take {self.dead_bytes} of queue.max_dead_bytes = {self.max_dead_bytes} bytes, so "
                f"nothing more is buried, and this app's events wait. Upstream refuses {len(letters)} of them: "
                f"{letters[0][0].reason}. Make room: collector queue dead list, export, and retry or purge"
            )
        now = self._clock.now_ms()
        for burial, (sequence, position, line) in letters:
            body = LetterBody(app_id, burial.reason, now, msgspec.Raw(line))
            # With a digest: in a stream that was made anew the numbers begin again, and old letters are still there.
            place = f"{sequence}.{position}.{hashlib.blake2b(line, digest_size=8).hexdigest()}"
            subject = f"{self._streams.dead}.{app_token(app_id)}.{place}"
            once = {"Nats-Expected-Last-Subject-Sequence": "0"}
            try:
                decoded((await self._connection.ask(subject, msgspec.json.encode(body), headers=once)).data)
            except ServerError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE:  # else an earlier attempt has buried it
                    raise QueueUnavailable(f"JetStream does not store a dead letter: {error}") from error
        self.dead_bytes += size

    async def _finish(self, messages: Sequence[Message]) -> None:
        """These messages are acknowledged, which the server has confirmed, and deleted. Raises QueueUnavailable."""
        if not messages:
            return

        async def finish(message: Message) -> None:
            await self._connection.ask(message.reply, b"+ACK")
            try:
                body: dict[str, Any] = {"seq": message.sequence, "no_erase": True}
                await self._connection.request(f"STREAM.MSG.DELETE.{self._streams.events}", body)
            except ServerError as error:
                if error.err_code not in MESSAGE_NOT_FOUND:  # else it was deleted before, and the answer was lost
                    raise QueueUnavailable(f"JetStream does not delete what was delivered: {error}") from error

        results = await asyncio.gather(*map(finish, messages), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


def _rest(places: Sequence[tuple[int, int, bytes]], back: set[int]) -> list[Slice]:
    """Those of the places that wait on, by message."""
    by_message: dict[int, list[tuple[int, bytes]]] = {}
    for number in sorted(back):
        sequence, position, line = places[number]
        by_message.setdefault(sequence, []).append((position, line))
    return [
        Slice(sequence, tuple(position for position, _ in events), tuple(line for _, line in events))
        for sequence, events in by_message.items()
    ]
