"""What a daemon says to systemd, and what it is given by it: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

All of it comes by the environment. What is taken from there is removed, so that no child takes it for its own. Where
there is no systemd, nothing happens.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from collector.errors import Unusable

FIRST_DESCRIPTOR = 3
"""Passed sockets have the numbers from here on."""

SEND_SECONDS = 5.0
"""How long a message may wait for systemd to take those before it. One that is still not taken is lost."""


def take_sockets(
    environment: MutableMapping[str, str] = os.environ, *, first: int = FIRST_DESCRIPTOR
) -> list[socket.socket]:
    """The bound sockets that were passed to this process, which no child inherits; none the second time.

    Raises Unusable where something else was passed.
    """
    count, process = environment.pop("LISTEN_FDS", "0"), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()):
        return []
    taken: list[socket.socket] = []
    try:
        for descriptor in range(first, first + int(count)):
            os.set_inheritable(descriptor, False)
            taken.append(socket.socket(fileno=descriptor))
    except (OSError, ValueError) as error:
        raise Unusable(
            f"LISTEN_FDS={count}: descriptor {first + len(taken)} is no socket ({error}); is the .socket unit right?"
        ) from error
    return taken


class Notifier:
    """The way to the service manager that has started this process, if one has."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds(environment)
        """Who does not say `alive` within this time, again and again, is killed; None: nobody waits for it."""

    @property
    def is_heard(self) -> bool:
        """There is somebody who listens."""
        return bool(self._address)

    def ready(self) -> None:
        """The start, or a reload, is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, *, within_seconds: float) -> None:
        """The process ends, and may take so long for it."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(within_seconds * 1e6)}")

    def alive(self, status: str) -> None:
        """All is well, and how it is in one line for `systemctl status`."""
        self._send(f"WATCHDOG=1\nSTATUS={' '.join(status.split())}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_SECONDS)
            sender.sendto(message.encode(), self._address)


def _watchdog_seconds(environment: MutableMapping[str, str]) -> float | None:
    microseconds, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", None)
    if not microseconds.isdecimal() or int(microseconds) == 0 or process not in {None, str(os.getpid())}:
        return None
    return int(microseconds) / 1e6
