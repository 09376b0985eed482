"""A file system without a free block: new events are refused, delivery goes on and frees room, all is well by itself.

Failures that are proven harmless here: the queue itself fills the disk, another program takes the last block, and the
daemon dies and starts on a disk that is full. That delivery can go on then is the doing of
collector/queue/sqlite/reserve.py.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from collector.queue.sqlite.reserve import RESERVE_BYTES
from collector.sandbox.faults import Fault
from tests.cli.child import run
from tests.e2e.books import Books, Event
from tests.e2e.daemon import Daemon, environment, running
from tests.e2e.oracle import Oracle, new_seed, oracle_in
from tests.system.disk import SmallDisk, small_disk

SIZE_MIB = RESERVE_BYTES // 2**20 + 24
SETTLED_SECONDS = 2.5
"""Longer than the daemon takes to try again whether there is room: who is refused for so long is refused for good."""
RECOVERY_SECONDS = 30.0

DOWN = Fault(status=503)
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def kind() -> str:
    return "tmpfs"


@pytest.fixture
def disk(tmp_path: Path, kind: str) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, kind, SIZE_MIB) as disk:
        yield disk


@pytest.fixture
async def oracle(disk: SmallDisk) -> AsyncIterator[Oracle]:
    async with oracle_in(disk.folder, new_seed()) as oracle:
        yield oracle


class Sender:
    """Posts large events, each once."""

    def __init__(self, oracle: Oracle, session: aiohttp.ClientSession) -> None:
        self._oracle = oracle
        self._session = session
        self._sent = 0

    async def post(self, daemon: Daemon, events: int = 40, note_chars: int = 12_000) -> bool:
        """Whether new events are taken; if not, for lack of room."""
        numbers = range(self._sent, self._sent + events)
        self._sent += events
        batch = [Event("wiki", number, "person@example.com", "seen", "x" * note_chars) for number in numbers]
        refused = self._oracle.books.refused.copy()
        answer = await self._oracle.books.post(self._session, daemon.url, batch, as_lines=False, may_be_refused=True)
        refusals = self._oracle.books.refused - refused
        assert refusals in ({}, {507: 1})
        assert answer["accepted"] == (0 if refusals else events)
        return not refusals

    async def fill(self, daemon: Daemon) -> None:
        """Posts until no event is taken any more."""
        while True:
            while await self.post(daemon):
                pass
            try:
                await daemon.until_readiness_is(200, seconds=SETTLED_SECONDS)
            except TimeoutError:
                return


async def assert_full(daemon: Daemon, sender: Sender) -> None:
    """Not even a small event is taken, and everybody is told why."""
    assert not await sender.post(daemon, events=1, note_chars=1)
    assert "no room on the disk" in await daemon.until_readiness_is(503)


async def assert_recovers(oracle: Oracle, daemon: Daemon, sender: Sender) -> None:
    """New events are taken without anybody's doing."""
    await daemon.until_readiness_is(200, seconds=RECOVERY_SECONDS)
    async with asyncio.timeout(RECOVERY_SECONDS):
        for _ in range(10):
            while not await sender.post(daemon):  # there is little room, and now and then it must be cleared up first
                await daemon.until_readiness_is(200, seconds=RECOVERY_SECONDS)
    await oracle.drained(daemon)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
async def test_a_queue_that_fills_its_disk_delivers_frees_room_and_takes_events_again(
    oracle: Oracle, disk: SmallDisk
) -> None:
    oracle.upstream_has(DOWN)
    async with oracle.running() as daemon, aiohttp.ClientSession() as session:
        sender = Sender(oracle, session)
        await sender.fill(daemon)
        await assert_full(daemon, sender)
        disk.fill()
        await assert_full(daemon, sender)
        oracle.upstream_has()
        await oracle.drained(daemon)
        await assert_recovers(oracle, daemon, sender)
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.output
    disk.clear()
    await oracle.close_books()


async def test_a_daemon_starts_on_a_full_disk_and_delivers_what_it_finds(oracle: Oracle, disk: SmallDisk) -> None:
    oracle.upstream_has(DOWN)
    async with aiohttp.ClientSession() as session:
        sender = Sender(oracle, session)
        async with oracle.running() as daemon:
            for _ in range(15):
                assert await sender.post(daemon)
            disk.fill()
            await sender.fill(daemon)
            await daemon.kill()
        disk.fill()
        async with oracle.running() as daemon:
            await sender.fill(daemon)  # what the log held is in the database now: that may have left some room
            disk.fill()
            await assert_full(daemon, sender)
            oracle.upstream_has()
            await oracle.drained(daemon)
            disk.clear()
            await assert_recovers(oracle, daemon, sender)
            assert await daemon.stop() == 0
    await oracle.close_books()


async def test_a_daemon_that_was_stopped_starts_on_a_disk_that_another_program_has_filled(
    oracle: Oracle, disk: SmallDisk
) -> None:
    """Not even the index of the log is there any more, which every open file needs: the reserve must do for it."""
    oracle.upstream_has(DOWN)
    async with oracle.running(stop__deadline="0s") as daemon, aiohttp.ClientSession() as session:
        assert await Sender(oracle, session).post(daemon)
        assert await daemon.stop() == 0
    disk.fill()
    async with oracle.running() as daemon:
        assert "no room on the disk" in await daemon.until_readiness_is(503)
        oracle.upstream_has()
        await oracle.drained(daemon)
        disk.clear()
        await daemon.until_readiness_is(200)
        assert await daemon.stop() == 0
    await oracle.close_books()


async def twenty_thousand_buried(disk: SmallDisk) -> dict[str, str]:
    """So many dead letters are in the disk's queue, and nothing runs. The environment of commands that look at it."""
    env = environment(disk.folder, NOWHERE)
    async with running(disk.folder, NOWHERE, stop__deadline="0s") as daemon, aiohttp.ClientSession() as session:
        events = [Event("wiki", number, "person@example.com", "seen") for number in range(20_000)]
        await Books().post(session, daemon.url, events)
        assert await daemon.stop() == 0
    assert (await run("queue", "bury", "--app", "wiki", "--reason", "gone", "--yes", env=env)).status == 0
    return env


async def test_dead_letters_can_be_purged_beside_a_daemon_whose_disk_is_full(disk: SmallDisk) -> None:
    env = await twenty_thousand_buried(disk)
    async with running(disk.folder, NOWHERE) as daemon:
        disk.fill()
        ended = await run("queue", "dead", "purge", "--yes", env=env)
        assert (ended.status, ended.out) == (0, "20,000 dead letters are deleted\n"), ended.err
        disk.clear()
        await daemon.until_readiness_is(200)
        assert await daemon.stop() == 0


async def test_dead_letters_are_seen_and_purged_on_a_full_disk_whose_daemon_is_stopped(disk: SmallDisk) -> None:
    env = await twenty_thousand_buried(disk)
    disk.fill()
    for words in ("stats", "check", "dead list", "dead export", "dead show 20000"):
        ended = await run("queue", *words.split(), env=env)
        assert ended.status == 0, ended.err
        disk.fill()
    ended = await run("queue", "dead", "purge", "--yes", env=env)
    assert (ended.status, ended.out) == (0, "20,000 dead letters are deleted\n"), ended.err
    disk.fill()
    async with running(disk.folder, NOWHERE) as daemon:  # what is left of the reserve is enough for that
        await daemon.until_readiness_is(503)
        disk.clear()
        await daemon.until_readiness_is(200)
        assert await daemon.stop() == 0
