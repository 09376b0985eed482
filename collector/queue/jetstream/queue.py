"""The queue's face: puts, leases and settlements over the shared stream, and what this collector knows of it."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

from collector.clock import Clock
from collector.config.model import JetStream
from collector.errors import (
    CollectorError,
    QueueBusy,
    QueueFull,
    QueueUnavailable,
    Retryable,
    Unusable,
)
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.status import DeadLetters
from collector.queue.base import Backlog, Batch, Burial, Lease, QueueStats, Verdict
from collector.queue.jetstream.connection import Connection, ServerError
from collector.queue.jetstream.delivery import Delivery
from collector.queue.jetstream.figures import dead_letters, purge_keys, stats
from collector.queue.jetstream.fleet import Fleet
from collector.queue.jetstream.leases import Lane
from collector.queue.jetstream.publication import AGAIN_SECONDS, Arrival, Publication
from collector.queue.jetstream.stream import Streams, app_token

log = get_logger(__name__)

BUSY_RETRY_AFTER_SECONDS = 1.0
FULL_RETRY_AFTER_SECONDS = 5.0

READY_SECONDS = 12.0
"""How long a start waits for an election."""
LOOK_SECONDS = 1.0
"""How often the servers are asked what waits: what other collectors put is seen within this time."""
FORGET_SECONDS = 10.0
"""How often keys that are old enough are forgotten."""
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
        self._max_bytes = max_bytes
        self._max_uncommitted_bytes = max_uncommitted_bytes
        self._retention_seconds = dedup_retention_seconds
        self._clock = clock
        self._connection = Connection(settings)
        self._streams = Streams(settings)
        self._fleet = Fleet(self._connection, self._streams.fleet)
        self._publication = Publication(
            self._connection,
            self._streams,
            clock=clock,
            ensure_app=self._ensure_app,
            arrived=self._take_note,
            observe_commit=metrics.observe_commit,
        )
        self._delivery = Delivery(
            self._connection,
            self._streams,
            batch_events=batch_events,
            max_dead_bytes=max_dead_bytes,
            clock=clock,
            arrivals=self.arrivals,
        )
        self._lanes = self._delivery.lanes
        self._apps: dict[str, str] = {}
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
            await self._until_ready()
            await self._fleet.join()
            opened.push_async_callback(self._delivery.give_back)
            opened.push_async_callback(self._publication.close)
            self._opened = opened.pop_all()

    async def _until_ready(self) -> None:
        """The streams are there and answer: a cluster that starts, or a stream that is being made, gets some time."""
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            try:
                await self._streams.ensure(self._connection)
                await self.refresh()
            except (Retryable, ServerError) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise error if isinstance(error, Retryable) else QueueUnavailable(f"JetStream: {error}") from error
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
        self._max_bytes, self._max_uncommitted_bytes = max_bytes, max_uncommitted_bytes
        self._delivery.max_dead_bytes = max_dead_bytes

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
        if not batches:
            return []
        if self._trouble is not None:
            raise QueueUnavailable(str(self._trouble), retry_after_seconds=BUSY_RETRY_AFTER_SECONDS)
        size = sum(batch.bytes for batch in batches)
        waiting = self.waiting_bytes
        if waiting + self.uncommitted_bytes + size > self._max_bytes:
            raise QueueFull(
                f"{waiting} of queue.max_bytes = {self._max_bytes} bytes wait for delivery",
                retry_after_seconds=FULL_RETRY_AFTER_SECONDS,
            )
        if self.uncommitted_bytes + size > self._max_uncommitted_bytes:
            raise QueueBusy(
                f"{self.uncommitted_bytes} of queue.max_uncommitted = {self._max_uncommitted_bytes} bytes wait for "
                "their commit",
                retry_after_seconds=BUSY_RETRY_AFTER_SECONDS,
            )
        return await self._publication.submit(batches)

    def backlog(self) -> Iterable[Backlog]:
        """See `Queue.backlog`. Reads memory only."""
        return [
            Backlog(lane.app_id, lane.available, lane.oldest_since()) for lane in self._lanes.values() if lane.available
        ]

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        """See `Queue.lease`: exactly `max_events` where there are so many, in the order of the stream."""
        return await self._delivery.lease(app_id, max_events)

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        """See `Queue.settle`, and `Delivery.settle`."""
        await self._delivery.settle(lease, buried=buried, returned=returned)

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
        await self._delivery.extend()
        is_busy = bool(self._delivery.leases) or any(lane.available for lane in self._lanes.values())
        await self._fleet.announce(is_busy=is_busy)
        if self._looks % KEEP_LOOKS == 0 and not self._delivery.leases:
            await self._delivery.give_back(whole_only=True)
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
            lane = self._delivery.lane(self._apps.get(token, token))
            before = lane.available
            lane.waiting_events, lane.waiting_bytes = events, size
            await self._look_at_others(lane)
            self._announce(lane, before)
        for lane in self._lanes.values():
            if app_token(lane.app_id) not in waiting:
                lane.waiting_events = lane.leased_events + lane.ready_events
                lane.waiting_bytes = lane.held_elsewhere = 0
        dead = await self._connection.request(f"STREAM.INFO.{self._streams.letters}")
        self._delivery.dead_bytes = dead["state"]["bytes"]

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
            lane = self._delivery.lane(arrival.app_id)
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
