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
