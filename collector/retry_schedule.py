"""When the lanes in trouble are tried again: each waits on its own, and where upstream is down, all wait together.

A lane that failed backs off (backoff.py), or is held until a person acts (and tried now and then, in case somebody
did). Where several lanes fail in a row and none gets through, upstream is down: all lanes in trouble then wait for the
outage's own backoff as well. How many are tried at one time is the flusher's business.
"""

from collections.abc import Callable

import msgspec

from collector.backoff import delay_seconds
from collector.clock import Clock
from collector.errors import CollectorError, Retryable, Unusable
from collector.observe.logs import get_logger
from collector.observe.outages import Outages

log = get_logger(__name__)


class Lane:
    """How delivery for one app is going; `failures`, `held_for` and `not_before` are the schedule's to set."""

    __slots__ = ("app_id", "batch_events", "failures", "held_for", "in_flight", "not_before", "turn")

    def __init__(self, app_id: str, batch_events: int) -> None:
        self.app_id = app_id
        self.batch_events = batch_events
        self.failures = 0
        self.held_for: str | None = None
        self.not_before = float("-inf")
        self.in_flight = 0
        self.turn = 0

    def stay_below(self, events: int) -> None:
        """Requests of so many events are too large."""
        self.batch_events = max(1, min(self.batch_events, events // 2))

    @property
    def is_in_trouble(self) -> bool:
        """Whether the last that was heard is a failure."""
        return self.failures > 0 or self.held_for is not None


class Delays(msgspec.Struct, frozen=True):
    """How long a lane that failed waits (see backoff.py), and one that is held until it is tried all the same."""

    backoff_base_seconds: float
    backoff_max_seconds: float
    hold_retry_seconds: float


class RetrySchedule:
    """Hears what came of requests, says when to try again, and reports to `outages`.

    Other `delays` hold from when they are set on; who waits already, waits as long as before.
    """

    def __init__(self, outages: Outages, delays: Delays, *, clock: Clock, random_fraction: Callable[[], float]) -> None:
        self.delays = delays
        self._outages = outages
        self._clock = clock
        self._random_fraction = random_fraction
        self._failed_apps: set[str] = set()  # since the last request that got through
        self._outage_failures = 0
        self._outage_not_before = float("-inf")

    def not_before(self, lane: Lane) -> float:
        """The monotonic second from which a lane in trouble may be tried again."""
        return max(lane.not_before, self._outage_not_before)

    def got_through(self) -> None:
        """Upstream has answered a request, whatever it said of the events: it is not down."""
        self._failed_apps.clear()
        self._outage_failures, self._outage_not_before = 0, float("-inf")

    def succeeded(self, lane: Lane) -> None:
        """A lease of the lane was delivered as a whole."""
        if self._clock.monotonic() >= lane.not_before:  # else it left before another failed, and says nothing of that
            self.recovered(lane)

    def recovered(self, lane: Lane) -> None:
        """The lane is out of trouble; harmless where it was in none."""
        self._outages.end(lane.app_id)
        lane.failures, lane.held_for, lane.not_before = 0, None, float("-inf")

    def failed(self, lane: Lane, failure: Retryable | Unusable, *, waiting_events: int) -> None:
        """The lane backs off, or is held."""
        if isinstance(failure, Unusable):
            self._hold(lane, failure, waiting_events)
            return
        self.back_off(lane, failure)
        self._failed_apps.add(lane.app_id)
        if len(self._failed_apps) > 1:  # it is not one lane's own trouble
            self._outage_failures += 1
            delay = self.delay_seconds(self._outage_failures, None)
            self._outage_not_before = max(self._outage_not_before, self._clock.monotonic() + delay)
        again_in_seconds = lane.not_before - self._clock.monotonic()
        reason = lane.held_for or str(failure)
        self._outages.fail(lane.app_id, reason, again_in_seconds=again_in_seconds, waiting_events=waiting_events)

    def back_off(self, lane: Lane, failure: CollectorError) -> None:
        """The lane waits, longer with each failure in a row; of upstream this says nothing."""
        now = self._clock.monotonic()
        if now >= lane.not_before or not lane.failures:  # several batches that fail together are one failure
            lane.failures += 1
        delay = self.delay_seconds(lane.failures, failure)
        lane.not_before = max(lane.not_before, now + delay)  # a hold, or a longer Retry-After, stands
        log.debug(
            "flusher.delivery_failed",
            app=lane.app_id,
            error=str(failure),
            failures=lane.failures,
            again_in_seconds=round(delay, 3),
        )

    def delay_seconds(self, attempt: int, failure: CollectorError | None) -> float:
        """How long to wait after the `attempt`-th failure in a row, with what the latest asks for."""
        return delay_seconds(
            attempt,
            base_seconds=self.delays.backoff_base_seconds,
            maximum_seconds=self.delays.backoff_max_seconds,
            random_fraction=self._random_fraction(),
            retry_after_seconds=failure.retry_after_seconds if isinstance(failure, Retryable) else None,
        )

    def _hold(self, lane: Lane, failure: Unusable, waiting_events: int) -> None:
        now = self._clock.monotonic()
        lane.not_before = max(lane.not_before, now + self.delays.hold_retry_seconds)
        lane.held_for = reason = str(failure)
        again_in_seconds = lane.not_before - now
        self._outages.hold(lane.app_id, reason, again_in_seconds=again_in_seconds, waiting_events=waiting_events)
