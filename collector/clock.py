"""Time as the collector sees it: one seam, so that a test can own it."""

import asyncio
import time


class Clock:
    """The machine's clocks. Wall time (`now_us`, `now_ms`) may jump; `monotonic` never does."""

    def now_us(self) -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1000

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return self.now_us() // 1000

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin, never backwards."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns `seconds` later."""
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, timeout_seconds: float | None) -> bool:
        """True once `event` is set; False when `timeout_seconds` passed first (None: no timeout)."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await event.wait()
        except TimeoutError:
            return event.is_set()


class WallTime:
    """Wall time for what must not happen too early because somebody sets the machine's clock.

    The clock's own time, and that from when this was made with what has passed since, are mostly the same. What is
    stamped with the later and judged by the earlier of them never looks older than it is, however the clock jumps.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_us = clock.now_us() - round(clock.monotonic() * 1e6)

    def earliest_us(self) -> int:
        """Microseconds since the epoch, at least."""
        return min(self._clock.now_us(), self._passed_us())

    def latest_us(self) -> int:
        """Microseconds since the epoch, at most."""
        return max(self._clock.now_us(), self._passed_us())

    def _passed_us(self) -> int:
        return self._ahead_us + round(self._clock.monotonic() * 1e6)
