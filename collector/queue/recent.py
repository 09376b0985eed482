"""What was put a moment ago, still in memory: what leaves at once need not be read from the file.

To read a segment that was just written and to check it costs half as much as to send it. What is not here is read; all
of it is on disk all the same.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from collector.queue.base import Batch
from collector.queue.run import LEASE_BATCHES, Run, best_reach

RECENT_BYTES = 4 * 2**20
"""Of lines, in all apps: what comes within some fifty milliseconds at full speed."""


class _Segment(NamedTuple):
    stamp: int
    events: int
    lines: bytes


class Recent:
    """The latest segments by their numbers, in the order of their commits, until they are leased or others come."""

    def __init__(self) -> None:
        self._segments: dict[int, _Segment] = {}
        self._bytes = 0

    def add(self, segments: Mapping[int, Sequence[Batch]], stamp: int) -> None:
        """Segments that were committed, each made of these batches; `stamp` is when (microseconds since the epoch)."""
        for number, batches in segments.items():
            lines = b"\n".join([batch.lines for batch in batches])
            self._segments[number] = _Segment(stamp, sum([len(batch.keys) for batch in batches]), lines)
            self._bytes += len(lines)
        while self._bytes > RECENT_BYTES:
            self._take(next(iter(self._segments)))

    def next_run(self, after: int, waiting_events: int, batch_events: int) -> Run | None:
        """Takes what `View.next_run` would find after that number, of so many events; None where some is not here."""
        sizes: list[int] = []
        total = 0
        while total < LEASE_BATCHES * batch_events and (segment := self._segments.get(after + 1 + len(sizes))):
            sizes.append(segment.events)
            total += segment.events
        count = best_reach(sizes, batch_events)
        events = sum(sizes[:count])
        would_read_on = total < min(waiting_events, LEASE_BATCHES * batch_events) and events % batch_events
        if not count or would_read_on:
            return None
        first, last = after + 1, after + count
        taken = [self._take(number) for number in range(first, last + 1)]
        following = self._segments.get(last + 1, taken[-1])
        return Run(first, last, events, b"\n".join([segment.lines for segment in taken]), following.stamp)

    def clear(self) -> None:
        """Forgets all."""
        self._segments.clear()
        self._bytes = 0

    def _take(self, number: int) -> _Segment:
        segment = self._segments.pop(number)
        self._bytes -= len(segment.lines)
        return segment
