"""Events of the host program itself: the collector as a library."""

import asyncio
from collections import deque
from collections.abc import Iterable
from enum import Enum
from itertools import islice

import msgspec
from prometheus_client import Counter

from collector.bodies import BodyFormat
from collector.clock import Clock
from collector.errors import Rejected, Retryable
from collector.events import UsageEvent
from collector.intake import Intake, Report
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics, Verdicts

log = get_logger(__name__)

SOURCE = "program"

CHUNK_EVENTS = 1000
"""So many of the events that wait are stored in one go."""

RETRY_SECONDS = 1.0

SAY_SECONDS = 10.0
"""What found no room is said at most this often, with counts."""

_encode = msgspec.json.Encoder().encode


class Recorded(Enum):
    """What became of an event; either way it is on disk."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"


def event_of(email: object, event_name: object, timestamp_ms: object, app_id: object) -> UsageEvent:
    """The event. Raises TypeError; what else may be wrong is judged later."""
    if not isinstance(email, str):
        raise TypeError(f"email: expected text, not {type(email).__name__}")
    if not isinstance(event_name, str):
        raise TypeError(f"event_name: expected text, not {type(event_name).__name__}")
    if not isinstance(timestamp_ms, int):
        raise TypeError(f"timestamp_ms: expected whole milliseconds, not {type(timestamp_ms).__name__}")
    if not (type(email) is type(event_name) is str and type(timestamp_ms) is int):  # subclasses are not encoded
        email, event_name, timestamp_ms = str.__str__(email), str.__str__(event_name), int.__int__(timestamp_ms)
    if app_id is None:
        return UsageEvent(timestamp_ms, email, event_name)
    if not isinstance(app_id, str):
        raise TypeError(f"app_id: expected text, not {type(app_id).__name__}")
    return UsageEvent(timestamp_ms, email, event_name, str.__str__(app_id))


class Overload:
    """Events for which there was no room: add to `events`, then `count` and `say`, then or later and in any thread."""

    def __init__(self, clock: Clock) -> None:
        self.events = 0
        self._clock = clock
        self._counted_events = self._said_events = 0
        self._say_at = 0.0

    def count(self, refusals: Counter) -> None:
        """Those that were not counted yet are in the metrics."""
        if events := self.events - self._counted_events:
            self._counted_events += events
            refusals.labels(SOURCE, "overload").inc(events)

    def say(self) -> None:
        """Those that were not said yet are in the log, at most every `SAY_SECONDS`."""
        now, events = self._clock.monotonic(), self.events - self._said_events
        if events and now >= self._say_at:
            self._say_at = now + SAY_SECONDS
            self._said_events += events
            log.error("recorder.refused", events=events, reason="as many as events.max_recorded were waiting")


class Recorder:
    """Takes events from the program that the collector runs in, on its loop.

    `max_waiting_events` bounds what `offer` holds in memory: 150 to 300 bytes an event with ordinary texts.
    """

    def __init__(self, intake: Intake, *, max_waiting_events: int, clock: Clock, metrics: Metrics) -> None:
        self._intake = intake
        self._max_waiting_events = max_waiting_events
        self._clock = clock
        self._verdicts = Verdicts(metrics.events, SOURCE)
        self._refusals = metrics.refusals
        self._overload = Overload(clock)
        self._waiting: deque[UsageEvent] = deque()
        self._offered = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def use_limit(self, max_waiting_events: int) -> None:
        """From now on so many may wait."""
        self._max_waiting_events = max_waiting_events

    @property
    def waiting_events(self) -> int:
        """Events that were offered and are not on disk yet."""
        return len(self._waiting)

    async def record(self, event: UsageEvent) -> Recorded:
        """What became of the event, after the commit. Raises Rejected with the reason, or Retryable."""
        report = await self.record_many([event])
        if report.rejected:
            raise Rejected(report.errors[0].reason)
        return Recorded.ACCEPTED if report.accepted else Recorded.DUPLICATE

    async def record_many(self, events: Iterable[UsageEvent]) -> Report:
        """What became of the events, after the commit; an event that is none costs its neighbours nothing.

        Raises Retryable where the queue cannot take them, with nothing stored.
        """
        report = await self._intake.take(b"\n".join(map(_line, events)), BodyFormat.NDJSON)
        self._verdicts.count(report.accepted, report.duplicates, report.rejected)
        return report

    def offer(self, event: UsageEvent) -> bool:
        """Whether there was room for the event. It is stored soon; until then it dies with the process."""
        if len(self._waiting) >= self._max_waiting_events:
            self._overload.events += 1
            self._overload.count(self._refusals)
            self._overload.say()
            return False
        self._waiting.append(event)
        self._emptied.clear()
        self._offered.set()
        return True

    async def flush(self) -> None:
        """Returns when everything that was offered is on disk, or was rejected."""
        await self._emptied.wait()

    async def run(self) -> None:
        """Until cancelled: stores what is offered; where the queue cannot take it, it waits here."""
        while True:
            await self._clock.wait(self._offered, None)
            self._offered.clear()
            while self._waiting:
                chunk = list(islice(self._waiting, CHUNK_EVENTS))
                try:
                    report = await self.record_many(chunk)
                except Retryable as error:
                    await self._clock.sleep(error.retry_after_seconds or RETRY_SECONDS)
                    continue
                if report.rejected:
                    log.warning("recorder.rejected", events=report.rejected, reason=report.errors[0].reason)
                for _ in chunk:
                    self._waiting.popleft()
            self._emptied.set()
            self._overload.say()


def _line(event: UsageEvent) -> bytes:
    """The event as JSON, for the same judgement as everybody's events."""
    try:
        return _encode(event)
    except (ValueError, TypeError):  # is rejected, with this as what was sent
        return b'"text with a lone surrogate, a number of thousands of digits, or a type that is no JSON"'
