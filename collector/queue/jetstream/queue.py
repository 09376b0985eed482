"""The queue's face: puts, leases and settlements over the shared stream, and what this collector knows of it."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from collector.clock import Clock
from collector.config.model import JetStream
from collector.errors import CollectorError, QueueUnavailable, Retryable, Unusable
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.status import DeadLetters
from collector.queue.base import Backlog, Batch, Burial, Lease, QueueStats, Verdict
from collector.queue.jetstream.connection import Connection, ServerError
from collector.queue.jetstream.deliveries import NO_REPLY, Deliveries
from collector.queue.jetstream.figures import dead_letters, purge_keys, stats
from collector.queue.jetstream.fleet import Fleet
from collector.queue.jetstream.leases import Lane, Message, Slice
from collector.queue.jetstream.publication import Arrival, Publication
from collector.queue.jetstream.stream import Streams, app_token
from collector.queue.limits import BUSY_RETRY_AFTER_SECONDS, Limits

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the servers are asked what waits: what other collectors put is seen within this time."""
FORGET_SECONDS = 10.0
"""How often keys that are old enough are forgotten."""
ORPHAN_LOOKS = 5
OPEN_SECONDS = 10.0
AGAIN_SECONDS = 0.2
FETCH_MESSAGES = 256
"""Most messages in one fetch: with single events in each, four fetches make a batch."""
KEEP_LOOKS = 10
"""What nobody here delivers for about so many looks is given to whichever collector asks first."""
MIN_PAYLOAD_BYTES = 2**20


