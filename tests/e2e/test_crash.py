"""`kill -9` loses nothing that was acknowledged, and what was sent before is still known as a duplicate."""

import asyncio
import random
import sys
from pathlib import Path

import aiohttp

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import Books, Event, random_events, settled
from tests.e2e.daemon import running

ROUNDS = 20
CLIENTS = 4
SEED = random.SystemRandom().randrange(2**32)


async def client(url: str, books: Books, rng: random.Random) -> None:
    """Posts until the daemon dies under it."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                await books.post(session, url, random_events(rng, rng.choice((1, 3, 50, 400))))
            except (aiohttp.ClientError, ConnectionError):
                return


async def test_twenty_kills_at_random_instants_lose_nothing_acknowledged(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    sys.stdout.write(f"seed {SEED}\n")  # pytest shows it where the test fails
    rng = random.Random(SEED)
    books = Books()
    for _ in range(ROUNDS):
        async with running(tmp_path, sandbox.url) as daemon:
            clients = [
                asyncio.create_task(client(daemon.url, books, random.Random(rng.random()))) for _ in range(CLIENTS)
            ]
            # A random instant is what this test is about; nothing else is waited for by the clock.
            await asyncio.sleep(rng.uniform(0.01, 0.4))
        await asyncio.gather(*clients)

    async with running(tmp_path, sandbox.url) as daemon, aiohttp.ClientSession() as session:
        everything = [Event(*key) for key in sorted(books.acknowledged)]
        for start in range(0, len(everything), 1000):
            part = everything[start : start + 1000]
            answer = await books.post(session, daemon.url, part)
            assert answer == {"accepted": 0, "duplicates": len(part), "rejected": 0, "errors": []}
        await settled(state, len(books.acknowledged))
        assert await daemon.stop() == 0
    await books.check(state)
    assert len(books.acknowledged) > ROUNDS


async def test_events_that_wait_survive_a_kill_while_upstream_is_down(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    books = Books()
    events = random_events(random.Random(1), 2_500)
    async with running(tmp_path, "http://127.0.0.1:1") as daemon, aiohttp.ClientSession() as session:
        await books.post(session, daemon.url, events)

    async with running(tmp_path, sandbox.url) as daemon:
        await settled(state, books.accepted)
        assert await daemon.stop() == 0
    await books.check(state)
