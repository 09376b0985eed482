"""Connections in memory between clients and the agent's real HTTP server, with delays, and cut at any instant."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import Life, VirtualLoop, this_life

WORLD = contextvars.Context()
"""Callbacks with it belong to no life."""


class Refused(ConnectionError):
    """Nobody listens."""


class Cut(ConnectionError):
    """The connection ended before the answer did."""


class Network:
    """One machine's loopback: at most one listener."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._listener: _Listener | None = None
        self._made = 0
        self.links: list[Link] = []
        loop.listen = self._listen

    def connect(self) -> "Link":
        """A connection to whoever listens. Raises Refused."""
        listener = self._listener
        if listener is None or listener.life.is_dead:
            raise Refused
        self._made += 1
        # All delays differ by a hair: no two connections' bytes ever arrive at the same instant.
        link = Link(self._loop, listener.life, 0.0002 + self._made * 1e-8)
        self.links.append(link)
        self._loop.call_later(link.delay_seconds, link.accept, listener.connect, context=listener.life.context)
        return link

    def life_ended(self, life: Life) -> None:
        """Its sockets are closed by the kernel."""
        if self._listener is not None and self._listener.life is life:
            self._listener = None
        for link in self.links:
            if link.life is life:
                link.tell_client(None)
        self.links = [link for link in self.links if link.life is not life]

    def _listen(self, connect: Callable[[], asyncio.Protocol], host: str, port: int) -> "_Listener":
        life = this_life()
        assert life is not None
        assert self._listener is None or self._listener.life.is_dead, "the address is in use"
        self._listener = _Listener(self, life, connect, (host, port))
        return self._listener

    def closed(self, listener: "_Listener") -> None:
        if self._listener is listener:
            self._listener = None


class _Listener:
    def __init__(
        self, network: Network, life: Life, connect: Callable[[], asyncio.Protocol], address: tuple[str, int]
    ) -> None:
        self._network = network
        self._address = address
        self.life = life
        self.connect = connect
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return self._address

    def close(self) -> None:
        self._network.closed(self)


class Link(asyncio.Transport):
    """One connection: the agent's transport, and what the client calls."""

    def __init__(self, loop: VirtualLoop, life: Life, delay_seconds: float) -> None:
        super().__init__()
        self._loop = loop
        self.life = life
        self.delay_seconds = delay_seconds
        self._protocol: asyncio.Protocol | None = None
        self._is_closing = False
        self._is_reading = True
        self._unread: list[bytes | None] = []  # by the agent; None is the end
        self._heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._client_is_gone = False

    # The client's end

    def send(self, data: bytes) -> None:
        """The bytes are on their way."""
        self._loop.call_later(self.delay_seconds, self._arrive, data, context=self.life.context)

    async def hear(self) -> bytes:
        """More of what the agent says. Raises Cut at the end."""
        data = await self._heard.get()
        if data is None:
            self._heard.put_nowait(None)
            raise Cut
        return data

    def hang_up(self) -> None:
        """The client is gone."""
        if not self._client_is_gone:
            self._client_is_gone = True
            self._loop.call_later(self.delay_seconds, self._lose, context=self.life.context)

    def tell_client(self, data: bytes | None) -> None:
        self._loop.call_later(self.delay_seconds, self._heard.put_nowait, data, context=WORLD)

    # The agent's end

    def accept(self, connect: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = connect()
        self._protocol.connection_made(self)

    def _arrive(self, data: bytes) -> None:
        if self._is_closing or self._protocol is None:
            return
        if self._is_reading:
            self._protocol.data_received(data)
        else:
            self._unread.append(data)

    def _lose(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if self._protocol is not None:
                self._protocol.connection_lost(None)

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        unread, self._unread = self._unread, []
        for data in unread:
            self._loop.call_soon(self._arrive, data)

    def write(self, data: Any) -> None:
        if not self._is_closing and not self._client_is_gone:
            self.tell_client(bytes(data))

    def write_eof(self) -> None:
        self.tell_client(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.tell_client(None)
            assert self._protocol is not None
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close
