"""All connections of the HTTP source: who may still come, who is overdue, and how they all end."""

import asyncio
from collections.abc import Iterator
from email.utils import formatdate

from collector.sources.http1 import LINGER_SECONDS, Connection
from collector.sources.http_application import Application, ConnectionLimits
from collector.sources.http_message import Refusal
from collector.sources.known_heads import KnownHeads

ACCEPTED_TURNS = 5
"""Turns of the loop after which a connection that was accepted is known to be there: three in asyncio."""

TICK_SECONDS = 1.0
"""How often deadlines are looked at, while there are connections."""


class Server:
    """All connections of one source, over however many sockets. `connect` is the protocol factory for each."""

    def __init__(self, application: Application, limits: ConnectionLimits) -> None:
        self.application = application
        self.limits = limits
        self.stopping = self.stopped = False
        self.in_flight = 0
        self.date_line = b""
        self.known_heads = KnownHeads(limits.head_bytes)
        self._connections: set[Connection] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def descriptors(self) -> Iterator[int]:
        """Those of the connections."""
        return (connection.descriptor for connection in list(self._connections))

    def connect(self) -> Connection:
        """A protocol for a new connection over the network."""
        return Connection(self, is_local=False)

    def connect_locally(self) -> Connection:
        """A protocol for a new connection over a Unix socket: the file system has let the client through."""
        return Connection(self, is_local=True)

    def opened(self, connection: Connection) -> None:
        """A connection has come."""
        self._connections.add(connection)
        self._empty.clear()
        if self._tick is None:
            self._look()

    def closed(self, connection: Connection) -> None:
        """A connection has gone, and nothing is done for it any more."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def stop(self, grace_seconds: float) -> None:
        """Returns when no connection is open, or some are stuck; listening sockets are to be closed before.

        Requests that are complete are answered. Those that are not, and those of connections that have only just come,
        have `grace_seconds` to become so.
        """
        self.stopping = True
        for _ in range(ACCEPTED_TURNS):
            await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.finish()
        if not await self._is_empty_within(grace_seconds):
            for connection in list(self._connections):
                connection.fail(Refusal(503, "the collector is stopping", "unavailable", {"Retry-After": "1"}))
            await self._is_empty_within(LINGER_SECONDS)
            for connection in list(self._connections):
                connection.abort()
            await self._is_empty_within(grace_seconds)
        self.stopped = True
        if self._tick is not None:
            self._tick.cancel()

    async def _is_empty_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._empty.wait()
        except TimeoutError:
            return False

    def _look(self) -> None:
        """Ends what is overdue; once a second while there are connections."""
        loop = asyncio.get_running_loop()
        self.date_line = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        now = loop.time()
        for connection in [connection for connection in self._connections if connection.deadline <= now]:
            connection.expire()
        self._tick = loop.call_later(TICK_SECONDS, self._look) if self._connections else None
