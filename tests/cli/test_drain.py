"""`collector drain`, as a container's preStop runs it."""

from pathlib import Path

import aiohttp

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.cli.child import run
from tests.e2e.books import Books, Event, settled
from tests.e2e.daemon import Daemon, environment, running

NOWHERE = "http://127.0.0.1:1"


async def post(daemon: Daemon) -> None:
    async with aiohttp.ClientSession() as session:
        await Books().post(
            session, daemon.url, [Event("wiki", number, "a@example.com", "seen") for number in range(20)]
        )


async def test_it_returns_once_all_is_delivered(tmp_path: Path, state: State) -> None:
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    async with running(tmp_path, sandbox.url, flush__linger="1s") as daemon:
        await post(daemon)
        ended = await run("drain", "--url", daemon.url)
        assert (ended.status, ended.out) == (0, f"{daemon.url}: everything is delivered\n")
        await settled(state, 20)
    await sandbox.stop()


async def test_at_its_deadline_it_says_what_still_waits(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        await post(daemon)
        ended = await run("drain", "--url", daemon.url, "--deadline", "10ms")
        assert (ended.status, ended.out) == (75, f"{daemon.url}: 20 events waiting\n")
        ended = await run("drain", "--url", daemon.url, "--deadline", "0s", "--json")
        assert (ended.status, ended.out) == (75, '{"isRunning":true,"waitingEvents":20}\n')


async def test_without_a_collector_it_fails(tmp_path: Path) -> None:
    ended = await run("drain", env=environment(tmp_path, NOWHERE, http__listen="127.0.0.1:1"))
    assert (ended.status, ended.out) == (69, "")
    assert "does not answer" in ended.err


async def test_without_a_collector_json_says_so_too() -> None:
    ended = await run("drain", "--url", NOWHERE, "--json")
    assert (ended.status, ended.err) == (69, "")
    assert ended.out == f'{{"isRunning":false,"said":"{NOWHERE} does not answer: Connection refused"}}\n'
