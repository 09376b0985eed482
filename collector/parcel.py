"""A lease on its way to upstream: what is sent next of it, and what has come of it so far (pure)."""

from collections.abc import Mapping

import msgspec

from collector.errors import Retryable, Unusable
from collector.queue.base import Burial, Lease

SUSPICIOUS_BURIALS = 50
"""So many events of one lease refused one by one and none taken may be no poisoned events: upstream or its path may be
refusing everything. Nothing is buried until something else was taken."""


class Outcome(msgspec.Struct):
    """What came of one lease: events are positions in it; `failure` is why some are returned, if it was its own."""

    delivered: int = 0
    buried: list[Burial] = []
    returned: list[int] = []
    failure: Retryable | Unusable | None = None


class Parcel:
    """The events of a lease, in parts: ranges of positions. What is refused is halved, until the guilty stand alone.

    Where it is in doubt who is at fault, what is left is tried as it is, and nothing is halved.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lines: list[bytes] | None = None
        self._untried = range(lease.events)
        self._halves: list[range] = []  # of what was refused; the last is next
        self._unhalved: list[range] = []
        self.outcome = Outcome()
        self.others_are_taken = False
        """Something else was taken: these events are at fault."""
        self.largest_taken = 0
        """Events of the largest request that was taken."""

    @property
    def is_in_doubt(self) -> bool:
        """Whether upstream, or its path, seems to refuse everything."""
        outcome = self.outcome
        return len(outcome.buried) >= SUSPICIOUS_BURIALS and not outcome.delivered and not self.others_are_taken

    def next_part(self, most_events: int) -> range | None:
        """What is to be sent now, no more than that; None where all was, or no part of it can end the doubt."""
        if not self.is_in_doubt:
            self._halves += self._unhalved
            self._unhalved = []
        if self._halves:
            return self._halves.pop()
        part, self._untried = self._untried[:most_events], self._untried[most_events:]
        return part or None

    def lines_of(self, part: range) -> bytes:
        """The part as upstream gets it."""
        if len(part) == self._lease.events:
            return self._lease.lines
        if self._lines is None:
            self._lines = self._lease.lines.split(b"\n")
        return b"\n".join(self._lines[part.start : part.stop])

    def taken(self, part: range, refused: Mapping[int, str]) -> None:
        """All of a part was taken but for those that are named with a reason, by their positions in it."""
        outcome = self.outcome
        if count := len(part) - len(refused):
            outcome.delivered += count
            self.largest_taken = max(self.largest_taken, len(part))
        outcome.buried += [Burial(part[position], reason) for position, reason in refused.items()]

    def refused(self, part: range, reason: str) -> None:
        """Nothing of a part was taken."""
        middle = len(part) // 2
        if self.is_in_doubt:
            self._unhalved.append(part)
        elif middle:
            self._halves += [part[middle:], part[:middle]]
        else:
            self.taken(part, {0: reason})

    def left_off(self, part: range, failure: Retryable | Unusable | None) -> Outcome:
        """What came of it where it ends before this part; of what is in doubt nothing is buried."""
        if self.is_in_doubt:
            return Outcome(returned=list(range(self._lease.events)), failure=failure)
        left = [part, *self._halves[::-1], *self._unhalved, self._untried]
        self.outcome.returned = [position for each in left for position in each]
        self.outcome.failure = failure
        return self.outcome

    def nothing_but_refusals(self) -> Outcome:
        """What came of it where nothing at all was taken: nothing is buried, and the app is held."""
        tried, last = len(self.outcome.buried), self.outcome.buried[-1].reason
        reason = f"every one of {tried} events that were tried was refused, the last with: {last}"
        return Outcome(returned=list(range(self._lease.events)), failure=Unusable(reason))
