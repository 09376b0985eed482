"""Delivery: lease, send, settle.

One loop decides what is due; each batch is then delivered by a task of its own, as many at a time as upstream bears
(concurrency.py) and never more than `max_in_flight`. Every app has a lane. Lanes in trouble wait by their schedule
(retry_schedule.py) and share one slot apart from the others', which keep their pace: one request at a time finds out
whether the trouble is over.

What upstream's answers mean is the publisher's business; it arrives here as one of our errors:

- Retryable: the events wait again, the lane backs off. There is no last attempt. Where attempts in a row get no answer
  (Unanswered), each is smaller than the one before: what is too large for a slow line, or for a proxy's patience, may
  show in no other way.
- Rejected: the batch is halved until the guilty events stand alone; those are buried with the reason.
- PartlyRejected: the events that it names are buried with their reasons, the others are delivered.
- TooLarge: halved in the same way, and the lane's batches stay smaller for a while.
- Unusable: the events wait again, the lane is held. So are guilty events where dead letters have no room left.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Protocol

from collector.clock import Clock
from collector.concurrency import AdaptiveLimit
from collector.errors import DeadLettersFull, PartlyRejected, Rejected, Retryable, TooLarge, Unanswered, Unusable
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.outages import Outages
from collector.pace import Pace
from collector.parcel import Outcome, Parcel
from collector.queue.base import Backlog, Lease, Queue
from collector.retry_schedule import Delays, Lane, RetrySchedule

log = get_logger(__name__)

BATCH_REGROWTH = 0.05
"""A lane's batches that were too large grow by this part, and one event, with each request that is taken."""


class Publisher(Protocol):
    """Whatever delivers a batch."""

    async def publish(self, app_id: str, lines: bytes, events: int) -> float:
        """How many seconds upstream took for the request with which it has taken all events.

        Raises PartlyRejected if it has taken all but some, and Retryable, Rejected, TooLarge or Unusable if none.
        """
        ...


