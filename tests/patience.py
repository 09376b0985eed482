"""Waiting for what sets no event here: metrics, sockets, other threads and other processes tell nobody."""

import asyncio
import inspect
from collections.abc import Callable

PATIENCE_SECONDS = 120.0
"""A backstop for what is broken; nothing that works comes near it, also on a machine that is slow and busy."""


async def until(fact: Callable[[], object], *, seconds: float = PATIENCE_SECONDS, pause_seconds: float = 0.002) -> None:
    """Returns when it is so, which `fact` may have to await. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            is_so = fact()
            if await is_so if inspect.isawaitable(is_so) else is_so:
                return
            await asyncio.sleep(pause_seconds)
