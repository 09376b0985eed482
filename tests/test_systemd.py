"""What is said to systemd, and what is taken from it, over real sockets and in real processes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import Unusable
from collector.systemd import Notifier, take_sockets
from tests.patience import PATIENCE_SECONDS

HERE = str(os.getpid())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENCE_SECONDS)
        yield listening


def heard(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_each_message_says_what_it_is_about(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "PATH": "/bin"}
    notifier = Notifier(environment)
    assert notifier.is_heard
    assert environment == {"PATH": "/bin"}, "no child speaks for us"
    notifier.ready()
    assert heard(manager) == {"READY": "1"}
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    said = heard(manager)
    assert said["RELOADING"] == "1"
    assert before <= int(said["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.alive("3 events wait;\nupstream = down")
    assert heard(manager) == {"WATCHDOG": "1", "STATUS": "3 events wait; upstream = down"}
    notifier.stopping(within_seconds=30.5)
    assert heard(manager) == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "30500000"}


def test_a_manager_may_have_an_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # Linux chooses one
        manager.settimeout(PATIENCE_SECONDS)
        Notifier({"NOTIFY_SOCKET": "@" + manager.getsockname()[1:].decode()}).ready()
        assert heard(manager) == {"READY": "1"}


@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(address: str | None) -> None:
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})
    assert notifier.is_heard is bool(address)
    notifier.ready()
    notifier.reloading()
    notifier.alive("well")
    notifier.stopping(within_seconds=1)


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": HERE}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": HERE}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_waits_for_this_process_alone(variables: dict[str, str], seconds: float | None) -> None:
    assert Notifier(variables).watchdog_seconds == seconds
    assert variables == {}


@pytest.mark.parametrize("variables", [{}, {"LISTEN_FDS": "2", "LISTEN_PID": "1"}, {"LISTEN_FDS": "2"}])
def test_sockets_that_were_passed_to_no_one_or_to_another_process_are_not_touched(variables: dict[str, str]) -> None:
    assert take_sockets(variables) == []
    assert variables == {}


TAKER = """
import os, subprocess, sys
from collector.systemd import take_sockets
for taken in take_sockets():
    print(taken.family.name, taken.type.name, taken.getsockname(), os.get_inheritable(taken.fileno()))
print(take_sockets(), [name for name in os.environ if name.startswith("LISTEN_")])
"""


def test_passed_sockets_are_taken_over_once_and_inherited_by_no_child(tmp_path: Path) -> None:
    path = str(tmp_path / "stream")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        passed = [tcp.fileno(), udp.fileno(), unix.fileno()]
        moves = " ".join(f"{number}<&{descriptor}" for number, descriptor in enumerate(passed, 3))
        script = f'exec {moves}; LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=a:b:c exec "$0" -c "$1"'
        done = subprocess.run(
            ["/bin/bash", "-c", script, sys.executable, TAKER],
            pass_fds=passed,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == [
            f"AF_INET SOCK_STREAM {tcp.getsockname()} False",
            f"AF_INET SOCK_DGRAM {udp.getsockname()} False",
            f"AF_UNIX SOCK_STREAM {path} False",
            "[] []",
        ]


def test_what_is_passed_and_no_socket_is_refused_by_its_number(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(Unusable, match=f"LISTEN_FDS=1: descriptor {file.fileno()} is no socket"),
    ):
        take_sockets({"LISTEN_FDS": "1", "LISTEN_PID": HERE}, first=file.fileno())
    with pytest.raises(Unusable, match="LISTEN_FDS=many"):
        take_sockets({"LISTEN_FDS": "many", "LISTEN_PID": HERE})
