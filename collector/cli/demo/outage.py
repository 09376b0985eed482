"""One collector, and a sandbox that goes away for a while: the backlog grows, and drains."""

import asyncio
import random
import time
from pathlib import Path

import aiohttp
import msgspec

from collector.cli.demo import load
from collector.cli.demo.books import Books
from collector.cli.demo.children import Collector, Sandbox
from collector.cli.demo.screen import DOWN, Screen
from collector.intake import Report

PUSH_SECONDS = 10.0
OUTAGE = (2.5, 6.5)
"""From when to when the sandbox is down, in seconds after the first event."""
DRAIN_DEADLINE_SECONDS = 12.0
REFRESH_SECONDS = 0.25


async def show_outage(folder: Path, rng: random.Random) -> Books:
    """The books at the end. Raises Unusable where a process does not start or end as it should."""
    books = Books()
    async with (
        aiohttp.ClientSession() as session,
        Sandbox(folder) as sandbox,
        Collector(folder, "collector", sandbox.url, {}) as collector,
    ):
        with Screen(books) as screen:
            await _play(session, sandbox, collector, books, screen, rng)
    return books


async def _play(
    session: aiohttp.ClientSession,
    sandbox: Sandbox,
    collector: Collector,
    books: Books,
    screen: Screen,
    rng: random.Random,
) -> None:
    """The story: apps push all the while, the sandbox goes away and returns, the backlog grows and drains."""
    requests = load.requests(rng, int(time.time() * 1000))
    books.sent_distinct = load.distinct(requests)
    started = time.monotonic()
    pushing = asyncio.create_task(_push(session, collector.url, requests, books))
    down = returned = False
    try:
        while True:
            elapsed = time.monotonic() - started
            if not down and elapsed >= OUTAGE[0]:
                await sandbox.kill()
                down = True
            if down and not returned and elapsed >= OUTAGE[1]:
                await sandbox.start()
                returned = True
            await _observe(session, collector, sandbox, books)
            if pushing.done():
                await pushing
            is_sent = pushing.done() and returned
            drained = is_sent and books.sandbox_distinct == books.sent_distinct and books.waiting == 0
            state = f"sandbox is {DOWN}" if not sandbox.is_up else "draining" if pushing.done() else "sandbox is up"
            screen.show(elapsed, "done" if drained else state)
            if drained or elapsed > PUSH_SECONDS + DRAIN_DEADLINE_SECONDS:
                return
            await asyncio.sleep(REFRESH_SECONDS)
    finally:
        pushing.cancel()
        await asyncio.wait([pushing])


async def _push(session: aiohttp.ClientSession, collector_url: str, requests: list[list[bytes]], books: Books) -> None:
    started = time.monotonic()
    for number, request in enumerate(requests):
        await asyncio.sleep(max(0.0, started + PUSH_SECONDS * number / len(requests) - time.monotonic()))
        async with session.post(
            f"{collector_url}/v1/events", data=b"\n".join(request), headers=load.HEADERS
        ) as response:
            report = msgspec.json.decode(await response.read(), type=Report)
        books.sent += len(request)
        books.accepted += report.accepted
        books.duplicates += report.duplicates


async def _observe(session: aiohttp.ClientSession, collector: Collector, sandbox: Sandbox, books: Books) -> None:
    samples = await collector.metrics(session)
    books.waiting = int(samples["collector_waiting_events"])
    books.delivered = int(samples["collector_delivered_events_total"])
    if sandbox.is_up:
        stats = await sandbox.stats(session)
        books.sandbox_received, books.sandbox_distinct = stats.received, stats.distinct
