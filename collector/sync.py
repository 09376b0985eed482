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
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from queue import Empty, SimpleQueue
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
from collector.sources.recorder import CHUNK_EVENTS, RETRY_SECONDS, Overload, Recorded, event_of

log = get_logger(__name__)

Result = TypeVar("Result")

LINGER_SECONDS = 0.05
"""How long events that were recorded without waiting gather before they are stored together."""
QUIET_LOOKS = 20
"""So many times the recorder's thread looks in vain before it sleeps until it is woken."""
HURRIED_SECONDS = 0.01
"""Instead of `RETRY_SECONDS` where a stop waits."""


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
        self._storing: _Storing | None = None
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

    def _start_storing(self) -> "_Storing":
        with self._storing_lock:
            made = self._storing or _Storing(self.record_many, self._tell_overload)
            if self._storing is None:  # nor has a handler of signals that came in between made one
                self._storing = made
                try:
                    made.start()
                except BaseException:  # no more threads, or the interpreter ends: the next event tries again
                    self._storing = None
                    raise
                before_a_child_ends(_stop_all)
            return self._storing

    def _tell(self, storing: "_Storing") -> None:
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


class _Storing:
    """A thread that stores what was recorded without waiting, in the order in which it came.

    Waking a thread costs the waker more than all the rest of a call: 7 us against 0.4 us. So the thread looks by itself
    for a while after each event, and needs to be woken only after it has seen none for that long. It is woken by a
    SimpleQueue: a handler of signals that interrupts the setting of a threading.Event, to set it too, waits for ever.
    """

    def __init__(self, store: Callable[[Sequence[UsageEvent]], Report], tell_overload: Callable[[], None]) -> None:
        self.waiting: deque[UsageEvent | threading.Event] = deque()
        self.needs_word = False
        """The thread does not look by itself: whoever has appended something to `waiting` must say so."""
        self.has_ended = False
        self._store = store
        self._tell_overload = tell_overload
        self._words: SimpleQueue[None] = SimpleQueue()
        self._is_over = False
        self._give_up_at = float("inf")
        self._lost_events = 0
        self._thread = threading.Thread(target=self._work, name="collector-recorder", daemon=True)

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def wake(self) -> None:
        """The thread looks now: it stores the events that wait, and sets an Event when all before it are stored."""
        if self._words.empty():
            self._words.put(None)

    def left(self) -> Iterator[UsageEvent | threading.Event]:
        """Takes out what waits, each item once, whoever else does that at the same time."""
        with contextlib.suppress(IndexError):
            while True:
                yield self.waiting.popleft()

    def stop(self, timeout_seconds: float) -> int:
        """Nothing waits any more; how many events were lost because they could not be stored in time."""
        self._give_up_at = time.monotonic() + timeout_seconds
        self._is_over = True
        self.wake()
        self._thread.join()
        return self._lost_events

    def _work(self) -> None:
        quiet = 0
        while self.waiting or not self._is_over:
            quiet = 0 if self.waiting else quiet + 1
            self.needs_word = quiet > QUIET_LOOKS
            if not self._is_over and not (self.needs_word and self.waiting):  # one that came just before said nothing
                with contextlib.suppress(Empty):
                    self._words.get(timeout=None if self.needs_word else LINGER_SECONDS)
            self.needs_word = False
            while not self._words.empty():
                self._words.get()
            self._store_waiting()
        self.has_ended = True
        self.needs_word = True
        self._store_waiting()  # what came before that, and said nothing

    def _store_waiting(self) -> None:
        events: list[UsageEvent] = []
        for item in self.left():
            if isinstance(item, UsageEvent):
                events.append(item)
            if len(events) == CHUNK_EVENTS or isinstance(item, threading.Event):
                self._keep(events)
                events = []
            if isinstance(item, threading.Event):
                item.set()
        self._keep(events)

    def _keep(self, events: Sequence[UsageEvent]) -> None:
        said = ""
        while events:
            try:
                report = self._store(events)
            except CollectorError as error:
                if time.monotonic() >= self._give_up_at:
                    self._lost_events += len(events)
                    return
                if str(error) != said:
                    said = str(error)
                    log.warning("recorder.waits", events=len(self.waiting) + len(events), error=said)
                time.sleep(HURRIED_SECONDS if self._is_over else RETRY_SECONDS)
            except Exception:
                self._lost_events += len(events)
                log.exception("recorder.crashed", events=len(events))  # a defect; others shall be stored all the same
                return
            else:
                if report.rejected:
                    log.warning("recorder.rejected", events=report.rejected, reason=report.errors[0].reason)
                return
            finally:
                self._tell_overload()


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
