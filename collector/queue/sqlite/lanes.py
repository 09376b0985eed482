"""What waits of each app, as memory knows it: how many events, since when, and how far they are leased.

What is leased is known here alone. After a crash all that was not settled is simply still in the file.
"""

import asyncio
from bisect import insort
from collections.abc import Iterable
from typing import NamedTuple

from collector.clock import Clock
from collector.queue.base import Backlog
from collector.queue.sqlite.operations import Settle, Waiting
from collector.queue.sqlite.run import Run


class Range(NamedTuple):
    """First and last number of segments that were leased together, and the events in them."""

    first: int
    last: int
    events: int


class Lane:
    """What is known of one app."""

    __slots__ = ("app_id", "leased_events", "leased_to", "returned", "waiting_events", "waiting_since")

    def __init__(self, app_id: str) -> None:
        self.app_id = app_id
        self.waiting_events = 0
        self.leased_events = 0
        self.leased_to = 0
        """Number of the last segment that was ever leased here."""
        self.returned: list[Range] = []
        """What was leased and given back, in the order of their numbers."""
        self.waiting_since = 0.0

    @property
    def available(self) -> int:
        """Events to lease. A lease may have read a commit before its puts were counted here; then it is 0 till then."""
        return max(0, self.waiting_events - self.leased_events)


class Lanes:
    """The lanes of all apps. `arrivals` is set when one may have become worth a look for who delivers."""

    def __init__(self, clock: Clock, arrivals: asyncio.Event, batch_events: int) -> None:
        self._clock = clock
        self._arrivals = arrivals
        self._batch_events = batch_events
        self._lanes: dict[str, Lane] = {}

    @property
    def waiting_events(self) -> int:
        """Events of all apps that are not settled, leased or not."""
        return sum(max(0, lane.waiting_events) for lane in self._lanes.values())

    def oldest_waiting_seconds(self) -> float:
        """How long the oldest event that is not leased has waited; 0 where there is none."""
        since = [lane.waiting_since for lane in self._lanes.values() if lane.available]
        return max(0.0, self._clock.monotonic() - min(since)) if since else 0.0

    def backlog(self) -> Iterable[Backlog]:
        """See `Queue.backlog`."""
        return [
            Backlog(lane.app_id, lane.available, lane.waiting_since) for lane in self._lanes.values() if lane.available
        ]

    def waiting_events_of(self, app_id: str) -> int:
        """See `Queue.waiting_events_of`."""
        lane = self._lanes.get(app_id)
        return 0 if lane is None else max(0, lane.waiting_events)

    def find(self, app_id: str) -> Lane | None:
        """The lane of an app of which anything is known."""
        return self._lanes.get(app_id)

    def learn(self, waiting: Waiting) -> None:
        """Takes over what the file says of an app."""
        self._set_waiting(self._lane(waiting.app_id), waiting.events, since=self._since(waiting.oldest_stamp))

    def add(self, app_id: str, events: int) -> None:
        """So many were committed just now."""
        lane = self._lane(app_id)
        self._set_waiting(lane, lane.waiting_events + events, since=self._clock.monotonic())

    def lease(self, lane: Lane, run: Run, next_stamp: int) -> None:
        """A run is leased until `settle` or `give_back`; what waits behind it has done so since then."""
        lane.leased_events += run.events
        lane.leased_to = max(lane.leased_to, run.last)
        lane.waiting_since = self._since(next_stamp)

    def settle(self, settle: Settle) -> None:
        """A settlement was committed: what it has put back can be leased again, the rest is gone."""
        lane = self._lanes[settle.app_id]
        lane.waiting_events -= settle.events - settle.rest_events
        lane.leased_events -= settle.events
        if settle.rest_events:
            self._return(lane, Range(settle.first, settle.last, settle.rest_events))

    def give_back(self, app_id: str, leased: Range) -> None:
        """All of a lease can be leased again."""
        lane = self._lanes[app_id]
        lane.leased_events -= leased.events
        self._return(lane, leased)

    def _return(self, lane: Lane, leased: Range) -> None:
        insort(lane.returned, leased)
        self._arrivals.set()

    def _lane(self, app_id: str) -> Lane:
        lane = self._lanes.get(app_id)
        if lane is None:
            lane = self._lanes[app_id] = Lane(app_id)
        return lane

    def _set_waiting(self, lane: Lane, events: int, *, since: float) -> None:
        """Takes over how many events wait; those that are the first to wait do so `since` then."""
        before = lane.available
        lane.waiting_events = events
        if lane.available > before:
            if before == 0:
                lane.waiting_since = since
            # The flusher waits for a first event or a full batch; waking it for each commit in between is in vain.
            if before == 0 or before < self._batch_events <= lane.available:
                self._arrivals.set()

    def _since(self, stamp: int | None) -> float:
        """A stamp on the scale of the monotonic clock; where wall time has jumped back, now."""
        now_us = self._clock.now_us()
        return self._clock.monotonic() - max(0, now_us - (stamp or now_us)) / 1e6
