"""Segments that are in memory: those that were put a moment ago, and those that were read ahead.

To read back what was just written, and to check it, takes half as much time as to send it, and beside a busy loop each
statement of a reader waits for the interpreter lock: what leaves at once is not read, and what is read is read in bulk.
"""

from collections.abc import Collection

from collector.queue.sqlite.run import LEASE_BATCHES, Run, Segment, best_reach, joined

AT_HAND_BYTES = 4 * 2**20
"""Of lines, in all apps: what comes within some fifty milliseconds at full speed."""


class AtHand:
    """Segments by their numbers, until they are leased; the oldest here go when others need the room."""

    def __init__(self) -> None:
        self._segments: dict[int, Segment] = {}
        self._bytes = 0

    def add(self, segments: Collection[Segment]) -> None:
        """More are here. They stay until more are added, however many bytes they are."""
        for segment in segments:
            self._drop(segment.number)
            self._segments[segment.number] = segment
            self._bytes += len(segment.lines)
        while self._bytes > AT_HAND_BYTES and len(self._segments) > len(segments):
            self._drop(next(iter(self._segments)))

    def reach(self, after: int) -> int:
        """The number of the last segment up to which none is missing after that number."""
        while after + 1 in self._segments:
            after += 1
        return after

    def next_run(self, after: int, waiting_events: int, batch_events: int) -> Run | None:
        """Takes the run that fills batches best, from after that number on.

        None where there is nothing, or where a better one may be found among more than is here, given how many events
        wait: to tell, no more than LEASE_BATCHES are ever looked at.
        """
        found: list[Segment] = []
        total = 0
        while total < LEASE_BATCHES * batch_events and (segment := self._segments.get(after + 1 + len(found))):
            found.append(segment)
            total += segment.events
        run = found[: best_reach([segment.events for segment in found], batch_events)]
        fills = sum([segment.events for segment in run]) % batch_events == 0
        if not run or not (fills or total >= min(waiting_events, LEASE_BATCHES * batch_events)):
            return None
        for segment in run:
            self._drop(segment.number)
        return joined(run)

    def next_stamp(self, run: Run) -> int:
        """Of the segment after a run; where that is not here, the run's, which is earlier."""
        following = self._segments.get(run.last + 1)
        return following.stamp if following else run.stamp

    def clear(self) -> None:
        """Nothing is here."""
        self._segments.clear()
        self._bytes = 0

    def _drop(self, number: int) -> None:
        segment = self._segments.pop(number, None)
        if segment is not None:
            self._bytes -= len(segment.lines)
