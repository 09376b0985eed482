"""The daemon as a service: what its manager hears, what SIGHUP does, and what a process of each role needs."""

import asyncio
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.cli import child
from tests.e2e.books import Books, Event, settled
from tests.e2e.daemon import Daemon, NotStartedError, environment, running
from tests.patience import PATIENCE_SECONDS

NOWHERE = "http://127.0.0.1:1"


class Manager:
    """What a service manager hears of a daemon, message by message."""

    def __init__(self, file: Path, watchdog_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(file))
        self.variables = {"NOTIFY_SOCKET": str(file), "WATCHDOG_USEC": str(round(watchdog_seconds * 1e6))}

    async def hears(self, name: str) -> dict[str, str]:
        """The next message of this kind; signs of life in between are passed over."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                message = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
                said = dict(line.split("=", 1) for line in message.decode().splitlines())
                if name in said:
                    return said
                assert "WATCHDOG" in said, said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify", watchdog_seconds=0.3)
    yield manager
    manager.close()


def events(first: int, count: int) -> list[Event]:
    return [Event("wiki", number, "person@example.com", "seen") for number in range(first, first + count)]


async def test_its_manager_hears_of_the_start_the_signs_of_life_a_reload_and_the_end(
    tmp_path: Path, manager: Manager, sandbox: Sandbox, state: State
) -> None:
    async with running(tmp_path, sandbox.url, None, manager.variables, stop__deadline="7s") as daemon:
        assert await manager.hears("READY") == {"READY": "1"}
        async with aiohttp.ClientSession() as session:
            await Books().post(session, daemon.url, events(0, 3))
        assert (await manager.hears("WATCHDOG"))["STATUS"].startswith("events waiting: ")
        await settled(state, 3)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "last delivery" not in (await manager.hears("WATCHDOG"))["STATUS"]:
                pass
        daemon.send(signal.SIGHUP)
        assert "MONOTONIC_USEC" in await manager.hears("RELOADING")
        await manager.hears("READY")
        daemon.send(signal.SIGTERM)
        assert (await manager.hears("STOPPING"))["EXTEND_TIMEOUT_USEC"] == "27000000"
        assert await daemon.ended() == 0


async def test_a_failed_upstream_is_in_the_status(tmp_path: Path, manager: Manager) -> None:
    async with running(tmp_path, NOWHERE, None, manager.variables, stop__deadline="0s") as daemon:
        await manager.hears("READY")
        async with aiohttp.ClientSession() as session:
            await Books().post(session, daemon.url, events(0, 3))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "upstream fails for" not in (await manager.hears("WATCHDOG"))["STATUS"]:
                pass


async def test_sighup_reads_all_of_the_configuration_again_and_refuses_what_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("", encoding="utf-8")
    async with (
        running(tmp_path, NOWHERE, None, {"COLLECTOR_CONFIG": str(file)}, stop__deadline="0s") as daemon,
        aiohttp.ClientSession() as session,
    ):

        async def status() -> int:
            event = {"timestamp": 1, "email": "person@example.com", "eventName": "seen"}
            async with session.post(f"{daemon.url}/v1/events", json=event) as answer:
                return answer.status

        assert await status() == 400
        file.write_text('[apps]\ndefault = "wiki"\n[log]\nlevel = "debug"\n[udp]\nlisten = "127.0.0.1:0"\n')
        daemon.send(signal.SIGHUP)
        reloaded = await daemon.logs("agent.reloaded")
        assert (reloaded["in_force"], reloaded["need_restart"]) == (["apps.default", "log.level"], ["udp.listen"])
        assert await status() == 200
        assert (await daemon.logs("flusher.delivery_failed"))["level"] == "debug"

        file.write_text('[apps]\ndefault = "crm"\n[http]\nmax_in_flight = 0\nidle_timeuot = "1s"\n')
        daemon.send(signal.SIGHUP)
        refused = await daemon.logs("run.reload_failed")
        assert "http.max_in_flight: 0; allowed" in str(refused["error"])
        assert "http.idle_timeuot: unknown; did you mean http.idle_timeout?" in str(refused["error"])
        file.write_text("[apps\n", encoding="utf-8")
        daemon.send(signal.SIGHUP)
        assert "is not TOML" in str((await daemon.logs("run.reload_failed", 2))["error"])
        assert await status() == 200, "the app of before"

        file.write_text("", encoding="utf-8")
        daemon.send(signal.SIGHUP)
        assert (await daemon.logs("agent.reloaded", 2))["in_force"] == ["apps.default", "log.level"]
        assert await status() == 400


async def test_what_listens_and_what_delivers_can_be_two_processes(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    ingest, flush = {"COLLECTOR_ROLE": "ingest"}, {"COLLECTOR_ROLE": "flush"}
    books = Books()
    secretless = {"upstream__client_id": "unused", "upstream__client_secret": "unused"}
    async with running(tmp_path, NOWHERE, None, ingest, **secretless) as listens, aiohttp.ClientSession() as session:
        await books.post(session, listens.url, events(0, 10))
        async with running(tmp_path, sandbox.url, None, flush) as delivers:
            assert delivers.log("agent.started")[0]["http"] is None
            await settled(state, 10)
            await books.post(session, listens.url, events(5, 20))
            await settled(state, 25)
            with pytest.raises(NotStartedError, match="is in use"):
                await Daemon.start(tmp_path, sandbox.url, None, flush)
            assert await delivers.stop() == 0
        await books.post(session, listens.url, events(100, 5))
        assert await listens.stop() == 0
    async with running(tmp_path, sandbox.url) as both:
        await settled(state, 30)
        assert await both.stop() == 0
    await books.check(state)


@pytest.mark.parametrize(
    ("words", "status"),
    [((), 78), (("--role", "flush"), 78), (("--role", "ingest"), 0), (("--without-credentials",), 0)],
)
async def test_who_does_not_deliver_is_asked_for_no_credentials(
    tmp_path: Path, words: tuple[str, ...], status: int
) -> None:
    ended = await child.run("check-config", *words, env=without_credentials(tmp_path))
    assert ended.status == status, ended.err
    assert ("upstream.client_id: missing" in ended.err) is (status == 78)


def without_credentials(folder: Path) -> Mapping[str, str]:
    return {
        name: value
        for name, value in environment(folder, NOWHERE).items()
        if not name.startswith("COLLECTOR_UPSTREAM__CLIENT_")
    }
