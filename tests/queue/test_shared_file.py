"""Several queues on one file, as several processes have it, at the mercy of chance and of a disk that fails at times.

All of them put. One delivers, until another takes over while the last settlements of the first are under way. Dead and
delivered events are put back by hand. What must be true at each step:

- an event is accepted once, whoever puts it, and is no duplicate before it was stored;
- it is leased once at a time, and never again once it was settled, unless it was put back;
- in the end each was delivered or buried once, and once more for each time that it was put back, and the file's counts
  are those of what it holds.
"""

import asyncio
import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from collector import forks
from collector.errors import Retryable
from collector.queue.base import Burial, Lease
from collector.queue.by_hand import Choice
from collector.queue.sqlite import recent_keys
from collector.queue.sqlite.by_hand import FileByHand
from collector.queue.sqlite.pruning import PruneWalk
from collector.queue.sqlite.queue import SqliteQueue
from tests.queue.samples import EAGER, batches, numbers_in, sqlite_queue, stored

APPS = ("wiki", "crm")
STEPS = 120
LONG_SECONDS = 10**7
FAILS_EACH = 150
"""On average one in so many statements fails."""
SLOW_SECONDS = 0.005
ERRORS = {
    "disk I/O error": sqlite3.SQLITE_IOERR,
    "database or disk is full": sqlite3.SQLITE_FULL,
    "database is locked": sqlite3.SQLITE_BUSY,
}

Event = tuple[str, int]


