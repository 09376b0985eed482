"""A disk that refuses writes or syncs while the daemon runs: what is refused is said, and nothing rests on what failed.

Failures that are proven harmless here: EIO, a file system that turned read-only, and no room, on each write; EIO on
each sync; the death of the process meanwhile; permissions that are lost.

What SQLite does after a failed sync of its log: the commit is undone for everybody who reads; its frames stay in the
log's file, where the next commit writes over them. If the process dies before that, the next start may find them whole
and take the commit for good: events that were refused, with 503, are then there. That is allowed, since their sender
must send them again; the converse never happens.
"""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.oracle import Oracle, new_seed, oracle_in
from tests.system.conftest import program
from tests.system.disk import FailingDisk

FAILURES = [
    pytest.param("write", errno.EIO, 503, id="write errors"),
    pytest.param("write", errno.EROFS, 503, id="read-only"),
    pytest.param("write", errno.ENOSPC, 507, id="full"),
    pytest.param("sync", errno.EIO, 503, id="sync errors"),
]


@pytest.fixture
async def oracle(tmp_path: Path) -> AsyncIterator[Oracle]:
    async with oracle_in(tmp_path, new_seed()) as oracle:
        yield oracle


@pytest.fixture
def disk(tmp_path: Path, oracle: Oracle) -> FailingDisk:
    return FailingDisk(tmp_path, oracle.queue, program("cc"))


@asynccontextmanager
async def under_load(oracle: Oracle, disk: FailingDisk) -> AsyncIterator[Daemon]:
    """A daemon on the disk, with clients that go on whatever they are answered."""
    async with oracle.running(None, disk.variables) as daemon, oracle.load(daemon, may_be_refused=True):
        await oracle.until_acknowledged(500)
        yield daemon


async def assert_all_is_refused(oracle: Oracle, daemon: Daemon, status: int) -> None:
    """New events are refused with this status, whoever sends them. What is on disk already is acknowledged again."""
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            answer = await oracle.books.post(session, daemon.url, oracle.new_events(20), may_be_refused=True)
            assert answer["accepted"] == answer["duplicates"] == 0
    assert oracle.books.refused.keys() == {status}
    assert (await daemon.readiness())[0] == 503
    assert (await daemon.metrics())["collector_queue_unavailable"] == 1


@pytest.mark.parametrize(("call", "number", "status"), FAILURES)
async def test_a_disk_that_fails_stops_acknowledgements_and_nothing_else_and_all_is_well_once_it_does_not(
    oracle: Oracle, disk: FailingDisk, call: str, number: int, status: int
) -> None:
    async with under_load(oracle, disk) as daemon:
        disk.fail(call, number)
        said = await daemon.until_readiness_is(503)
        assert ("no room" in said) is (status == 507)
        await assert_all_is_refused(oracle, daemon, status)
        disk.heal()
        await daemon.until_readiness_is(200)
        await oracle.until_acknowledged(500)
        await daemon.logs("queue.available_again")
        assert len(daemon.log("queue.unavailable")) == len(daemon.log("queue.available_again")) == 1
    await oracle.close_books()


@pytest.mark.parametrize(("call", "number", "status"), FAILURES)
async def test_a_daemon_that_dies_while_its_disk_fails_has_acknowledged_nothing_that_is_lost(
    oracle: Oracle, disk: FailingDisk, call: str, number: int, status: int
) -> None:
    async with under_load(oracle, disk) as daemon:
        disk.fail(call, number)
        await daemon.until_readiness_is(503)
        await assert_all_is_refused(oracle, daemon, status)
        await daemon.kill()
    disk.heal()
    await oracle.close_books()


def without_override() -> list[str]:
    """A command that runs another which the permissions of files bind, as they do not bind root."""
    if os.geteuid() != 0:
        return []
    capabilities = "-dac_override,-dac_read_search"
    return [program("setpriv"), f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]


async def test_permissions_that_are_lost_are_said_and_stop_nothing_that_is_open_already(oracle: Oracle) -> None:
    async with oracle.running(None, None, without_override()) as daemon, oracle.load(daemon):
        await oracle.until_acknowledged(500)
        oracle.queue.chmod(0)
        try:
            said = await daemon.logs("queue.maintenance_failed")
            assert "Permission denied" in str(said["error"])
            await oracle.until_acknowledged(500)
            assert (await daemon.readiness())[0] == 200
        finally:
            oracle.queue.chmod(0o750)
    await oracle.close_books()
