"""Real nats-servers with JetStream on loopback, one or a cluster; each is killed at the end."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

SERVER = Path(sys.executable).with_name("nats-server")


def free_ports(count: int) -> list[int]:
    """Ports that nobody used a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Server:
    """One server, which can be killed, stopped in its tracks, and started again on what it had stored."""

    def __init__(
        self, folder: Path, name: str, port: int, cluster: tuple[int, ...] = (), *, own: int = 0, syncs: bool = False
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"nats://127.0.0.1:{port}"
        self._file = folder / f"{name}.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"{name}.log"
        routes = ", ".join(f'"nats://127.0.0.1:{each}"' for each in cluster)
        sync = ", sync_interval: always" if syncs else ""
        text = f'server_name: {name}\nlisten: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder / name}"{sync} }}\n'
        if cluster:
            text += f'cluster {{ name: test, listen: "127.0.0.1:{cluster[own]}", routes: [{routes}] }}\n'
        self._file.write_text(text, encoding="utf-8")

    def configure(self, more: str) -> None:
        """Adds to its configuration, before it starts."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(more)

    def start(self) -> None:
        """It runs; `wait` tells when it listens."""
        assert self._process is None
        self._process = subprocess.Popen([SERVER, "-c", self._file, "-l", self._log])

    def wait(self) -> None:
        """It accepts connections. Raises AssertionError."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < until, self._log.read_text(encoding="utf-8")
                time.sleep(0.01)
            else:
                return

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Memory of its process."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def kill(self) -> None:
        """As a crash would. Harmless to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Nobody hears from it, and its connections stay: as in a network that has lost it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def server(folder: Path, more: str = "") -> Iterator[Server]:
    """One server that listens."""
    [port] = free_ports(1)
    one = Server(folder, "single", port)
    one.configure(more)
    one.start()
    try:
        one.wait()
        yield one
    finally:
        one.kill()


@contextlib.contextmanager
def cluster(folder: Path, *, syncs: bool) -> Iterator[list[Server]]:
    """Three servers that know one another. Where all may die at once, only what each `syncs` is certain to be there."""
    ports = free_ports(6)
    servers = [
        Server(folder, f"n{number}", ports[number], tuple(ports[3:]), own=number, syncs=syncs) for number in range(3)
    ]
    try:
        for each in servers:
            each.start()
        for each in servers:
            each.wait()
        yield servers
    finally:
        for each in servers:
            each.kill()
