"""One world from one seed: a collector, those who send to it, an upstream, and everything that happens to them.

Chance decides, once and by the seed, about sizes and limits, faults of network, disk and upstream, crashes, stops and
jumps of the wall clock. Then the faults end, and the books must balance. What is checked:

- every acknowledged event is at upstream, or buried after upstream has refused it alone;
- upstream gets nothing that was not sent, nothing altered, nothing again after its 200 in the same life, never too
  many at once, and is left alone as long as it asked to be;
- no answer takes a known event for a new one or a new one for a known one;
- what is counted, in memory and in the file, is what is there;
- the backlog comes to nothing within a bound; keys are forgotten when their time has come;
- no part dies, no callback fails, the loop never spins; nothing is left running or open after a stop.
"""

import asyncio
import contextlib
import logging
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from collector import intake, parcel
from collector.agent import Collector
from collector.config import Config
from collector.election import Delivery
from collector.errors import Retryable
from collector.queue.sqlite import pruning, recent_keys, reserve, writer
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.queue import SqliteQueue
from tests.queue.samples import EAGER, all_keys
from tests.simulation.audit import check_counts, check_delivered, open_file
from tests.simulation.books import Books
from tests.simulation.clients import Client
from tests.simulation.clock import WorldClock
from tests.simulation.disk import ERRORS, Disk
from tests.simulation.log import Log
from tests.simulation.loop import Died, Life, Spinning, Stuck, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.plan import DAY, HOUR, Habits, Plan
from tests.simulation.upstream import Line, Upstream


class Defect(AssertionError):
    """A world in which something was wrong: what, and the story of how it came to that."""

    def __init__(self, seed: int, what: str, story: list[str]) -> None:
        super().__init__(f"seed {seed}: {what}")
        self.seed = seed
        self.what = what
        self.story = story


