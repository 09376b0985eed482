"""When keys are forgotten: a walk over all of them, in steps small enough for puts to go in between."""

TICK_SECONDS = 1.0
PASSES = 24
"""The keys are walked this many times within one retention: a key outlives its retention by at most 1/24."""
MIN_KEYS, MAX_KEYS = 1_000, 10_000
"""Bounds of one step: below, a step is hardly worth its commit; above, it would hold up puts for more than 5 ms."""
MAX_STEPS = 20
"""In one turn, each a transaction of its own with puts in between: 200,000 keys a second are looked at."""


class PruneWalk:
    """Where the walk over all keys is, and how large its next step should be to be round in time."""

    def __init__(self, retention_seconds: float) -> None:
        self._pass_seconds = retention_seconds / PASSES
        self._next_pass = 0.0
        self.reached: bytes | None = None

    def is_due(self, monotonic: float) -> bool:
        """Whether a step should be made now; begins a new pass when its time has come."""
        if self.reached is None and monotonic >= self._next_pass:
            self.reached, self._next_pass = b"", monotonic + self._pass_seconds
        return self.reached is not None

    def steps(self, keys: int) -> tuple[int, int]:
        """How many steps to make in one turn, where there are so many keys, and at how many keys each looks."""
        due = max(MIN_KEYS, int(keys * TICK_SECONDS / self._pass_seconds))
        return min(-(-due // MAX_KEYS), MAX_STEPS), min(due, MAX_KEYS)
