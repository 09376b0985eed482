"""What the writer is asked to do, and what came of it."""

from collections.abc import Collection, Sequence

import msgspec

from collector.queue.base import Batch, Burial, Verdict, lines_without


class Put(msgspec.Struct, frozen=True, gc=False, tag=True, array_like=True):
    """Store these batches, all of them or none. `bytes` is the size of their lines, with the line ends."""

    batches: Sequence[Batch]
    bytes: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Put":
        """The operation that stores these batches."""
        return cls(batches, sum([batch.bytes for batch in batches]))


class Settle(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Take away a range of one app's segments with its `events`: bury some of them, put `rest` back in their place."""

    app_id: str
    first: int
    last: int
    events: int
    dead: Sequence[tuple[Burial, bytes]] = ()
    rest_events: int = 0
    rest_lines: bytes = b""
    kept_events: int = 0
    kept_lines: bytes = b""
    """What was delivered and is to be kept."""

    def keeping(self, lines: bytes, others: Collection[int]) -> "Settle":
        """The same, and the lines are kept as delivered but for those at the positions of `others`."""
        if others:
            lines = lines_without(lines, others)
        return msgspec.structs.replace(self, kept_events=self.events - len(others), kept_lines=lines)

    @property
    def dead_bytes(self) -> int:
        """What the dead letters take: each line with its line end, and its reason."""
        return sum(len(line) + 1 + len(burial.reason.encode()) for burial, line in self.dead)

    @property
    def bytes(self) -> int:
        """A settlement holds nothing that was not counted before."""
        return 0


Operation = Put | Settle


class Done(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What became of one operation: the verdicts of a Put, and by how many bytes more is waiting now."""

    verdicts: Sequence[Verdict]
    bytes: int
    segments: Sequence[int] = ()
    """By batch, the number of the segment that holds what was new of it; 0 where unknown, empty where all are."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """What waits of one app: events, bytes, and the stamp of the oldest; and what its dead letters take."""

    app_id: str
    events: int
    bytes: int
    oldest_stamp: int | None
    dead_bytes: int