class Flusher:
    """Moves events from the queue to the publisher until it is told to stop."""

    def __init__(
        self,
        queue: Queue,
        publisher: Publisher,
        *,
        batch_events: int,
        linger_seconds: float,
        max_in_flight: int,
        delays: Delays,
        pace: Pace,
        clock: Clock,
        metrics: Metrics,
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._batch_events = batch_events
        self._linger_seconds = linger_seconds
        self._clock = clock
        self._metrics = metrics
        self._pace = pace
        self.outages = Outages(clock)
        self._retries = RetrySchedule(self.outages, delays, clock=clock, random_fraction=random_fraction)
        self._lanes: dict[str, Lane] = {}
        self._limit = AdaptiveLimit(max_in_flight)
        self._in_flight = 0
        self._probes = 0  # of those in flight, the ones of lanes in trouble
        self._turns = 0
        self._draining = False

    @property
    def held(self) -> dict[str, str]:
        """The apps that wait for a person, and why."""
        return {lane.app_id: lane.held_for for lane in self._lanes.values() if lane.held_for is not None}

    @property
    def in_flight(self) -> int:
        """Leases that are being delivered now."""
        return self._in_flight

    @property
    def limit(self) -> int:
        """How many may be delivered at one time, as upstream is now."""
        return self._limit.limit

    def use_publisher(self, publisher: Publisher) -> None:
        """From now on this one delivers; what is under way ends with the one before."""
        self._publisher = publisher

    def use_pace(
        self,
        *,
        linger_seconds: float,
        max_in_flight: int,
        delays: Delays,
        max_requests_per_second: int,
    ) -> None:
        """From now on these hold; who waits already, waits as long as before."""
        self._linger_seconds = linger_seconds
        self._limit.use_maximum(max_in_flight)
        self._retries.delays = delays
        self._pace.use_limit(max_requests_per_second)
        self._queue.arrivals.set()

    def try_held(self) -> None:
        """The apps that wait for a person are tried at once: one may have acted."""
        for lane in self._lanes.values():
            if lane.held_for is not None:
                lane.not_before = float("-inf")
        self._queue.arrivals.set()

    def drain(self) -> None:
        """From now on nothing lingers; `run` returns when nothing is left that could be delivered without a person."""
        self._draining = True
        self._queue.arrivals.set()

    async def run(self) -> None:
        """Delivers until cancelled, or until drained. Cancelling it leaves what is in flight in the queue."""
        async with asyncio.TaskGroup() as deliveries:
            while True:
                self._queue.arrivals.clear()
                self._let_go_of_what_others_delivered()
                now = self._clock.monotonic()
                waiting = [(self._lane(backlog.app_id), backlog) for backlog in self._queue.backlog()]
                due = [lane for lane, backlog in waiting if self._due_at(lane, backlog) <= now]
                if due:
                    await self._dispatch(_next_of(due), deliveries)
                    continue
                if self._draining and not self._in_flight and all(lane.held_for is not None for lane, _ in waiting):
                    return
                await self._clock.wait(self._queue.arrivals, self._until_next(waiting, now))

    def _lane(self, app_id: str) -> Lane:
        lane = self._lanes.get(app_id)
        if lane is None:
            lane = self._lanes[app_id] = Lane(app_id, self._batch_events)
        return lane

    def _due_at(self, lane: Lane, backlog: Backlog) -> float:
        """The monotonic second from which the lane's next batch may leave; infinity where an answer comes before."""
        if self._in_flight >= self._limit.maximum:
            return float("inf")
        if lane.is_in_trouble:
            if lane.in_flight or self._probes:  # one attempt at a time finds out whether the trouble is over
                return float("inf")
            not_before = self._retries.not_before(lane)
        elif self._in_flight - self._probes >= self._limit.limit:
            return float("inf")
        else:
            not_before = lane.not_before
        full = backlog.events >= lane.batch_events
        ready = float("-inf") if full or self._draining else backlog.waiting_since + self._linger_seconds
        return max(ready, not_before)

    def _until_next(self, waiting: Collection[tuple[Lane, Backlog]], now: float) -> float | None:
        """Seconds until a lane is due by time alone; None where only an arrival or an answer can change anything."""
        next_due = min((self._due_at(lane, backlog) for lane, backlog in waiting), default=float("inf"))
        return None if next_due == float("inf") else max(0.0, next_due - now)

    async def _dispatch(self, lane: Lane, deliveries: asyncio.TaskGroup) -> None:
        self._turns += 1
        lane.turn = self._turns
        try:
            lease = await self._queue.lease(lane.app_id, lane.batch_events)
        except Retryable as error:
            log.warning("flusher.lease_failed", app=lane.app_id, error=str(error))
            self._retries.back_off(lane, error)
            return
        if lease is not None:
            is_probe = lane.is_in_trouble
            self._in_flight += 1
            self._probes += is_probe
            lane.in_flight += 1
            deliveries.create_task(self._deliver(lane, lease, is_probe=is_probe), name=f"deliver {lane.app_id}")

    async def _deliver(self, lane: Lane, lease: Lease, *, is_probe: bool) -> None:
        publisher = self._publisher
        try:
            await self._send_and_settle(lane, lease)
            if lane.held_for is not None and self._publisher is not publisher:  # one may have acted meanwhile
                lane.not_before = float("-inf")
        finally:
            self._in_flight -= 1
            self._probes -= is_probe
            lane.in_flight -= 1
            self._queue.arrivals.set()

    async def _send_and_settle(self, lane: Lane, lease: Lease, *, is_witness: bool = False) -> Outcome:
        """What came of a lease, of which the lane has learnt, and which is on disk."""
        outcome = await self._send(lane, lease, is_witness=is_witness)
        # At once: a Retry-After holds for the batches beside this one too, however long our disk takes to settle.
        heard = outcome.failure
        self._learn_failure(lane, heard)
        await self._settle(lease, outcome)
        if outcome.failure is not heard:
            self._learn_failure(lane, outcome.failure)
        self._learn(lane, outcome)
        return outcome

    async def _send(self, lane: Lane, lease: Lease, *, is_witness: bool) -> Outcome:
        """Sends a lease in requests of the lane's size, halving what is refused; stops at the first other failure.

        Where it is in doubt whether its events are at fault or upstream, another lease tells, unless this is that one.
        """
        parcel = Parcel(lease)
        while True:
            part = parcel.next_part(lane.batch_events)
            if part is None:
                if not parcel.is_in_doubt:
                    break
                parcel.others_are_taken = not is_witness and await self._takes_another(lane)
                if not parcel.others_are_taken:
                    return parcel.nothing_but_refusals()
                continue
            await self._pace.turn()
            if self._clock.monotonic() < lane.not_before:  # another batch was told to wait; that holds for this one too
                return parcel.left_off(part, None)
            try:
                parcel.taken(part, await self._publish(lane, parcel.lines_of(part), len(part)))
            except Rejected as error:
                if isinstance(error, TooLarge):
                    lane.stay_below(len(part))
                parcel.refused(part, str(error))
            except (Retryable, Unusable) as error:
                return parcel.left_off(part, error)
        lane.batch_events = max(lane.batch_events, parcel.largest_taken)  # one large event says nothing of batches
        return parcel.outcome

    async def _takes_another(self, lane: Lane) -> bool:
        """Whether upstream takes anything of the app's next batch, which is settled then as any other."""
        try:
            other = await self._queue.lease(lane.app_id, lane.batch_events)
        except Retryable:
            return False
        if other is None:
            return False
        outcome = await self._send_and_settle(lane, other, is_witness=True)
        return outcome.delivered > 0

    async def _publish(self, lane: Lane, lines: bytes, events: int) -> Mapping[int, str]:
        """One request, from whose answer the limit and the outage learn; the events that are refused, with reasons.

        Raises what `Publisher.publish` raises if it has taken none.
        """
        reasons: Mapping[int, str] = {}
        was_in_trouble = lane.is_in_trouble
        began = self._limit.began(self._in_flight - self._probes)
        try:
            seconds = await self._publisher.publish(lane.app_id, lines, events)
        except Rejected:
            self._retries.got_through()
            raise
        except PartlyRejected as error:
            reasons, seconds = error.reasons, error.seconds
        except Retryable as error:
            if not was_in_trouble:  # later failures of a lane say no more than its first, unless they are of its own
                self._limit.failed(began)
            elif isinstance(error, Unanswered):
                lane.stay_below(events)
            raise
        lane.batch_events = min(self._batch_events, int(lane.batch_events * (1 + BATCH_REGROWTH)) + 1)
        self._retries.got_through()
        self._limit.answered(began, seconds=seconds, events=events)
        return reasons

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        """Settles until it is on disk: what upstream has taken must not be sent again because our disk is full.

        Where there is no room for dead letters, the guilty events wait on, and the app is held.
        """
        attempt = 0
        while True:
            try:
                await self._queue.settle(lease, buried=outcome.buried, returned=outcome.returned)
            except DeadLettersFull as error:
                outcome.returned = sorted([*outcome.returned, *(burial.position for burial in outcome.buried)])
                outcome.buried, outcome.failure = [], error
            except Retryable as error:
                attempt += 1
                log.warning("flusher.settle_failed", app=lease.app_id, events=lease.events, error=str(error))
                await self._clock.sleep(self._retries.delay_seconds(attempt, error))
            else:
                return

    def _learn(self, lane: Lane, outcome: Outcome) -> None:
        """Counts an outcome, and lets the lane go on where it was a success."""
        self._metrics.delivered.inc(outcome.delivered)
        self._metrics.buried.inc(len(outcome.buried))
        if outcome.buried:
            log.error(
                "flusher.events_buried", app=lane.app_id, events=len(outcome.buried), reason=outcome.buried[0].reason
            )
        if outcome.failure is None and not outcome.returned:
            self._retries.succeeded(lane)

    def _learn_failure(self, lane: Lane, failure: Retryable | Unusable | None) -> None:
        """The lane backs off, or is held."""
        if failure is not None:
            self._retries.failed(lane, failure, waiting_events=self._queue.waiting_events_of(lane.app_id))

    def _let_go_of_what_others_delivered(self) -> None:
        """An app of which nothing waits is in no trouble, whoever has delivered its events."""
        for trouble in [*self.outages]:
            lane = self._lanes[trouble.app_id]
            if not lane.in_flight and not self._queue.waiting_events_of(lane.app_id):
                self._retries.recovered(lane)


def _next_of(due: Collection[Lane]) -> Lane:
    """The lane whose turn it is; of those in trouble only the one that failed least, the likeliest to get through."""
    probe = min((lane for lane in due if lane.is_in_trouble), key=attrgetter("failures", "turn"), default=None)
    return min((lane for lane in due if lane is probe or not lane.is_in_trouble), key=attrgetter("turn"))
