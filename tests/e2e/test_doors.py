"""The daemon's doors: who gets in, by which way, and what is said of those who do not; and tokens that change."""

import asyncio
import logging
import signal
import socket
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import Books, Event, settled
from tests.e2e.daemon import Daemon, command, environment, running
from tests.embedded import embedded
from tests.patience import PATIENCE_SECONDS

NOWHERE = "http://127.0.0.1:1"
OLD, NEW, OTHER = "old-token-of-some-length", "new-token-of-some-length", "other-token-of-some-length"
BROKEN = "broken token of some length"

EVENT = Event("wiki", 1, "person@example.com", "page_viewed")


async def refused(folder: Path, **settings: str) -> tuple[int, str]:
    """The status of a daemon that ends by itself, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *command("run"), env=environment(folder, NOWHERE, **settings), stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# the web shop's\n{OLD}\n{OTHER}\n", encoding="ascii")
    return file


# -- addresses that others can reach -----------------------------------------------------------------------------------


async def test_a_daemon_that_would_be_open_to_other_machines_does_not_start(tmp_path: Path, tokens: Path) -> None:
    settings = {"http__listen": "0.0.0.0:0", "udp__listen": "0.0.0.0:0"}
    without, with_tokens = await asyncio.gather(
        refused(tmp_path, **settings), refused(tmp_path, **settings, access__tokens_file=str(tokens))
    )
    for (status, said), keys in ((without, ["http.listen", "udp.listen"]), (with_tokens, ["udp.listen"])):
        assert status == 78
        assert [line.partition(":")[0] for line in said.splitlines()[1:]] == keys
        assert said.count("access.allow_unauthenticated = true") == len(keys)
    assert not (tmp_path / "queue").exists()


@pytest.mark.parametrize("way", ["tokens", "said so"])
async def test_a_daemon_may_be_open_to_other_machines_with_tokens_or_where_that_is_said(
    tmp_path: Path, tokens: Path, way: str
) -> None:
    settings = {"http__listen": "0.0.0.0:0"}
    if way == "tokens":
        settings |= {"access__tokens_file": str(tokens)}
    else:
        settings |= {"udp__listen": "0.0.0.0:0", "access__allow_unauthenticated": "true"}
    async with running(tmp_path, NOWHERE, stop__deadline="0s", **settings) as daemon:
        status = await post(daemon, None)
        assert status == (401 if way == "tokens" else 200)
        assert await daemon.stop() == 0


async def post(daemon: Daemon, token: str | None, said: list[str] | None = None) -> int:
    """The status of a post; what was answered is added to `said`."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http://127.0.0.1:{daemon.url.rpartition(':')[2]}/v1/events"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=msgspec.to_builtins(EVENT), headers=headers) as answer,
    ):
        (said if said is not None else []).append(f"{await answer.text()} {answer.headers}")
        return answer.status


# -- tokens that change ------------------------------------------------------------------------------------------------