class JetStreamQueue:
    """One collector's part in the fleet. `open` it inside the running loop that will use it, `close` it there."""

    def __init__(
        self,
        settings: JetStream,
        *,
        batch_events: int,
        max_bytes: int,
        max_uncommitted_bytes: int,
        max_dead_bytes: int,
        dedup_retention_seconds: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.arrivals = asyncio.Event()
        self._look_seconds = min(LOOK_SECONDS, settings.lease_timeout / 4)
        self._batch_events = batch_events
        self._limits = Limits(max_bytes, max_uncommitted_bytes, max_dead_bytes)
        self._retention_seconds = dedup_retention_seconds
        self._clock = clock
        self._connection = Connection(settings)
        self._streams = Streams(settings)
        self._fleet = Fleet(self._connection, self._streams.fleet)
        self._deliveries = Deliveries(self._connection, self._streams)
        self._publication = Publication(
            self._connection,
            self._streams,
            clock=clock,
            ensure_app=self._ensure_app,
            arrived=self._take_note,
            observe_commit=metrics.observe_commit,
        )
        self._lanes: dict[str, Lane] = {}
        self._apps: dict[str, str] = {}
        self._dead_bytes = 0
        self._leases: dict[int, list[Slice]] = {}
        self._lease_number = 0
        self._leasing = asyncio.Lock()
        self._trouble: CollectorError | None = None
        self._is_flusher = False
        self._looks = 0
        self._opened = contextlib.AsyncExitStack()

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self._streams.place

    async def open(self) -> None:
        """The stream is there as it must be, and what waits in it is known. A queue opens once.

        Raises Unusable, CredentialsRefused or QueueUnavailable, with nothing left open.
        """
        async with contextlib.AsyncExitStack() as opened:
            await self._connection.open()
            opened.push_async_callback(self._connection.close)
            if self._connection.client.max_payload < MIN_PAYLOAD_BYTES:
                raise Unusable(f"jetstream: the server's max_payload must be {MIN_PAYLOAD_BYTES} bytes or more")
            await self._begin()
            opened.push_async_callback(self._give_all_back)
            opened.push_async_callback(self._publication.close)
            self._opened = opened.pop_all()

    async def _begin(self) -> None:
        """Waits out an election of leaders, and others that make the streams right now. Raises what `open` raises."""
        deadline = asyncio.get_running_loop().time() + OPEN_SECONDS
        while True:
            try:
                await self._streams.ensure(self._connection)
                await self.refresh()
                await self._fleet.join()
            except (
                QueueUnavailable,
                ServerError,
            ) as error:  # also: a stream is not known yet to all who make it at once
                if asyncio.get_running_loop().time() > deadline:
                    if isinstance(error, QueueUnavailable):
                        raise
                    raise Unusable(f"jetstream: {self.place} cannot be used: {error}") from error
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    @property
    def is_flusher(self) -> bool:
        """This collector delivers from the queue; all of a fleet may."""
        return self._is_flusher

    def take_flusher_role(self) -> None:
        """This collector leases and settles, beside the others."""
        self._is_flusher = True

    def release_flusher_role(self) -> None:
        """This collector no longer does."""
        self._is_flusher = False

    def use_limits(
        self, *, max_bytes: int, max_uncommitted_bytes: int, max_dead_bytes: int, keep_delivered_seconds: float
    ) -> None:
        """See `Backend.use_limits`. Nothing that was delivered is kept."""
        del keep_delivered_seconds
        self._limits = Limits(max_bytes, max_uncommitted_bytes, max_dead_bytes)

    async def round_trip(self) -> None:
        """See `Backend.round_trip`. No thread can hang here, and servers that do not answer are no defect."""

    def fleet_share(self) -> float:
        """The part of what upstream allows the whole fleet that this collector may use."""
        return self._fleet.share()

    @property
    def waiting_events(self) -> int:
        """Events of all apps that are not settled, leased or not; those of other collectors as of a second ago."""
        return sum(lane.waiting_events for lane in self._lanes.values())

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their lines, each message's rounded up to KiB."""
        return sum(lane.waiting_bytes for lane in self._lanes.values())

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of events that wait in memory for their commit."""
        return self._publication.uncommitted_bytes

    @property
    def trouble(self) -> CollectorError | None:
        """Why JetStream keeps the queue from taking events at the moment; None where it does not."""
        return self._trouble

    def oldest_waiting_seconds(self) -> float:
        """How long the oldest event that is not leased has waited; 0 where there is none."""
        since = [lane.oldest_since() for lane in self._lanes.values() if lane.available]
        return max(0.0, self._clock.monotonic() - min(since)) if since else 0.0

    async def put(self, batches: Sequence[Batch]) -> Sequence[Verdict]:
        """See `Queue.put`: returns once a majority of the replicas has it.

        More than 940 events, or of more than 20 apps, are several transactions: where a later one fails, what came
        before is stored, and is known when the caller sends it again.
        """
        if self._trouble is not None:
            raise QueueUnavailable(str(self._trouble), retry_after_seconds=BUSY_RETRY_AFTER_SECONDS)
        size, uncommitted = sum(batch.bytes for batch in batches), self.uncommitted_bytes
        waiting = self.waiting_bytes + uncommitted
        if waiting + size > self._limits.max_bytes:
            raise self._limits.full(waiting)
        if uncommitted + size > self._limits.max_uncommitted_bytes:
            raise self._limits.busy(uncommitted)
        return await self._publication.submit(batches)

    def backlog(self) -> Iterable[Backlog]:
        """See `Queue.backlog`. Reads memory only."""
        return [
            Backlog(lane.app_id, lane.available, lane.oldest_since()) for lane in self._lanes.values() if lane.available
        ]

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        """See `Queue.lease`: exactly `max_events` where there are so many, in the order of the stream."""
        async with self._leasing:
            lane = self._lanes.get(app_id)
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
            self._leases[self._lease_number] = pieces
            lines = [line for piece in pieces for line in piece.lines]
            return Lease(app_id, self._lease_number, self._lease_number, len(lines), b"\n".join(lines))

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        """See `Queue.settle`. The dead letters are stored first, each once however often this is tried again.

        Of a message some of whose events wait on, nothing is acknowledged: after a crash all of them are sent again,
        which upstream's own key absorbs.
        """
        lane = self._lanes[lease.app_id]
        async with lane.settling:  # two leases may share a message
            await self._settle(lane, lease.first, buried, set(returned))

    async def _settle(self, lane: Lane, number_of_lease: int, buried: Sequence[Burial], back: set[int]) -> None:
        pieces = self._leases[number_of_lease]
        places = [
            (piece.sequence, position, line)
            for piece in pieces
            for position, line in zip(piece.positions, piece.lines, strict=True)
        ]
        await self._bury(lane.app_id, [(burial, places[burial.position]) for burial in buried])
        rest, open_events = _rest(places, back), dict[int, int]()
        for number, (sequence, _, _) in enumerate(places):
            if number not in back:
                open_events[sequence] = open_events.get(sequence, lane.message(sequence).open_events) - 1
        done = [sequence for sequence, events in open_events.items() if not events]
        await self._deliveries.finish([lane.message(sequence) for sequence in done])
        for sequence, events in open_events.items():
            lane.message(sequence).open_events = events
        for sequence in done:
            del lane.messages[sequence]
        settled = len(places) - len(back)
        lane.waiting_events = max(0, lane.waiting_events - settled)
        size = sum(len(line) + 1 for number, (_, _, line) in enumerate(places) if number not in back)
        lane.waiting_bytes = max(0, lane.waiting_bytes - size)
        lane.leased_events -= len(places)
        del self._leases[number_of_lease]
        if rest:
            for piece in rest:
                lane.message(piece.sequence).since = min(lane.message(piece.sequence).since, self._clock.monotonic())
            lane.give_back(rest)
            self.arrivals.set()

    async def maintain(self) -> None:
        """Until cancelled: keeps what is held, learns what others have done, and forgets old keys."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tend())
            tasks.create_task(self._forget())

    async def _tend(self) -> None:
        said = ""
        while True:
            try:
                await self._tend_once()
                if self._trouble is not None:
                    log.info("queue.available_again", queue=self.place)
                self._trouble, said = None, ""
                self.arrivals.set()
            except (Retryable, ServerError) as error:
                self._trouble = error if isinstance(error, Retryable) else QueueUnavailable(f"JetStream: {error}")
            except Unusable as error:
                self._trouble = QueueUnavailable(str(error))
            if self._trouble is not None and said != str(self._trouble):
                said = str(self._trouble)
                log.warning("queue.unavailable", error=said)
            await self._clock.sleep(self._look_seconds)

    async def _tend_once(self) -> None:
        await self._connection.revive()
        self._looks += 1
        held = [message for lane in self._lanes.values() for message in lane.messages.values()]
        await self._deliveries.extend(held)
        await self._fleet.announce(is_busy=bool(self._leases) or any(lane.available for lane in self._lanes.values()))
        if self._looks % KEEP_LOOKS == 0 and not self._leases:
            await self._give_all_back(whole_only=True)
        await self.refresh()

    async def _forget(self) -> None:
        """Beside the rest: a purge of many keys takes longer than a lease lasts."""
        said = ""
        while True:
            try:
                await purge_keys(self._connection, self._streams, self._retention_seconds)
                said = ""
            except (Retryable, ServerError) as error:
                if self._trouble is None and said != str(error):
                    said = str(error)
                    log.warning("queue.keys_not_forgotten", error=said)
            await self._clock.sleep(FORGET_SECONDS)

    async def refresh(self) -> None:
        """Learns from the servers what waits, also what other collectors have put and delivered."""
        answer = await self._streams.info(self._connection, self._streams.events, f"{self._streams.data}.>")
        waiting = self._streams.waiting(answer["state"]["subjects"])
        if any(token not in self._apps for token in waiting):
            self._apps |= await self._streams.apps(self._connection)
        for token, (events, size) in waiting.items():
            lane = self._lane(self._apps.get(token, token))
            before = lane.available
            lane.waiting_events, lane.waiting_bytes = events, size
            await self._look_at_others(lane)
            self._announce(lane, before)
        for lane in self._lanes.values():
            if app_token(lane.app_id) not in waiting:
                lane.waiting_events = lane.leased_events + lane.ready_events
                lane.waiting_bytes = lane.held_elsewhere = 0
        dead = await self._connection.request(f"STREAM.INFO.{self._streams.letters}")
        self._dead_bytes = dead["state"]["bytes"]

    async def stats(self) -> QueueStats:
        """The queue at this instant, as `collector queue stats` shows it."""
        return await stats(self._connection, self._streams)

    async def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest of them."""
        return await dead_letters(self._connection, self._streams)

    async def close(self) -> None:
        """Every put that was begun is answered, what is held is given back, and nothing is connected."""
        await self._opened.aclose()

    async def _look_at_others(self, lane: Lane) -> None:
        """Learns how much of an app's events others hold, from how many messages are held in all."""
        found = await self._streams.ensure_consumer(self._connection, lane.app_id)
        pending, held = found["num_pending"], found["num_ack_pending"]
        others = max(0, held - len(lane.messages))
        not_here = max(0, lane.waiting_events - lane.leased_events - lane.ready_events)
        # Where all is held, perhaps by a collector that has died: only a fetch can tell, one a look.
        lane.held_elsewhere = round(not_here * others / (others + pending)) if pending else 0
        lane.is_exhausted = False
        is_orphaned = not pending and not held and not lane.messages and lane.waiting_events > 0
        lane.orphan_looks = lane.orphan_looks + 1 if is_orphaned else 0
        if lane.orphan_looks >= ORPHAN_LOOKS:
            await self._adopt(lane)
        reached = found["delivered"]["stream_seq"]
        while lane.arrivals and (first := next(iter(lane.arrivals))) <= reached and first not in lane.messages:
            del lane.arrivals[first]

    async def _ensure_app(self, app_id: str) -> None:
        token = app_token(app_id)
        if token not in self._apps:
            await self._streams.ensure_consumer(self._connection, app_id)
            self._apps[token] = app_id

    def _take_note(self, arrivals: Sequence[Arrival]) -> None:
        """What was put here has arrived."""
        for arrival in arrivals:
            lane = self._lane(arrival.app_id)
            before = lane.available
            if not before:
                lane.waiting_since = self._clock.monotonic()
            lane.arrivals[arrival.sequence] = self._clock.monotonic()
            lane.is_exhausted = False
            lane.waiting_events += arrival.events
            lane.waiting_bytes += arrival.bytes
            self._announce(lane, before)

    def _announce(self, lane: Lane, before: int) -> None:
        if lane.available > before:
            if before == 0 and not lane.arrivals:
                lane.waiting_since = self._clock.monotonic()
            if before == 0 or before < self._batch_events <= lane.available:
                self.arrivals.set()

    async def _fetch(self, lane: Lane, events: int) -> None:
        """Asks the server for messages with about so many events. Raises QueueUnavailable."""
        wanted = min(FETCH_MESSAGES, self._messages_of(lane, events))
        async for message in self._deliveries.fetch(lane.app_id, wanted):
            wanted -= 1
            self._hold(lane, message)
        lane.is_exhausted = wanted > 0

    async def _bury(self, app_id: str, letters: Sequence[tuple[Burial, tuple[int, int, bytes]]]) -> None:
        if not letters:
            return
        size = sum(len(line) + len(burial.reason) for burial, (_, _, line) in letters)
        if self._dead_bytes + size > self._limits.max_dead_bytes:
            raise self._limits.dead_letters_full(self._dead_bytes, [burial for burial, _ in letters])
        await self._deliveries.bury(app_id, letters, self._clock.now_ms())
        self._dead_bytes += size

    async def _give_all_back(self, *, whole_only: bool = False) -> None:
        """What is held and not leased is anybody's; with `whole_only` but for messages of which a part is settled.

        Those would be sent again as a whole.
        """
        kept = {piece.sequence for pieces in self._leases.values() for piece in pieces}
        free: list[Message] = []
        for lane in self._lanes.values():
            left = [each for each in lane.messages.values() if each.sequence not in kept]
            free += (given := [each for each in left if each.is_whole or not whole_only])
            for message in given:
                del lane.messages[message.sequence]
            lane.ready = [piece for piece in lane.ready if piece.sequence in lane.messages]
        await self._deliveries.give_back(free)

    async def _adopt(self, lane: Lane) -> None:
        """Takes in messages that the consumer takes for acknowledged, and that were not deleted.

        Whoever acknowledged one has died before it was deleted, or the servers have; that it was delivered is likely,
        and not certain. It is delivered again, which upstream absorbs.
        """
        for stored in await self._deliveries.left_over(lane.app_id, FETCH_MESSAGES):
            lines = stored.data.split(b"\n")
            lane.add(Message(stored.sequence, NO_REPLY, len(lines), self._clock.monotonic()), lines)
        log.warning("queue.messages_adopted", app=lane.app_id, messages=len(lane.messages))
        self.arrivals.set()

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

    def _lane(self, app_id: str) -> Lane:
        lane = self._lanes.get(app_id)
        if lane is None:
            lane = self._lanes[app_id] = Lane(app_id)
        return lane


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