class World:
    """Everything that a seed makes. `run` it once."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self._folder = str(folder)
        self._events: list[tuple[float, str, str, tuple[Any, ...]]] = []
        self._violations: list[str] = []
        self._loop = VirtualLoop()
        fate = self._fate = random.Random(seed)
        self._clock = WorldClock(self._loop, fate)
        self._disk = Disk(folder, self._loop, fate, self._tell)
        self._disk.crash = self._crash
        self._network = Network(self._loop)
        self._life: Life | None = None
        self._collector: Collector | None = None
        self._lives = 0
        self._over = False

        plan = Plan.draw(fate, self._disk.directory)
        self._seconds = plan.seconds
        self._clock.late_seconds = plan.seconds / 15
        self._config = plan.config
        self._books = Books(self._config.queue.dedup_retention, self._clock.now_us)
        self._upstream = Upstream(
            self._loop,
            fate,
            self._books,
            self._tell,
            self._violated,
            wall_seconds=lambda: self._clock.now_us() / 1e6,
            max_in_flight=self._config.flush.max_in_flight,
            batch_events=self._config.flush.batch_events,
            timeout_seconds=self._config.upstream.timeout,
        )
        self._suspicious_burials = plan.suspicious_burials
        self._upstream.take_on(plan)
        self._clients = [self._new_client(number, plan.habits) for number in range(1, plan.clients + 1)]
        self._ends = plan.ends

    # What happens

    def run(self) -> list[str]:
        """The story. Raises Defect."""
        with self._replaced():
            try:
                self._loop.run_until_complete(self._loop.create_task(self._happen()))
            except Defect:
                raise
            except (AssertionError, Spinning, Stuck) as error:
                self._violated(f"{type(error).__name__}: {error}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the story shall be told
                self._violated(f"{type(error).__name__}: {error}")
            finally:
                self._end()
        if self._violations:
            raise Defect(self.seed, self._violations[0], self.story())
        return self.story()

    def story(self) -> list[str]:
        """What happened, in readable lines."""
        return [
            f"{at:14.6f}  {who:<10} {what % about if about else what}".replace(self._folder, "")
            for at, who, what, about in self._events
        ]

    async def _happen(self) -> None:
        fate, loop = self._fate, self._loop
        operating = loop.create_task(self._operate())
        others = [loop.create_task(self._jump(fate.random() * self._seconds)) for _ in range(fate.choice((0, 0, 1, 2)))]
        others += [loop.create_task(self._spoil_disk()) for _ in range(fate.choice((0, 0, 1, 2)))]
        others += [loop.create_task(self._inspect(fate.random() * self._seconds)) for _ in range(2)]
        sending = [loop.create_task(client.run(self._seconds)) for client in self._clients]
        for task in [*others, *sending]:
            await task
        self._disk.fail(0, [])
        self._disk.slow_seconds = 0.0
        self._upstream.clear_up()
        if self._suspicious_burials == 5:
            self._upstream.poison.clear()  # else whole leases of poison would hold their app until a person acts
        self._tell("world", "is at peace")
        await operating
        await self._drain()
        await self._forget()
        await self._stop()
        self._check_file_at_the_end()

    def _new_client(self, number: int, habits: Habits) -> Client:
        return Client(
            number,
            habits=habits,
            books=self._books,
            network=self._network,
            fate=self._fate,
            now_ms=self._clock.now_ms,
            poison=self._upstream.poison.add,
            tell=self._tell,
            running=self._running,
            is_embedded=self._fate.random() < 0.3,
        )

    async def _operate(self) -> None:
        """Starts the agent whenever it does not run, and ends it when its time has come."""
        loop = self._loop
        ends = list(self._ends)
        while True:
            life = await self._start()
            if life is None:
                await asyncio.sleep(self._fate.random() * max(10.0, self._seconds / 50))
                continue
            if not ends:
                return
            at, how = ends.pop(0)
            await self._alive_until(life, max(at, loop.time() + self._fate.random()))
            if not life.is_dead:
                await self._end_life(life, how)
            await asyncio.sleep(self._fate.random() * self._seconds / 20)

    async def _start(self) -> Life | None:
        self._bury()
        self._lives += 1
        life = self._life = Life(self._lives)
        config = _with_path(self._config, self._disk.directory)
        line = Line(self._upstream, config.upstream.timeout)
        collector = self._collector = life.context.run(
            lambda: Collector(
                config,
                listens=True,
                delivery=Delivery.EXCLUSIVE,
                clock=self._clock,
                transport=line,
                new_thread=self._disk.new_thread,
            )
        )
        self._tell("agent", "starts for the %d. time", self._lives)
        try:
            await life.run(collector.start())
        except Died:
            return None
        except Retryable as error:
            self._tell("agent", "cannot start: %s", error)
            self._check_nothing_left(life)
            self._kill(life)
            return None
        watching = self._loop.create_task(self._watch(life, collector))
        watching.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        return life

    async def _watch(self, life: Life, collector: Collector) -> None:
        try:
            await life.run(collector.failed())
        except Died:
            pass
        except Exception as error:  # noqa: BLE001 - no world has a reason for it
            self._violated(f"the agent has failed: {error!r}")

    async def _end_life(self, life: Life, how: str) -> None:
        if how == "crash":
            self._crash()
            return
        if "in a" in how:
            self._disk.crash_in = self._fate.randint(1, 40)
        if "stop" in how:
            await self._stop()
        else:
            await self._alive_until(life, self._loop.time() + self._seconds / 10)
        self._disk.crash_in = None
        if not life.is_dead:
            self._crash()

    async def _stop(self) -> None:
        life, collector = self._life, self._collector
        assert life is not None
        assert collector is not None
        self._tell("agent", "is told to stop")
        try:
            report = await life.run(collector.stop())
        except Died:
            return
        self._tell("agent", "has stopped, %d events wait", report.waiting_events)
        self._check_nothing_left(life)
        self._kill(life)

    async def _alive_until(self, life: Life, at: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, at - self._loop.time())):
                with contextlib.suppress(Died):
                    await life.run(asyncio.Event().wait())

    def _crash(self) -> None:
        """The process is gone; what the disk holds at this instant is all that is left."""
        life = self._life
        if life is not None and not life.is_dead:
            self._tell("agent", "CRASHES")
            self._disk.copy()
            self._kill(life)

    def _kill(self, life: Life) -> None:
        life.end()
        self._network.life_ended(life)

    def _bury(self) -> None:
        if self._life is not None and self._collector is not None:
            self._life.end()
            self._life.context.run(self._life.bury)
            self._collector._queue.release_flusher_role()  # the kernel would
            self._disk.bury()
            self._life = self._collector = None

    async def _jump(self, at: float) -> None:
        """The wall clock is set."""
        await asyncio.sleep(at)
        seconds = self._fate.choice((-DAY, -HOUR, -1.0, 1.0, HOUR, DAY, 40 * DAY))
        self._books.look_at_the_clock()
        self._clock.offset_us += int(seconds * 1e6)
        self._books.look_at_the_clock(has_jumped=True)
        self._tell("clock", "jumps by %g s", seconds)

    async def _spoil_disk(self) -> None:
        """The disk fails for a while."""
        fate, disk = self._fate, self._disk
        await asyncio.sleep(fate.random() * self._seconds)
        each = fate.choice((1, 5, 40))
        errors = fate.choice((list(ERRORS), ["database or disk is full"], ["database is locked"]))
        disk.slow_seconds = fate.choice((0.0, 0.0, 0.2, 3.0))
        self._tell("disk", "fails once in %d: %s", each, errors)
        disk.fail(each, errors)
        await asyncio.sleep(fate.random() * self._seconds / 4)
        disk.fail(0, [])
        disk.slow_seconds = 0.0
        self._tell("disk", "is well")

    def _running(self) -> tuple[Life, Collector] | None:
        life, collector = self._life, self._collector
        if life is None or collector is None or life.is_dead or collector.why_unready() is not None:
            return None
        return life, collector

    # What must be true

    async def _inspect(self, at: float) -> None:
        await asyncio.sleep(at)
        for _ in range(50):
            running = self._running()
            if running is None:
                return
            queue = running[1]._queue
            if not queue._commits._waiting and not queue._writer._thread._pending:  # type: ignore[attr-defined]
                check_counts(self._disk.directory, queue.waiting_events, queue.waiting_bytes)
                return
            await asyncio.sleep(0.01)

    async def _drain(self) -> None:
        """The backlog comes to nothing, within what waits may be outstanding and what work there is."""
        life, collector = self._life, self._collector
        assert life is not None
        assert collector is not None
        flush = self._config.flush
        patience = max(self._upstream.longest_wait(life) - self._loop.time(), 0.0) + 2 * (
            flush.hold_retry + flush.backoff_max + flush.linger + self._config.upstream.timeout
        )
        rounds = 4 * len(self._books.sent) + 20
        patience += rounds * 2 * self._upstream.slow_seconds + 20 * self._clock.late_seconds
        patience += 7200  # a Retry-After that is still on its way
        self._clock.late_seconds = max(self._clock.late_seconds, patience / 40)
        until = self._loop.time() + patience
        while collector._queue.waiting_events:
            waits = collector._queue.waiting_events
            assert self._loop.time() < until, f"{waits} events still wait {patience:.0f} s after the last fault"
            await asyncio.sleep(patience / 100)
        await asyncio.sleep(max(90.0, self._config.upstream.timeout))  # connections may idle for 75 s
        assert collector._flusher.in_flight == 0, f"{collector._flusher.in_flight} leases of nothing"
        assert collector._flusher.held == {}, f"held with nothing left to deliver: {collector._flusher.held}"
        held = {
            "uncommitted bytes": collector._queue.uncommitted_bytes,
            "bytes of bodies": collector._listeners.http.held_bytes,
            "requests": collector._listeners.http.requests_in_flight,
            "connections": collector._listeners.http.connections,
        }
        assert not any(held.values()), f"still held at rest: {held}"
        check_counts(self._disk.directory, 0, 0)
        check_delivered(self._disk.directory, self._books, self._upstream)

    async def _forget(self) -> None:
        """Keys are forgotten once their retention and a pass of the walk are over."""
        retention = self._config.queue.dedup_retention
        # Keys that came in disorder count from when they enter the tree, of which the third turn has seen the end.
        await asyncio.sleep(4 * (pruning.TICK_SECONDS + 1.5 * self._clock.late_seconds))
        with open_file(self._disk.directory) as connection:
            stamps = all_keys(connection).values()
        if not stamps:
            return
        assert self._collector is not None
        queue = self._collector._queue
        assert isinstance(queue, SqliteQueue)
        now_us = queue._wall.earliest_us()  # where wall time has jumped ahead, keys stay for longer
        remaining = max(0.0, max(stamps) + 1 - now_us / 1e6 + retention)
        before = self._clock.late_seconds
        # Not a turn of the maintenance a second: what it still sleeps for may be a day.
        late = self._clock.late_seconds = max(1.0, (remaining + retention) / 20, before / 20)
        await asyncio.sleep(remaining + retention / 24 + 5 * late + 2 * before)
        check_counts(self._disk.directory, 0, 0)
        with open_file(self._disk.directory) as connection:
            keys = len(all_keys(connection))
        assert keys == 0, f"{keys} keys are remembered longer than they should be"

    def _check_nothing_left(self, life: Life) -> None:
        """After a stop, or a start that failed."""
        tasks = [task.get_name() for task in life.tasks if not task.done() and task.get_coro() is not None]
        # The world's own have no name, inside this life; Python 3.13.0 calls that "None".
        tasks = [name for name in tasks if not name.startswith("Task-") and name != "None"]
        assert not tasks, f"tasks still run: {tasks}"
        assert not [thread for thread in self._disk.threads if thread.is_running], "a thread still runs"
        assert all(connection.is_closed for connection in self._disk.connections), "a connection is still open"

    def _check_file_at_the_end(self) -> None:
        check_counts(self._disk.directory, 0, 0)
        assert not (self._disk.directory / (FILE_NAME + "-wal")).exists(), "the log was not folded into the database"

    # The world's own

    def _tell(self, who: str, what: str, *about: Any) -> None:
        self._events.append((self._loop.time(), who, what, about))

    def _violated(self, what: str) -> None:
        self._violations.append(what)
        self._tell("DEFECT", "%s", what)

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        """The rest of the machine: the disk, chance, the log; and constants that small worlds would never reach."""
        chance = random.getstate()
        random.seed(self.seed)
        logger = logging.getLogger("collector")
        log = Log(self._tell, self._violated)
        level, propagate = logger.level, logger.propagate
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(log)
        try:
            with (
                mock.patch.object(sqlite3, "connect", self._disk.connect),
                mock.patch.object(writer, "MAX_GROUP_BYTES", 4000),
                # Little is needed where all disks are in one memory; 24 MiB took a sixth of the time.
                mock.patch.multiple(reserve, RESERVE_BYTES=2**16, MARGIN_BYTES=2**16, STEP_BYTES=2**16),
                mock.patch.object(intake, "STREAM_PIECE_BYTES", 600),
                mock.patch.multiple(recent_keys, **EAGER),
                mock.patch.object(parcel, "SUSPICIOUS_BURIALS", self._suspicious_burials),
            ):
                yield
        finally:
            logger.removeHandler(log)
            logger.setLevel(level)
            logger.propagate = propagate
            random.setstate(chance)

    def _end(self) -> None:
        complaints = self._loop.complaints
        with contextlib.suppress(Exception):
            self._bury()
        for task in asyncio.all_tasks(self._loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if complaints:
            self._violated(complaints[0])
        self._loop.close()


def _with_path(config: Config, path: Path) -> Config:
    return msgspec.structs.replace(config, queue=msgspec.structs.replace(config.queue, path=path))


MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one


def simulate(seed: int) -> list[str]:
    """The story of one seed. Raises Defect."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        return World(seed, Path(folder)).run()
