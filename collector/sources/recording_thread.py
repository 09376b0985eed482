"""The thread that stores what a program without an event loop has recorded without waiting."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue

from collector.errors import CollectorError
from collector.events import UsageEvent
from collector.intake import Report
from collector.observe.logs import get_logger
from collector.sources.recorder import CHUNK_EVENTS, RETRY_SECONDS

log = get_logger(__name__)

LINGER_SECONDS = 0.05
"""How long events that were recorded without waiting gather before they are stored together."""
QUIET_LOOKS = 20
"""So many times the recorder's thread looks in vain before it sleeps until it is woken."""
HURRIED_SECONDS = 0.01
"""Instead of `RETRY_SECONDS` where a stop waits."""


class RecordingThread:
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
