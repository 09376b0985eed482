"""The agent's clocks, on virtual time."""

import asyncio
import random

from collector.clock import Clock
from tests.simulation.loop import VirtualLoop

START_US = 1_767_225_600_000_000


class WorldClock(Clock):
    """The agent's clocks. Wall time jumps; who sleeps may wake late."""

    def __init__(self, loop: VirtualLoop, fate: random.Random) -> None:
        self._loop = loop
        self._fate = fate
        self.offset_us = START_US
        self.late_seconds = 0.0

    def now_us(self) -> int:
        return self.offset_us + round(self._loop.time() * 1e6)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds + self._late(seconds))

    async def wait(self, event: asyncio.Event, timeout_seconds: float | None) -> bool:
        late = 0.0 if timeout_seconds is None else self._late(timeout_seconds)
        return await super().wait(event, None if timeout_seconds is None else timeout_seconds + late)

    def _late(self, seconds: float) -> float:
        return self.late_seconds * (0.5 + self._fate.random()) if seconds >= 1.0 else 0.0
