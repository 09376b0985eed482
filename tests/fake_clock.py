"""Time that passes only when a test says so."""

import asyncio
import heapq
from collections.abc import Callable
from typing import NamedTuple

from collector.clock import Clock

START_MS = 1_700_000_000_000


class _Timer(NamedTuple):
    due: float
    number: int
    """Timers that are due at the same instant go off in the order in which they were set."""
    ring: Callable[[], None]


class FakeClock(Clock):
    """A clock that stands still; `advance` moves it and wakes whoever waits for a moment that has come."""

    def __init__(self, *, now_ms: int = START_MS) -> None:
        self._start_ms = now_ms
        self._seconds = 0.0
        self._jumped_seconds = 0.0
        self._timers: list[_Timer] = []
        self._timers_set = 0

    def now_us(self) -> int:
        return self._start_ms * 1000 + round((self._seconds + self._jumped_seconds) * 1e6)

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        await self.wait(asyncio.Event(), seconds)

    async def wait(self, event: asyncio.Event, timeout_seconds: float | None) -> bool:
        if event.is_set() or timeout_seconds is None:
            return await event.wait()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None if timeout_seconds > 0 else loop.time()) as scope:
                timer = self._set_timer(timeout_seconds, lambda: scope.reschedule(loop.time()))
                try:
                    return await event.wait()
                finally:
                    self._timers = [other for other in self._timers if other is not timer]
                    heapq.heapify(self._timers)
        except TimeoutError:
            return event.is_set()

    def advance(self, seconds: float) -> None:
        """It is `seconds` later; those whose time has come go on as soon as the caller lets the loop run."""
        until = self._seconds + seconds
        while self._timers and self._timers[0].due <= until:
            timer = heapq.heappop(self._timers)
            self._seconds = max(self._seconds, timer.due)
            timer.ring()
        self._seconds = until

    def jump(self, seconds: float) -> None:
        """Somebody sets the machine's clock; no time passes."""
        self._jumped_seconds += seconds

    def next_due_seconds(self) -> float | None:
        """How long until somebody who waits will be woken; None where nobody waits for a moment."""
        return self._timers[0].due - self._seconds if self._timers else None

    def _set_timer(self, seconds: float, ring: Callable[[], None]) -> _Timer:
        self._timers_set += 1
        timer = _Timer(self._seconds + seconds, self._timers_set, ring)
        heapq.heappush(self._timers, timer)
        return timer
