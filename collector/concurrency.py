"""How many requests upstream is sent at one time (pure): AIMD on what each single attempt took and how it ended.

The rules, in rounds of as many answers as the limit allows requests:

1. The answers of a round took no more than twice the best: one more request may be under way, if all were in use.
2. They took longer: as much waits at upstream as it works on. Two fifths as many are under way from then on, which
   empties that queue, so that what an answer takes at best is measured anew at the bottom of each saw tooth.
3. An attempt failed in passing (429, 5xx, no answer): two fifths as many, at once.

What was sent before the limit was last lowered says nothing about the limit that is now, and is not heard.

The best is kept for each size of request: one event is answered sooner than a thousand, and that is no queue. It falls
quickly and rises slowly, the more slowly the more requests are under way, because then they wait for one another. At
the lowest limit it rises as fast as it falls: where upstream has become slower by itself, the limit goes down, the best
is learnt again there, and the limit comes back.
"""

LOWEST_LIMIT = 2
"""With one alone, a single request that hangs would hold up everybody until its timeout. `flush.max_in_flight` allows
no fewer for the same reason."""
FIRST_LIMIT = 4

TOLERANCE = 2.0
LOWERED_TO = 0.4
"""Times the tolerance this is less than 1, so no queue is left. With 0.5 a trace of it stayed, was taken for the best,
and the limit crept up to twenty times what was needed (simulated)."""
FALLING = 0.25
"""How far the best moves towards the mean of a round that was quicker, or of any at the lowest limit."""
RISING = 0.125
"""And, divided by the limit, towards that of a slower one. More follows the queue, less follows lucky answers."""


class _Size:
    """Answers to requests of about one size."""

    __slots__ = ("answers", "best_seconds", "seconds")

    def __init__(self, best_seconds: float) -> None:
        self.best_seconds = best_seconds
        self.answers = 0
        self.seconds = 0.0


class AdaptiveLimit:
    """`limit` requests may be under way, from LOWEST_LIMIT to `maximum`, which is no lower."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.limit = min(FIRST_LIMIT, maximum)
        self._lowered = 0
        self._sizes: dict[int, _Size] = {}
        self._answers = 0
        self._was_reached = False

    def use_maximum(self, maximum: int) -> None:
        """From now on so many may be under way at most."""
        self.maximum = maximum
        self.limit = max(LOWEST_LIMIT, min(self.limit, maximum))

    def began(self, in_flight: int) -> int:
        """An attempt begins and is one of `in_flight`. Returns what `answered` or `failed` wants to know of it."""
        if in_flight >= self.limit:
            self._was_reached = True
        return self._lowered

    def answered(self, began: int, *, seconds: float, events: int) -> None:
        """Upstream took so many events in one request, and that took so long."""
        if began != self._lowered:
            return
        size = self._sizes.setdefault(events.bit_length(), _Size(seconds))
        size.answers += 1
        size.seconds += seconds
        self._answers += 1
        if self._answers >= self.limit:
            self._end_round()

    def failed(self, began: int) -> None:
        """Upstream could not take a request for now, or did not answer."""
        if began == self._lowered:
            self._lower()

    def _end_round(self) -> None:
        heard = [size for size in self._sizes.values() if size.answers]
        took = sum(size.seconds for size in heard)
        at_best = sum(size.best_seconds * size.answers for size in heard)
        at_lowest = self.limit == LOWEST_LIMIT
        for size in heard:
            off = size.seconds / size.answers - size.best_seconds
            size.best_seconds += off * (FALLING if off < 0 or at_lowest else RISING / self.limit)
        if took > TOLERANCE * at_best:
            self._lower()
            return
        if self._was_reached:
            self.limit = min(self.maximum, self.limit + 1)
        self._begin_round()

    def _lower(self) -> None:
        self.limit = max(LOWEST_LIMIT, int(self.limit * LOWERED_TO))
        self._lowered += 1
        self._begin_round()

    def _begin_round(self) -> None:
        for size in self._sizes.values():
            size.answers, size.seconds = 0, 0.0
        self._answers = 0
        self._was_reached = False
