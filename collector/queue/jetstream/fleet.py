"""How many collectors deliver from one stream: each says so once a second, outside the stream."""

import contextlib
import secrets
import time
from typing import TYPE_CHECKING

from collector.queue.jetstream.connection import Connection

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

SILENT_SECONDS = 3.5
"""Whoever was not heard for so long has ended, or has nothing to deliver."""


class Fleet:
    """Who else is there. A limit for all is shared out evenly among those that have something to deliver."""

    def __init__(self, connection: Connection, subject: str) -> None:
        self._connection = connection
        self._subject = subject
        self._name = secrets.token_hex(6)
        self._heard: dict[str, float] = {}
        self._joined: Client | None = None

    async def join(self) -> None:
        """The others are heard from now on, over the connection that there is now. Raises QueueUnavailable."""
        client = self._connection.client
        if client is self._joined:
            return

        async def hear(message: "Msg") -> None:
            self._heard[message.data.decode(errors="replace")] = time.monotonic()

        await client.subscribe(self._subject, cb=hear)
        self._joined = client

    async def announce(self, *, is_busy: bool) -> None:
        """The others hear of this one, where it has something to deliver. Raises QueueUnavailable."""
        await self.join()
        if is_busy:
            await self._connection.client.publish(self._subject, self._name.encode())
        for name, heard in list(self._heard.items()):
            if heard < time.monotonic() - SILENT_SECONDS:
                with contextlib.suppress(KeyError):
                    del self._heard[name]

    def share(self) -> float:
        """This one's part of a limit for all."""
        return 1.0 / len(self._heard.keys() | {self._name})
