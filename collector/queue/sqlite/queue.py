"""The queue's face: puts, leases and settlements, and what memory knows of the file."""

import asyncio
import contextlib
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from collector.clock import Clock, WallTime
from collector.errors import CollectorError, DiskFull, QueueBroken, QueueDamaged, Retryable
from collector.forks import no_fork
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.queue.base import Backlog, Batch, Burial, DeadLetters, Lease, QueueStats, Verdict
from collector.queue.limits import Limits, Refusals
from collector.queue.sqlite.at_hand import AtHand
from collector.queue.sqlite.database import BUSY_TIMEOUT_MS, FILE_NAME, damaged
from collector.queue.sqlite.group_commit import GroupCommit
from collector.queue.sqlite.hang import HangWatch
from collector.queue.sqlite.lanes import Lane, Lanes, Range
from collector.queue.sqlite.lock import RoleLock
from collector.queue.sqlite.operations import Done, Put, Settle, Waiting
from collector.queue.sqlite.pruning import TICK_SECONDS, PruneWalk
from collector.queue.sqlite.rescue.ready import doubt
from collector.queue.sqlite.run import Run, joined, made_of
from collector.queue.sqlite.step_thread import StepThread
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.store_thread import StoreThread
from collector.queue.sqlite.view import View
from collector.queue.sqlite.writer import T, Writer, unheard

log = get_logger(__name__)

ELECTION_PATIENCE_SECONDS = 0.1
"""How long who takes delivery over waits for the last settlements of who had it; puts wait meanwhile."""


