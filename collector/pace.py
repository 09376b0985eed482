"""How many requests leave in a second, where there is a limit that several collectors may share."""

from collections.abc import Callable

from collector.clock import Clock


class Pace:
    """Evenly spaced turns: a limit of 10 a second lets one request leave each 100 ms, and saves nothing up."""

    def __init__(self, per_second: int, share: Callable[[], float], *, clock: Clock) -> None:
        self._per_second = per_second
        self._share = share
        self._clock = clock
        self._next = float("-inf")

    def use_limit(self, per_second: int) -> None:
        """From now on this holds."""
        self._per_second = per_second

    async def turn(self) -> None:
        """Returns when a request may leave; at once where there is no limit (0 a second)."""
        if self._per_second:
            now = self._clock.monotonic()
            mine = max(now, self._next)
            self._next = mine + 1.0 / (self._per_second * self._share())
            if mine > now:
                await self._clock.sleep(mine - now)
