"""What one lease covers: a run of neighbouring segments, chosen so that requests are full."""

from collections.abc import Sequence
from typing import NamedTuple

from collector.queue.base import Batch, Verdict, lines_without

LEASE_BATCHES = 4
"""A lease covers whole segments. Where these do not fill one batch exactly it may reach over up to this many batches,
so that at most one request in about as many is not full."""


class Segment(NamedTuple):
    """Events of one app that were stored together: its number, since when (microseconds since the epoch), its lines."""

    number: int
    stamp: int
    events: int
    lines: bytes


class Run(NamedTuple):
    """First and last number of the segments, their events and lines, and the stamp of the last."""

    first: int
    last: int
    events: int
    lines: bytes
    stamp: int


def joined(segments: Sequence[Segment]) -> Run:
    """The run of neighbouring segments, of which there is at least one."""
    last = segments[-1]
    lines = b"\n".join([segment.lines for segment in segments])
    return Run(segments[0].number, last.number, sum([segment.events for segment in segments]), lines, last.stamp)


def made_of(batches: Sequence[tuple[Batch, Verdict]], number: int, stamp: int) -> Segment:
    """The segment that batches were stored as, or what was new of them."""
    lines = [
        lines_without(batch.lines, verdict.duplicates) if verdict.duplicates else batch.lines
        for batch, verdict in batches
        if verdict.accepted
    ]
    return Segment(number, stamp, sum([verdict.accepted for _, verdict in batches]), b"\n".join(lines))


def best_reach(sizes: Sequence[int], batch_events: int) -> int:
    """How many of the segments, from the first on, fill requests of `batch_events` best; 0 only for no segments.

    The shortest reach wins among equals. One segment is always taken, however large it is.
    """
    best, best_fill, total = 0, 0.0, 0
    for count, size in enumerate(sizes, 1):
        total += size
        if count > 1 and total > LEASE_BATCHES * batch_events:
            break
        requests = -(-total // batch_events)
        if total / (requests * batch_events) > best_fill:
            best, best_fill = count, total / (requests * batch_events)
        if best_fill == 1.0:
            break
    return best
