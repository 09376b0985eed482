"""The collector for programs without an event loop: any thread records, threads of its own do the rest.

A forked child starts afresh: it inherits no thread, connection or lock of its parent, and records into the same queue
through a collector of its own, which starts with its first event. So a server that loads the program and then forks
its workers needs no ceremony; of all these processes one delivers, and when it dies another takes over.
"""

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, Self, TypeVar

import msgspec

from collector.agent import Collector, StopReport
from collector.clock import Clock
from collector.config import Config
from collector.election import Delivery
from collector.errors import CollectorError, QueueUnavailable, Unusable
from collector.events import UsageEvent
from collector.forks import before_a_child_ends, never_free
from collector.intake import Report
from collector.observe.logs import get_logger
from collector.sources.recorder import Overload, Recorded, event_of
from collector.sources.recording_thread import RecordingThread

log = get_logger(__name__)

Result = TypeVar("Result")


class SyncCollector:
    """`with SyncCollector(config) as collector:`; or its first event starts it, and the interpreter's end stops it.

    Every method may be called from any thread, `record_nowait`, `flush` and `stop` also from a handler of signals.
    `listens` and `delivery` are as for `Collector`; a child that was forked while its parent listened does not listen.
    """

    def __init__(self, config: Config, *, listens: bool = False, delivery: Delivery = Delivery.ELECTED) -> None:
        self._config = config
        self._listens = listens
        self._delivery = delivery
        self._clock = Clock()
        self._max_waiting = config.events.max_recorded
        self._life: _Life | None = None
        self._storing: RecordingThread | None = None
        self._is_starting = self._must_stop = False
        self._overload = Overload(self._clock)
        self._make_locks()
        _all.add(self)

    def start(self) -> None:
        """The collector runs; harmless where it does already. Raises what `Collector.start` raises."""
        self._running()

    def record(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> Recorded:
        """What became of the event, after the commit; stamped at the call where it has no time.

        Raises Rejected with the reason, Retryable where the queue cannot take it now, Unusable, TypeError.
        """
        stamped = self._clock.now_ms() if timestamp_ms is None else timestamp_ms
        life = self._running()
        return life.run(life.collector.record(email=email, event_name=event_name, timestamp_ms=stamped, app_id=app_id))

    def record_many(self, events: Iterable[UsageEvent]) -> Report:
        """What became of the events, after the commit that holds all that were accepted. Raises Retryable, Unusable."""
        life = self._running()
        return life.run(life.collector.record_many(events))

    def record_nowait(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> bool:
        """Whether there was room for the event among `events.max_recorded`; it is stamped now and stored soon.

        Each for which there was none is counted, and the log says so. Costs the caller a few microseconds and never
        waits. Until its commit an event dies with the process; `flush` and `stop` wait for it. Raises TypeError.
        """
        # Code that has not run for a while costs the most, so there is little of it: no clock of ours, no method.
        stamped = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        event = event_of(email, event_name, stamped, app_id)
        storing = self._storing or self._start_storing()
        waiting = storing.waiting
        if len(waiting) >= self._max_waiting:
            with self._storing_lock:  # nobody holds it for long
                self._overload.events += 1
            return False
        waiting.append(event)
        if storing.needs_word:
            self._tell(storing)
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Whether everything that was recorded before is on disk, or was rejected; False when the time is over."""
        storing = self._storing
        if storing is None:
            return True
        reached = threading.Event()
        storing.waiting.append(reached)
        self._tell(storing)
        if not reached.wait(min(timeout_seconds, threading.TIMEOUT_MAX)):
            with contextlib.suppress(ValueError):  # its turn has come
                storing.waiting.remove(reached)
        return reached.is_set()

    def stop(self) -> StopReport:
        """Everything recorded is on disk, and delivery went on, up to `stop.deadline` each. Harmless to repeat.

        What is not delivered by then is left for the next start, or for the processes that still run. Waits for a start
        that is under way. A handler of signals that has interrupted the start cannot: that then ends as Unusable, with
        everything stopped.
        """
        with self._lock:
            if self._is_starting:
                self._must_stop = True
                return StopReport(0, {})
        with self._storing_lock:
            storing, self._storing = self._storing, None
        lost = 0 if storing is None else storing.stop(self._config.stop.deadline)
        with self._lock:
            life, self._life = self._life, None
        report = StopReport(0, {}) if life is None else life.stop()
        if lost:
            log.error("recorder.events_lost", events=lost, reason="the queue did not take them before the stop")
        return msgspec.structs.replace(report, lost_events=report.lost_events + lost)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> "_Life":
        life = self._life
        if life is None or life.is_over:
            must_stop = False
            with self._lock:
                life = self._life
                if self._is_starting:
                    raise Unusable("a handler of signals has interrupted the start of the SyncCollector that it needs")
                if life is None or life.is_over:
                    self._is_starting, self._must_stop = True, False
                    try:
                        life = self._life = _Life(self._new_collector).begun()
                    finally:
                        self._is_starting = False
                    must_stop = self._must_stop
            if must_stop:
                self.stop()
                raise Unusable("this SyncCollector was stopped amid its start")
        return life

    def _new_collector(self) -> Collector:
        return Collector(self._config, listens=self._listens, delivery=self._delivery, clock=self._clock)

    def _start_storing(self) -> RecordingThread:
        with self._storing_lock:
            made = self._storing or RecordingThread(self.record_many, self._tell_overload)
            if self._storing is None:  # nor has a handler of signals that came in between made one
                self._storing = made
                try:
                    made.start()
                except BaseException:  # no more threads, or the interpreter ends: the next event tries again
                    self._storing = None
                    raise
                before_a_child_ends(_stop_all)
            return self._storing

    def _tell(self, storing: RecordingThread) -> None:
        """The thread knows that something waits; where it has ended meanwhile, another one stores that."""
        storing.wake()
        if storing.has_ended:
            for item in storing.left():
                successor = self._storing or self._start_storing()
                successor.waiting.append(item)
                successor.wake()

    def _tell_overload(self) -> None:
        if (life := self._life) is not None:
            self._overload.count(life.collector.metrics.refusals)
        self._overload.say()

    def _forget(self) -> None:
        """This is a forked child: what was begun belongs to the parent."""
        never_free(self._life)
        never_free(self._storing)
        self._make_locks()
        self._overload = Overload(self._clock)
        self._is_starting = self._must_stop = False
        self._listens = self._listens and self._life is None  # else its parent does
        self._life = self._storing = None

    def _make_locks(self) -> None:
        # Reentrant for handlers of signals. Two, because a start may take long, and `record_nowait` never waits for it.
        self._lock, self._storing_lock = threading.RLock(), threading.RLock()


class _Life:
    """A collector that runs in a thread with a loop, from its start to its stop."""

    def __init__(self, new_collector: Callable[[], Collector]) -> None:
        self.collector: Collector
        self._new_collector = new_collector
        self._loop: asyncio.AbstractEventLoop
        self._started: Future[None] = Future()
        self._stop_asked: Future[None] = Future()
        self._ended: Future[StopReport] = Future()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def begun(self) -> Self:
        """The collector runs. Raises what its start raises, or a handler of signals meanwhile; then it ends again."""
        try:
            self._thread.start()
            self._started.result()
        except BaseException as error:
            with contextlib.suppress(Exception):
                self.stop()
            if isinstance(error, OSError):  # there are no descriptors for it: the next event tries again
                raise QueueUnavailable(f"the collector cannot start: {error}") from error
            raise
        return self

    @property
    def is_over(self) -> bool:
        """It runs no more: it was stopped, or a part of it has died."""
        return self._ended.done()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns on the collector's loop. Raises Unusable where the collector stops meanwhile."""
        if threading.current_thread() is self._thread:
            work.close()
            raise Unusable("a SyncCollector is not for the collector's own thread, which would wait for itself")
        try:
            running = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # the loop has closed
            work.close()
            raise Unusable("the collector has stopped") from error
        try:
            return running.result()
        except CancelledError as error:
            raise Unusable("the collector has stopped") from error

    def stop(self) -> StopReport:
        """What remains. Raises what the collector has died of."""
        with contextlib.suppress(InvalidStateError):  # it was asked before, or has died
            self._stop_asked.set_result(None)
        self._thread.join()
        return self._ended.result()

    def _run(self) -> None:
        living = self._live()
        try:
            asyncio.run(living)
        except OSError as error:  # there is no loop for it
            living.close()
            if self._started.done():
                raise
            self._has_not_started(error)

    def _has_not_started(self, error: BaseException) -> None:
        self._ended.set_exception(error)
        self._started.set_exception(error)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self.collector = self._new_collector()
            await self.collector.start()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever starts it
            self._has_not_started(error)
            return
        self._started.set_result(None)
        ends = [asyncio.wrap_future(self._stop_asked), asyncio.create_task(self.collector.failed())]
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        try:
            report = await self.collector.stop()
            for end in done:
                end.result()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever stops it
            self._ended.set_exception(error)
        else:
            self._ended.set_result(report)


_all: weakref.WeakSet[SyncCollector] = weakref.WeakSet()


def _stop_all() -> None:
    for collector in list(_all):
        with contextlib.suppress(CollectorError):  # it was logged when it happened
            collector.stop()


def _forget_all() -> None:
    for collector in list(_all):
        collector._forget()  # noqa: SLF001 - of this module


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)
