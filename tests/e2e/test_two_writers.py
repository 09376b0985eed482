"""A second process puts into the queue of a running daemon, and dies of it again and again; the daemon goes on.

Failures that are proven harmless here: the death of a process that shares the file, at random instants and in the
checkpoint that nearly each of its commits makes; and what it leaves for the next to find beside a process that lives.
"""

import asyncio
import signal
import sys
from pathlib import Path

import msgspec

from tests.e2e.daemon import ROOT
from tests.e2e.oracle import Oracle, new_seed, oracle_in

DEATHS = 4
DIES_AFTER = 40
"""Puts that are acknowledged before the end comes near."""

WRITER = """
import asyncio, sys
from pathlib import Path
import msgspec
from collector.events import event_key
from collector.queue.sqlite import database
from collector.queue.base import Batch
from tests.queue.samples import sqlite_queue

database.AUTO_CHECKPOINT_PAGES = 4

async def main():
    queue = sqlite_queue(Path(sys.argv[1]), batch_events=1000, max_bytes=10**9, max_uncommitted_bytes=10**9)
    await queue.open()
    for text in sys.stdin.buffer:
        events = [msgspec.json.decode(each) for each in msgspec.json.decode(text)]
        batches = []
        for event in events:
            app = event.pop("appId")
            key = event_key(app, event["timestamp"], event["email"], event["eventName"])
            batches.append(Batch(app, key, msgspec.json.encode(event)))
        accepted = sum(verdict.accepted for verdict in await queue.put(batches))
        print(accepted, flush=True)

asyncio.run(main())
"""


async def put_until_death(oracle: Oracle) -> int:
    """A process puts events until it is killed in the middle of one put; how many puts it acknowledged."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, str(oracle.queue)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    puts, last = 0, oracle.rng.randint(1, DIES_AFTER)
    while True:
        events = oracle.new_events(oracle.rng.choice((1, 20, 200)))
        oracle.books.send(events)
        process.stdin.write(msgspec.json.encode([msgspec.json.encode(each).decode() for each in events]) + b"\n")
        await process.stdin.drain()
        if puts == last:
            # When within the put it dies is what this is about; nothing else is waited for by the clock.
            await asyncio.sleep(oracle.rng.uniform(0, 0.01))
            process.send_signal(signal.SIGKILL)
        if not (answer := await process.stdout.readline()):
            break
        puts += 1
        oracle.books.accepted += int(answer)
        oracle.books.acknowledged |= {event.key for event in events}
        oracle.books.remembered |= {event.key for event in events}
    assert await process.wait() == -signal.SIGKILL
    return puts


async def test_a_process_that_dies_in_its_commits_takes_nothing_from_the_daemon_that_shares_its_file(
    tmp_path: Path,
) -> None:
    async with oracle_in(tmp_path, new_seed()) as oracle:
        async with oracle.running() as daemon, oracle.load(daemon):
            puts = [await put_until_death(oracle) for _ in range(DEATHS)]
        assert all(puts)
        async with oracle.running() as daemon:
            assert not daemon.log("queue.file_damaged")
        await oracle.close_books()