class Disk:
    """Fails the statements of queues, by chance, while it `is_bad`."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.is_bad = False

    def execute(self, connection: sqlite3.Connection, sql: str, *values: Any) -> sqlite3.Cursor:
        thread = threading.current_thread().name
        can_fail = thread.startswith("collector-queue") and sql != "ROLLBACK" and not sql.startswith("PRAGMA sync")
        if thread.endswith("reader") and sql == "COMMIT":  # nothing is written at the end of a snapshot
            can_fail = False
        if self.is_bad and can_fail and self._chance.randrange(FAILS_EACH) == 0:
            error = sqlite3.OperationalError(text := self._chance.choice([*ERRORS]))
            error.sqlite_errorcode = ERRORS[text]
            raise error
        if can_fail and sql == "COMMIT" and self._chance.randrange(8) == 0:
            time.sleep(SLOW_SECONDS)
        return sqlite3.Connection.execute(connection, sql, *values)


class World:
    """The queues, and what is known of their events from outside."""

    def __init__(self, directory: Path, chance: random.Random, disk: Disk) -> None:
        self.directory = directory
        self.chance = chance
        self.disk = disk
        self.is_by_hand = chance.random() < 0.5
        self.batch_events = chance.choice((10, 100))
        self.queues: list[SqliteQueue] = []
        self.flusher: SqliteQueue | None = None
        self.leases: list[Lease] = []
        self.leased: Counter[Event] = Counter()
        self.stored: set[Event] = set()
        self.begun: Counter[Event] = Counter()  # puts of each that have not failed
        self.settled: Counter[Event] = Counter()
        self.may_be_back: Counter[Event] = Counter()
        self.puts_back = 0
        self.fresh = iter(range(10**6))
        self.walk = PruneWalk(LONG_SECONDS)

    async def open(self, place: int) -> None:
        """Another queue in the place of one that was closed, or behind the last."""
        while True:
            queue = sqlite_queue(self.directory, batch_events=self.batch_events, keep_delivered_seconds=LONG_SECONDS)
            try:
                await queue.open()
            except Retryable:
                continue
            self.queues[place : place + 1] = [queue]
            return

    async def put(self, queue: SqliteQueue) -> None:
        app_id, chance = self.chance.choice(APPS), self.chance
        old = [number for app, number in self.begun if app == app_id][-50:]
        numbers = [
            chance.choice(old) if old and chance.random() < 0.4 else next(self.fresh)
            for _ in range(chance.choice((1, 2, 5, 12, 25)))
        ]
        if chance.random() < 0.6:
            chance.shuffle(numbers)
        events = [(app_id, number) for number in numbers]
        self.begun.update(set(events))
        try:
            verdicts = await queue.put(batches(app_id, numbers))
        except Retryable:
            self.begun.subtract(set(events))
            return
        [verdict] = verdicts
        duplicates = {events[position] for position in verdict.duplicates}
        new = [event for position, event in enumerate(events) if position not in verdict.duplicates]
        assert len(new) == verdict.accepted == len(set(new))
        assert self.stored.isdisjoint(new), "accepted twice"
        assert all(self.begun[event] > 1 or event in self.stored for event in duplicates - set(new)), "swallowed"
        self.stored.update(new)

    async def lease(self, _queue: SqliteQueue) -> None:
        if self.flusher is None:
            return
        try:
            lease = await self.flusher.lease(self.chance.choice(APPS), self.chance.choice((1, 3, 10)))
        except Retryable:
            return
        if lease is None:
            return
        events = events_of(lease)
        assert len(events) == lease.events
        self.leases.append(lease)
        self.leased.update(events)
        assert all(self.leased[event] + self.settled[event] <= 1 + self.may_be_back[event] for event in events)

    async def settle(self, queue: SqliteQueue, lease: Lease, ways: str | None = None) -> None:
        """Events are delivered, buried or returned; again until that is on disk, or another one delivers."""
        events = events_of(lease)
        ways = ways or self.chance.choice(("d", "d", "r", "dbr"))
        fates = self.chance.choices(ways, k=len(events))
        self.leased.subtract(events)
        buried = [Burial(position, "no") for position, fate in enumerate(fates) if fate == "b"]
        returned = [position for position, fate in enumerate(fates) if fate == "r"]
        while True:
            try:
                await queue.settle(lease, buried=buried, returned=returned)
            except Retryable:
                if queue is not self.flusher:
                    return
                await asyncio.sleep(0)
            else:
                self.settled.update(event for event, fate in zip(events, fates, strict=True) if fate != "r")
                return

    async def tend(self, queue: SqliteQueue) -> None:
        with suppress(Retryable):  # what the disk is in the way of is done another time
            await queue._maintain_once(self.walk)

    async def look(self, queue: SqliteQueue) -> None:
        with suppress(Retryable):
            await queue.refresh()

    async def put_back(self, _queue: SqliteQueue) -> None:
        """By hand, as by a process of its own."""
        self.may_be_back.update(self.begun.keys())
        events = await asyncio.to_thread(self._put_back, is_dead=self.chance.random() < 0.5)
        self.puts_back += events

    def _put_back(self, *, is_dead: bool) -> int:
        with FileByHand(self.directory, for_writing=True) as file:
            return file.retry(Choice()) if is_dead else file.replay(Choice())

    async def hand_over(self) -> None:
        """Another delivers from now on, while what the one before is settling may not be on disk."""
        old, late, self.leases = self.flusher, self.leases[::2], []
        if old is None:
            await self.elect(self.chance.choice(self.queues))
            return
        ending = [asyncio.ensure_future(self.settle(old, lease)) for lease in late]
        await asyncio.sleep(0)
        self.flusher = None
        self.leased.clear()
        ending.append(asyncio.ensure_future(old.close()))
        await asyncio.sleep(0)
        place = self.queues.index(old)
        successor = self.chance.choice(self.queues[:place] + self.queues[place + 1 :])
        await self.elect(successor)
        await self.lease(successor)
        await asyncio.gather(*ending)
        await self.open(place)

    async def elect(self, queue: SqliteQueue) -> None:
        queue.take_flusher_role()
        try:
            await queue.refresh()
        except Retryable:
            queue.release_flusher_role()
        else:
            self.flusher = queue

    async def step(self) -> None:
        """Several things at once; then some leases are settled."""
        chance = self.chance
        if chance.random() < 0.1:
            self.disk.is_bad = not self.disk.is_bad
        acts = chance.choices(
            (self.put, self.lease, self.tend, self.look, self.put_back),
            (45, 25, 10, 5, 4 * self.is_by_hand),
            k=chance.randint(1, 6),
        )
        await asyncio.gather(*(act(chance.choice(self.queues)) for act in acts))
        if self.flusher is None or chance.random() < 0.15:
            await self.hand_over()
        elif self.leases:
            now, self.leases = self.leases[::2], self.leases[1::2]
            await asyncio.gather(*(self.settle(self.flusher, lease) for lease in now))

    async def end(self) -> None:
        """With a disk that works all is delivered."""
        self.disk.is_bad = False
        for queue in self.queues:
            await queue._maintain_once(self.walk)
        while self.flusher is None:
            await self.elect(self.queues[0])
        for lease in self.leases:
            await self.settle(self.flusher, lease, "d")
        self.leases = []
        await self.flusher.refresh()
        while self.flusher.waiting_events:
            await self.lease(self.flusher)
            for lease in self.leases:
                await self.settle(self.flusher, lease, "d")
            self.leases = []
        assert self.settled.total() == len(self.stored) + self.puts_back
        assert self.settled.keys() == self.stored
        for share in stored(self.directory).values():
            assert (share.counted_events, share.counted_bytes, share.counted_dead) == (0, 0, share.dead)


def events_of(lease: Lease) -> list[Event]:
    return [(lease.app_id, number) for number in numbers_in(lease.app_id, lease.lines)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EAGER.items():
        monkeypatch.setattr(recent_keys, name, value)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("seed", range(12))
async def test_events_are_stored_and_delivered_once_whoever_puts_delivers_and_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, disk = random.Random(seed), Disk(random.Random(seed))

    def execute(connection: sqlite3.Connection, sql: str, *values: Any) -> sqlite3.Cursor:
        return disk.execute(connection, sql, *values)

    monkeypatch.setattr(forks.Connection, "execute", execute, raising=False)
    world = World(tmp_path, chance, disk)
    for place in range(chance.randint(2, 3)):
        await world.open(place)
    try:
        for _ in range(STEPS):
            await world.step()
        await world.end()
    finally:
        disk.is_bad = False
        for queue in world.queues:
            await queue.close()
