"""The queue's face: puts and settlements over the shared stream, and what this collector knows of it."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence

from collector.clock import Clock
from collector.config.model import JetStream
from collector.errors import CollectorError, QueueFull, QueueUnavailable, Retryable, Unusable
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.queue.base import Backlog, Batch, Burial, DeadLetters, Lease, QueueStats, Verdict
from collector.queue.jetstream.connection import Connection, ServerError
from collector.queue.jetstream.deliveries import Deliveries
from collector.queue.jetstream.figures import dead_letters, stats
from collector.queue.jetstream.fleet import Fleet
from collector.queue.jetstream.lanes import Lane, Origin
from collector.queue.jetstream.leases import Leases
from collector.queue.jetstream.pruning import purge_keys
from collector.queue.jetstream.publication import Arrival, Publication
from collector.queue.jetstream.stream import Streams, app_token
from collector.queue.limits import BUSY_RETRY_AFTER_SECONDS, Limits, Refusals

log = get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the servers are asked what waits: what other collectors put is seen within this time."""
FORGET_SECONDS = 10.0
"""How often keys that are old enough are forgotten."""
ORPHAN_LOOKS = 5
OPEN_SECONDS = 10.0
AGAIN_SECONDS = 0.2
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
        limits: Limits,
        dedup_retention_seconds: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.arrivals = asyncio.Event()
        self._look_seconds = min(LOOK_SECONDS, settings.lease_timeout / 4)
        self._batch_events = batch_events
        self._limits = limits
        self._retention_seconds = dedup_retention_seconds
        self._clock = clock
        self._refusals = Refusals(clock)
        self._connection = Connection(settings)
        self._streams = Streams(settings)
        self._fleet = Fleet(self._connection, self._streams.fleet)
        self._deliveries = Deliveries(self._connection, self._streams)
        self._leases = Leases(self._deliveries, batch_events=batch_events, clock=clock, arrivals=self.arrivals)
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
            opened.push_async_callback(self._leases.give_back, self._lanes.values())
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
            except (QueueUnavailable, ServerError) as error:  # also: a stream that others make is not known to all yet
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

    def use_limits(self, limits: Limits) -> None:
        """See `Backend.use_limits`. Nothing that was delivered is kept."""
        self._limits = limits

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
            raise self._refusals.noted(self._limits.full(waiting))
        if uncommitted + size > self._limits.max_uncommitted_bytes:
            raise self._refusals.noted(self._limits.busy(uncommitted))
        try:
            return await self._publication.submit(batches)
        except QueueFull as error:  # of the servers' own limits
            self._refusals.noted(error)
            raise

    def backlog(self) -> Iterable[Backlog]:
        """See `Queue.backlog`. Reads memory only."""
        return [
            Backlog(lane.app_id, lane.available, lane.oldest_since()) for lane in self._lanes.values() if lane.available
        ]

    def waiting_events_of(self, app_id: str) -> int:
        """See `Queue.waiting_events_of`. Those of other collectors as of a second ago."""
        lane = self._lanes.get(app_id)
        return 0 if lane is None else lane.waiting_events

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        """See `Queue.lease`: exactly `max_events` where there are so many, in the order of the stream."""
        lane = self._lanes.get(app_id)
        return None if lane is None else await self._leases.lease(lane, max_events)

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        """See `Queue.settle`. The dead letters are stored first, each once however often this is tried again."""
        lane = self._lanes[lease.app_id]
        async with lane.settling:  # two leases may share a message
            if buried:
                origins = self._leases.origins(lease)
                await self._bury(lane.app_id, [(burial, origins[burial.position]) for burial in buried])
            await self._leases.settle(lane, lease, set(returned))

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
            self._refusals.look()
            await self._clock.sleep(self._look_seconds)

    async def _tend_once(self) -> None:
        await self._connection.revive()
        self._looks += 1
        held = [message for lane in self._lanes.values() for message in lane.messages.values()]
        await self._deliveries.extend(held)
        await self._fleet.announce(is_busy=bool(self._leases) or any(lane.available for lane in self._lanes.values()))
        if self._looks % KEEP_LOOKS == 0 and not self._leases:
            await self._leases.give_back(self._lanes.values(), whole_only=True)
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
        with _translated():
            await self._refresh()

    async def _refresh(self) -> None:
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
        with _translated():
            return await stats(self._connection, self._streams)

    async def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest of them."""
        with _translated():
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
            await self._leases.adopt(lane)
        reached = found["delivered"]["stream_seq"]
        while lane.arrivals and (not pending or next(iter(lane.arrivals)) <= reached):
            del lane.arrivals[next(iter(lane.arrivals))]

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

    async def _bury(self, app_id: str, letters: Sequence[tuple[Burial, Origin]]) -> None:
        size = sum(len(origin.line) + len(burial.reason) for burial, origin in letters)
        if self._dead_bytes + size > self._limits.max_dead_bytes:
            raise self._limits.dead_letters_full(self._dead_bytes, len(letters), letters[0][0].reason)
        for burial, origin in letters:
            if await self._deliveries.bury(app_id, burial.reason, origin, self._clock.now_ms()):
                self._dead_bytes += len(origin.line) + len(burial.reason)

    def _lane(self, app_id: str) -> Lane:
        lane = self._lanes.get(app_id)
        if lane is None:
            lane = self._lanes[app_id] = Lane(app_id)
        return lane


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Inside it, what the servers refuse leaves as QueueUnavailable: a stream that is gone, for one."""
    try:
        yield
    except ServerError as error:
        raise QueueUnavailable(f"JetStream: {error}") from error
