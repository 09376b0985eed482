"""The daemon as a process: how it starts, refuses to start, stops, and what it says meanwhile."""

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.cli.loop import SAME_STOP_SECONDS
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.cli.child import started
from tests.e2e.books import Books, Event, settled
from tests.e2e.daemon import command, environment, running
from tests.patience import PATIENCE_SECONDS

NOWHERE = "http://127.0.0.1:1"


def events(count: int) -> list[Event]:
    return [Event("wiki", number, "person@example.com", "page_viewed") for number in range(count)]


async def run(*words: str, env: dict[str, str]) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command(*words), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_delivers_what_waits_and_ends_with_status_0(
    tmp_path: Path, sandbox: Sandbox, state: State, number: signal.Signals
) -> None:
    books = Books()
    async with running(tmp_path, sandbox.url, flush__linger="1h") as daemon, aiohttp.ClientSession() as session:
        await books.post(session, daemon.url, events(2_300))
        daemon.send(number)
        assert await daemon.ended() == 0
        assert daemon.log("agent.stopped")[0]["waiting_events"] == 0
    assert (await state.stats()).distinct == 2_300
    await books.check(state)


async def test_a_stop_ends_at_its_deadline_and_says_what_remains(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, stop__deadline="300ms") as daemon, aiohttp.ClientSession() as session:
        await Books().post(session, daemon.url, events(7))
        assert await daemon.stop() == 0
        assert daemon.log("agent.stopped")[0]["waiting_events"] == 7


async def test_two_signals_at_once_are_one_wish_to_stop(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, stop__deadline="0s") as daemon:
        daemon.send(signal.SIGTERM)
        daemon.send(signal.SIGINT)
        assert await daemon.ended() == 0
        assert daemon.log("agent.stopped")


async def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    books = Books()
    async with running(tmp_path, NOWHERE, stop__deadline="1h") as daemon, aiohttp.ClientSession() as session:
        await books.post(session, daemon.url, events(7))
        daemon.send(signal.SIGTERM)
        await daemon.logs("agent.draining")
        await asyncio.sleep(2 * SAME_STOP_SECONDS)
        daemon.send(signal.SIGTERM)
        assert await daemon.ended() == 128 + signal.SIGTERM
        assert "Traceback" not in daemon.output
    async with running(tmp_path, sandbox.url) as daemon:
        await settled(state, 7)
    await books.check(state)


async def test_without_who_writes_the_queue_it_ends_at_once_and_the_next_one_goes_on(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    books = Books()
    async with running(tmp_path, NOWHERE, stop__deadline="1h") as daemon, aiohttp.ClientSession() as session:
        await books.post(session, daemon.url, events(7))
        os.kill(daemon.writer, signal.SIGKILL)
        assert await daemon.ended() == 1
        assert "the process that writes the queue has ended by signal 9" in str(
            daemon.log("queue.writer_died")[0]["error"]
        )
        assert daemon.output.splitlines()[-1].startswith("collector: the process that writes the queue has ended")
    async with running(tmp_path, sandbox.url) as daemon:
        await settled(state, 7)
    await books.check(state)


async def test_a_watchdogs_signal_makes_who_writes_the_queue_say_where_it_is(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        os.kill(daemon.writer, signal.SIGABRT)
        assert await daemon.ended() == 1
        assert "Fatal Python error: Aborted" in daemon.output
        assert 'store_process.py", line' in daemon.output


async def test_a_second_daemon_on_one_queue_is_told_who_holds_it(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        status, _, err = await run("run", env=environment(tmp_path, NOWHERE))
        assert status == 1
        assert f"process {daemon._process.pid} is its flusher" in err
        assert "Traceback" not in err


async def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        listen = daemon.url.removeprefix("http://")
        status, _, err = await run("run", env=environment(tmp_path / "other", NOWHERE, http__listen=listen))
        assert status == 1
        assert f"cannot listen on {listen}: Address already in use\n" in err
        assert "Traceback" not in err


async def test_every_problem_of_the_configuration_is_listed_and_the_status_is_78(tmp_path: Path) -> None:
    env = environment(tmp_path, "ftp://nowhere", flush__linger="soon", upstream__client_secret="")
    for words in (("run",), ("check-config",)):
        status, _, err = await run(*words, env=env)
        assert status == 78
        assert {line.partition(":")[0] for line in err.splitlines()[1:]} == {
            "upstream.base_url",
            "upstream.token_url",
            "flush.linger",
            "upstream.client_secret",
        }


async def test_queue_stats_reads_the_queue_of_a_running_daemon(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon, aiohttp.ClientSession() as session:
        await Books().post(session, daemon.url, events(1_200))
        env = environment(tmp_path, NOWHERE)
        status, out, _ = await run("queue", "stats", "--json", env=env)
        stats = msgspec.json.decode(out, type=dict[str, object])
        assert status == 0
        assert stats["waitingEvents"] == stats["rememberedKeys"] == 1_200
        assert stats["deadEvents"] == 0
        status, out, _ = await run("queue", "stats", env=env)
        assert "1,200 events" in out


async def test_queue_stats_without_a_queue_says_what_is_missing(tmp_path: Path) -> None:
    status, _, err = await run("queue", "stats", env=environment(tmp_path, NOWHERE))
    assert status == 1
    assert "queue.sqlite3 does not exist" in err


async def test_the_version_is_said(tmp_path: Path) -> None:
    status, out, _ = await run("--version", env=environment(tmp_path, NOWHERE))
    assert (status, out) == (0, "collector, version 0.1.0\n")


async def test_neither_secret_nor_token_nor_address_reaches_the_log(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    sandbox.set_faults(Fault(status=500, times=2), Fault(operation="getAccessToken", status=500, times=1))
    settings = {"log__level": "debug", "upstream__client_secret": "sandbox"}
    async with running(tmp_path, sandbox.url, **settings) as daemon, aiohttp.ClientSession() as session:
        await Books().post(session, daemon.url, events(3))
        await settled(state, 3)
        assert await daemon.stop() == 0
        assert daemon.log("flusher.delivery_failed")
        assert "person@example.com" not in daemon.output
        assert "Bearer" not in daemon.output
        assert not any(token in daemon.output for token in sandbox._grants.tokens)


async def test_one_line_at_the_start_says_what_runs_and_what_waits(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, stop__deadline="0s") as daemon, aiohttp.ClientSession() as session:
        await Books().post(session, daemon.url, events(7))
        await daemon.stop()
    async with running(tmp_path, NOWHERE) as daemon:
        [said] = daemon.log("agent.started")
    assert said["version"] == "0.1.0"
    assert said["config"] == "defaults and the environment"
    assert said["queue"] == str(tmp_path / "queue")
    assert said["upstream"] == NOWHERE
    assert said["waiting_events"] == 7
    assert isinstance(said["oldest_waiting_seconds"], float)


async def test_the_command_lines_log_level_wins(tmp_path: Path) -> None:
    env = environment(tmp_path, NOWHERE, log__level="error")
    async with started("run", "--log-level", "info", env=env) as process:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert b"agent.started" in await process.stderr.readline()
    status, _, err = await run("run", "--log-level", "loud", env=env)
    assert status == 2
    assert "'debug', 'info', 'warning', 'error'" in err