async def test_sighup_changes_the_tokens_and_a_broken_file_changes_nothing_and_no_token_is_ever_told(
    tmp_path: Path, tokens: Path
) -> None:
    settings = {"access__tokens_file": str(tokens), "log__level": "debug", "stop__deadline": "0s"}
    said: list[str] = []
    async with running(tmp_path, NOWHERE, **settings) as daemon:

        async def statuses() -> dict[str | None, int]:
            return {token: await post(daemon, token, said) for token in (OLD, OTHER, NEW, None, "unknown")}

        assert await statuses() == {OLD: 200, OTHER: 200, NEW: 401, None: 401, "unknown": 401}

        tokens.write_text(f"{NEW}\n{OTHER}\n", encoding="ascii")
        assert (await statuses())[NEW] == 401, "nobody has asked for it yet"
        daemon.send(signal.SIGHUP)
        await daemon.logs("listeners.tokens_loaded", 2)
        changed = {OLD: 401, OTHER: 200, NEW: 200, None: 401, "unknown": 401}
        assert await statuses() == changed

        for times, content in enumerate((f"{OLD}\n{BROKEN}\n", "", None), 1):
            if content is None:
                tokens.unlink()
            else:
                tokens.write_text(content, encoding="ascii")
            daemon.send(signal.SIGHUP)
            await daemon.logs("run.reload_failed", times)
            assert await statuses() == changed
        first, second, third = daemon.log("run.reload_failed")
        assert f"access.tokens_file: {str(tokens)!r}, line 2: not a token" in str(first["error"])
        assert "holds no token" in str(second["error"])
        assert "No such file or directory" in str(third["error"])
        assert first["remedy"] == "the configuration of before stays in force"
        assert {first["level"], second["level"], third["level"]} == {"error"}

        tokens.write_text(f"{OLD}\n", encoding="ascii")
        daemon.send(signal.SIGHUP)
        await daemon.logs("listeners.tokens_loaded", 3)
        assert (await statuses())[OLD] == 200

        async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as answer:
            said.append(await answer.text())
        assert await daemon.stop() == 0
        said.append(daemon.output)
    for secret in (OLD, OTHER, NEW, BROKEN):
        assert not any(secret in text for text in said)
    assert "Traceback" not in daemon.output


async def test_how_many_tokens_there_are_is_said(
    tmp_path: Path, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "collector")
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s", access__tokens_file=str(tokens)):
        [loaded] = [record for record in caplog.records if record.getMessage() == "listeners.tokens_loaded"]
    assert 2 in {value for value in vars(loaded).values() if isinstance(value, int)}


async def test_a_broken_file_of_tokens_keeps_the_daemon_from_starting_and_is_not_told(
    tmp_path: Path, tokens: Path
) -> None:
    tokens.write_text(f"{OLD}\n{BROKEN}\n", encoding="ascii")
    status, said = await refused(tmp_path, access__tokens_file=str(tokens))
    assert status == 78
    assert f"access.tokens_file: {str(tokens)!r}, line 2: not a token" in said
    assert OLD not in said
    assert BROKEN not in said


# -- all ways in -------------------------------------------------------------------------------------------------------


async def test_events_come_in_by_every_door_and_a_kill_leaves_no_door_shut(
    tmp_path: Path, sandbox: Sandbox, state: State, tokens: Path
) -> None:
    stream, datagram = tmp_path / "stream.sock", tmp_path / "datagram.sock"
    settings = {
        "access__tokens_file": str(tokens),
        "udp__listen": "127.0.0.1:0",
        "unix__stream": str(stream),
        "unix__datagram": str(datagram),
        "apps__default": "wiki",
    }
    books = Books()
    numbers = iter(range(100))
    for ends_well in (False, True):
        async with running(tmp_path, sandbox.url, **settings) as daemon:
            by_http, by_stream, by_udp, by_datagram = (
                [Event("wiki", next(numbers), "person@example.com", "page_viewed") for _ in range(10)] for _ in range(4)
            )
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {OTHER}"}) as over_tcp,
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(stream))) as over_unix,
            ):
                await books.post(over_tcp, daemon.url, by_http)
                await books.post(over_unix, "http://collector.example.com", by_stream)
            host, _, port = str((await daemon.logs("agent.started"))["udp"]).rpartition(":")
            for family, address, events in (
                (socket.AF_INET, (host, int(port)), by_udp),
                (socket.AF_UNIX, str(datagram), by_datagram),
            ):
                with socket.socket(family, socket.SOCK_DGRAM) as sender:
                    for event in events:
                        books.send([event])
                        sender.sendto(msgspec.json.encode(event), address)
            await settled(state, len(books.sent))
            if ends_well:
                assert await daemon.stop() == 0
                assert daemon.log("agent.stopped")[0]["waiting_events"] == 0
                assert "Traceback" not in daemon.output
        assert stream.exists() == datagram.exists() == (not ends_well)
    assert (await state.stats()).distinct == len(books.sent) == 80
    await books.check(state)