class SqliteQueue:
    """The queue of one directory. `open` it inside the running loop that will use it, `close` it there."""

    def __init__(
        self,
        directory: Path,
        *,
        batch_events: int,
        limits: Limits,
        dedup_retention_seconds: float,
        clock: Clock,
        metrics: Metrics,
        new_thread: Callable[[str], StepThread] = StepThread,
        writer: Writer | None = None,
    ) -> None:
        self.arrivals = asyncio.Event()
        self._directory = directory
        self._batch_events = batch_events
        self._limits = limits
        self._retention_seconds = dedup_retention_seconds
        self._clock = clock
        self._wall = WallTime(clock)
        self._refusals = Refusals(clock)
        self._metrics = metrics
        self._flusher_role = RoleLock(directory, "flusher")
        self._lanes = Lanes(clock, self.arrivals, batch_events)
        self._at_hand = AtHand()
        self._leasing = asyncio.Lock()
        self._foreign_commits = 0
        self._waiting_bytes = 0
        self._settles_alone = False
        self._dead_bytes = 0
        self._burying_bytes = 0  # of burials that wait for their commit
        self._damage: QueueBroken | None = None
        self._damage_found = asyncio.Event()
        self._hang = HangWatch(directory)
        self._writer: Writer = writer or StoreThread(new_thread("collector-queue-writer"))
        self._reader = new_thread("collector-queue-reader")
        self._opened = contextlib.AsyncExitStack()
        self._view: View
        self._commits: GroupCommit

    async def open(self) -> None:
        """The file is open, in its latest schema, and what waits in it is known. A queue opens once.

        Raises QueueBroken or QueueUnavailable, with nothing left open.
        """
        async with contextlib.AsyncExitStack() as opened:
            self._commits = GroupCommit(
                self._writer.give,
                applied=self._apply,
                failed=self._notice_damage,
                observe_commit=self._metrics.observe_commit,
            )
            opened.push_async_callback(self._writer.close)
            await self._writer.open(
                self._directory, batch_events=self._batch_events, clock=self._clock, committed=self._commits.heard
            )
            opened.callback(self._reader.shutdown)
            self._view = await self._reader.run(lambda: View(self._directory))
            opened.push_async_callback(self._reader.run, self._view.close)
            opened.push_async_callback(self._commits.close)
            opened.callback(self._leave_flusher_role)  # others may settle once the store is closed, and all on disk
            await self._survey(patience_seconds=BUSY_TIMEOUT_MS / 1000)
            self._opened = opened.pop_all()

    @property
    def place(self) -> str:
        """See `Backend.place`."""
        return str(self._directory)

    def fleet_share(self) -> float:
        """See `Backend.fleet_share`. One process at a time delivers from a file."""
        return 1.0

    @property
    def is_flusher(self) -> bool:
        """This process delivers from the queue."""
        return self._flusher_role.is_held

    def take_flusher_role(self) -> None:
        """This process alone leases and settles, until it closes the queue or dies. Raises QueueInUse."""
        with no_fork():  # a child has no share of the lock
            self._flusher_role.acquire()

    def release_flusher_role(self) -> None:
        """Another process may deliver. No settlement may be under way."""
        settled_alone = self._settles_alone
        self._leave_flusher_role()
        if settled_alone:
            unheard(self._writer.run(Store.let_settle))

    def _leave_flusher_role(self) -> None:
        with no_fork():
            self._flusher_role.release()
        self._at_hand.clear()  # whoever has the role next may deliver it
        self._settles_alone = False

    @property
    def waiting_events(self) -> int:
        """Events of all apps that are not settled, leased or not."""
        return self._lanes.waiting_events

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their lines."""
        return self._waiting_bytes

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of events that wait in memory for their commit."""
        return self._commits.uncommitted_bytes

    @property
    def trouble(self) -> CollectorError | None:
        """Why the disk keeps the queue from taking events at the moment; None where it does not."""
        return self._writer.trouble or self._hang.trouble

    def oldest_waiting_seconds(self) -> float:
        """How long the oldest event that is not leased has waited; 0 where there is none."""
        return self._lanes.oldest_waiting_seconds()

    def use_limits(self, limits: Limits) -> None:
        """From now on these hold. What is there already stays."""
        self._limits = limits

    async def round_trip(self) -> None:
        """Returns when the writer has done what it was given before; never, where it hangs."""
        await self._writer.run(_nothing)

    def put(self, batches: Sequence[Batch]) -> asyncio.Future[Sequence[Verdict]]:
        """See `Queue.put`. What can be said at once is raised at once."""
        if (hang := self._hang.trouble) is not None:
            raise hang
        put, limits = Put.of(batches), self._limits
        size, uncommitted = put.bytes, self._commits.uncommitted_bytes
        waiting = self._waiting_bytes + uncommitted
        if waiting + size > limits.max_bytes:
            raise self._refusals.noted(limits.full(waiting))
        if uncommitted + size > limits.max_uncommitted_bytes:
            raise self._refusals.noted(limits.busy(uncommitted))
        return self._commits.submit(put)

    def backlog(self) -> Iterable[Backlog]:
        """See `Queue.backlog`. Reads memory only."""
        return self._lanes.backlog()

    def waiting_events_of(self, app_id: str) -> int:
        """See `Queue.waiting_events_of`. Reads memory only."""
        return self._lanes.waiting_events_of(app_id)

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        """See `Queue.lease`. Whole segments: up to four batches where that fills the requests better."""
        async with self._leasing:
            lane = self._lanes.find(app_id)
            if lane is None or not lane.available:
                return None
            try:
                run = await self._next_run(lane, max_events)
            except QueueDamaged as error:
                self._notice_damage(error)
                raise
            self._lanes.lease(lane, run, self._at_hand.next_stamp(run))
            return Lease(app_id, run.first, run.last, run.events, run.lines)

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        """See `Queue.settle`."""
        if len(returned) == lease.events:
            self._lanes.give_back(lease.app_id, Range(lease.first, lease.last, lease.events))
            return
        lines = lease.lines.split(b"\n") if buried or returned else []
        rest = [lines[position] for position in sorted(returned)]
        settle = Settle(
            lease.app_id,
            lease.first,
            lease.last,
            lease.events,
            dead=[(burial, lines[burial.position]) for burial in buried],
            rest_events=len(rest),
            rest_lines=b"\n".join(rest),
        )
        if self._limits.keep_delivered_seconds:
            settle = settle.keeping(lease.lines, {*returned, *(burial.position for burial in buried)})
        size, dead_bytes = settle.dead_bytes, self._dead_bytes + self._burying_bytes
        if size and dead_bytes + size > self._limits.max_dead_bytes:
            raise self._limits.dead_letters_full(dead_bytes, len(buried), buried[0].reason)
        committed = self._commits.submit(settle)
        self._burying_bytes += size
        try:
            await committed
        finally:
            self._burying_bytes -= size

    async def maintain(self) -> None:
        """Until cancelled: forgets old keys, gives free space back, and notices what other processes have done.

        Raises QueueBroken as soon as anybody has found the file damaged, or nobody to write it: nothing goes on then.
        """
        walk = PruneWalk(self._retention_seconds)
        said = ""
        while True:
            await self._clock.wait(self._damage_found, TICK_SECONDS)
            self._refusals.look()
            if self._damage is not None:
                raise self._damage
            try:
                await self._maintain_once(walk)
                said = ""
            except Retryable as error:  # lost permissions, for one: what is not done now is done later
                if said != str(error):
                    said = str(error)
                    log.warning("queue.maintenance_failed", error=said)

    async def _maintain_once(self, walk: PruneWalk) -> None:
        before_ms = self._wall.earliest_us() // 1000 - int(self._limits.keep_delivered_seconds * 1000)
        foreign_commits, has_kept = await self._do(partial(_look_after, before_ms=before_ms))
        if self._foreign_commits != foreign_commits:
            await self.refresh()
        trouble = self._writer.trouble
        while has_kept:
            has_kept = await self._do(partial(Store.drop_kept, before_ms=before_ms))  # in between others commit
        if trouble is not None:
            return  # it is said and shown; nothing else can be done before it ends
        if walk.is_due(self._clock.monotonic()):
            steps, keys = walk.steps(await self._do(Store.remembered_keys))
            before_us = self._wall.earliest_us() - int(self._retention_seconds * 1e6)
            while steps and walk.reached is not None:
                prune = partial(Store.prune, after=walk.reached, keys=keys, before_us=before_us)
                walk.reached, steps = await self._do(prune), steps - 1
        has_more = await self._do(Store.tidy)
        while has_more:
            has_more = await self._do(Store.enter_recent_keys)

    def _do(self, step: Callable[[Store], T]) -> asyncio.Future[T]:
        return self._hang.watch(self._writer.run(step))

    async def stats(self) -> QueueStats:
        """The queue at this instant, as `collector queue stats` shows it."""
        return await self._reader.run(lambda: self._view.stats(self._clock))

    async def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest of them."""
        return await self._reader.run(self._view.dead_letters)

    async def close(self) -> None:
        """Returns after every put and settle that was begun is on disk, the file is closed and the role is free.

        Closing again is harmless.
        """
        await self._opened.aclose()

    async def _next_run(self, lane: Lane, max_events: int) -> Run:
        if lane.returned:
            first, last, events = lane.returned.pop(0)
            try:
                return joined(await self._reader.run(lambda: self._view.segments(lane.app_id, first, last, events)))
            except BaseException:
                insort(lane.returned, Range(first, last, events))
                raise
        waiting = lane.available
        while (run := self._at_hand.next_run(lane.leased_to, waiting, max_events)) is None:
            await self._read_on(lane, max_events)
            waiting = 0  # what is here now is enough to choose from
        return run

    async def _read_on(self, lane: Lane, batch_events: int) -> None:
        """Brings more of the lane's next segments into memory."""
        reach = self._at_hand.reach(lane.leased_to)
        segments = await self._reader.run(lambda: self._view.next_segments(lane.app_id, reach, batch_events))
        if reach == lane.leased_to:
            if not segments:
                raise damaged(
                    self._directory / FILE_NAME,
                    f"{lane.available} events of app {lane.app_id!r} should wait, none is there",
                )
            lane.leased_to = segments[0].number - 1  # what lies between was settled by others
        self._at_hand.add(segments)

    def _notice_damage(self, error: BaseException) -> None:
        """Whoever finds the file damaged, or nobody to write it, tells the maintenance, which takes the agent down."""
        if isinstance(error, QueueBroken):
            if self._damage is None:
                if isinstance(error, QueueDamaged):
                    doubt(self._directory)
                self._damage = error
            self._damage_found.set()

    def _apply(self, group: Sequence[tuple[Put | Settle, Done]]) -> None:
        """Brings memory up to date with a commit."""
        arrived: dict[str, int] = {}
        segments: dict[int, list[tuple[Batch, Verdict]]] = {}
        for operation, done in group:
            self._waiting_bytes += done.bytes
            if isinstance(operation, Settle):
                self._dead_bytes += operation.dead_bytes
                self._lanes.settle(operation)
                continue
            for batch, verdict in zip(operation.batches, done.verdicts, strict=True):
                if verdict.accepted:
                    arrived[batch.app_id] = arrived.get(batch.app_id, 0) + verdict.accepted
            for number, batch, verdict in zip(done.segments, operation.batches, done.verdicts, strict=False):
                if number:
                    segments.setdefault(number, []).append((batch, verdict))
        if self.is_flusher:
            now_us = self._clock.now_us()
            self._at_hand.add([made_of(batches, number, now_us) for number, batches in segments.items()])
        for app_id, events in arrived.items():
            self._lanes.add(app_id, events)

    async def refresh(self) -> None:
        """Learns from the file what waits, also what other processes have put."""
        await self._survey(patience_seconds=ELECTION_PATIENCE_SECONDS)

    async def _survey(self, patience_seconds: float) -> None:
        delivers = self.is_flusher
        survey = partial(_survey, delivers=delivers, patience_seconds=patience_seconds)
        self._settles_alone = self._settles_alone or delivers  # perhaps also where this fails
        # Taken over in the order of the writer's steps: a commit that came later must not be forgotten again.
        await self._writer.run(survey, self._learn)

    def _learn(self, found: tuple[int, Sequence[Waiting]]) -> None:
        self._foreign_commits, apps = found
        self._waiting_bytes = sum(waiting.bytes for waiting in apps)
        self._dead_bytes = sum(waiting.dead_bytes for waiting in apps)
        for waiting in apps:
            self._lanes.learn(waiting)


# Steps of the writer, which may be another process: functions that it finds by their names.


def _nothing(_store: Store) -> None:
    pass


def _survey(store: Store, *, delivers: bool, patience_seconds: float) -> tuple[int, Sequence[Waiting]]:
    if delivers:
        store.settle_alone(patience_seconds)
    return store.foreign_commits(), store.apps()


def _look_after(store: Store, before_ms: int) -> tuple[int, bool]:
    """What each turn of maintenance begins with, as one step: with nothing to do, it wakes the writer once.

    The number of `foreign_commits`, and whether more of what was kept may have to go.
    """
    store.check_file()
    foreign_commits = store.foreign_commits()
    store.recover()
    can_delete = store.trouble is None or isinstance(store.trouble, DiskFull)
    return foreign_commits, can_delete and store.drop_kept(before_ms)
