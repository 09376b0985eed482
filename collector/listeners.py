"""The sources that others send to, as they are configured: HTTP over TCP and a Unix socket, datagrams over both."""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM, SocketKind, socket

from collector.clock import Clock
from collector.config import Config
from collector.config.kinds import Address
from collector.config.tokens import read_tokens
from collector.errors import Unusable
from collector.intake import Intake
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.status import Status
from collector.sources.access import Guard
from collector.sources.datagrams import DatagramSource, bind_udp
from collector.sources.gateway import Gateway
from collector.sources.http import HttpSource
from collector.sources.http1 import Limits
from collector.sources.http_body import BodyLimits
from collector.sources.unix import UnixSocket

log = get_logger(__name__)


class Listeners:
    """All of them. `open` and `close` them in the loop that will serve them."""

    def __init__(
        self,
        config: Config,
        intake: Intake,
        gateway: Gateway,
        *,
        clock: Clock,
        metrics: Metrics,
        why_unready: Callable[[], str | None],
        read_status: Callable[[], Awaitable[Status]],
    ) -> None:
        self._config = config
        self._intake = intake
        self._clock = clock
        self._metrics = metrics
        self._guard = Guard(allowed_hosts=config.access.allowed_hosts)
        self._opened = contextlib.AsyncExitStack()
        self.datagrams: dict[str, DatagramSource] = {}
        self.udp_address: Address | None = None
        http = config.http
        self.http = HttpSource(
            intake,
            listen=http.listen,
            connection_limits=Limits(
                head_bytes=http.max_header_bytes,
                head_seconds=http.header_timeout,
                body_seconds=http.body_timeout,
                idle_seconds=http.idle_timeout,
                connections=http.max_connections,
                requests_in_flight=http.max_in_flight,
            ),
            body_limits=BodyLimits(
                sent_bytes=http.max_request_bytes,
                decompressed_bytes=http.max_decompressed_bytes,
                stream_bytes=http.max_stream_bytes,
                held_bytes=http.max_held_bytes,
            ),
            guard=self._guard,
            gateway=gateway,
            metrics=metrics,
            why_unready=why_unready,
            read_status=read_status,
        )

    async def open(self) -> None:
        """All listen. Raises Unusable or ConfigInvalid, with none left that does."""
        config = self._config
        self.reload_tokens()
        async with contextlib.AsyncExitStack() as opened:
            stream = None if config.unix.stream is None else self._unix_socket(config.unix.stream, SOCK_STREAM, opened)
            try:
                await self.http.start(stream)
            except OSError as error:
                raise Unusable(f"http.listen: cannot listen on {config.http.listen}: {error.strerror}") from error
            opened.push_async_callback(self.http.stop)
            if config.udp.listen is not None:
                try:
                    bound = bind_udp(config.udp.listen, receive_buffer_bytes=config.udp.receive_buffer)
                except OSError as error:
                    raise Unusable(f"udp.listen: cannot listen on {config.udp.listen}: {error.strerror}") from error
                self.udp_address = Address(*bound.getsockname()[:2])
                self._start_datagrams("udp", bound, opened, holds_senders=False)
            if config.unix.datagram is not None:
                bound = self._unix_socket(config.unix.datagram, SOCK_DGRAM, opened)
                self._start_datagrams("unix", bound, opened, holds_senders=True)
            self._opened = opened.pop_all()

    async def close(self) -> None:
        """Nothing is accepted any more, and what was received is answered and on disk. Harmless to repeat."""
        await self._opened.aclose()

    def reload_tokens(self) -> None:
        """Reads `access.tokens_file`. Raises ConfigInvalid, with the tokens of before still in force."""
        file = self._config.access.tokens_file
        if file is not None:
            tokens = read_tokens(file)
            self._guard.use_tokens(token.reveal() for token in tokens)
            log.info("listeners.tokens_loaded", count=len(tokens))

    def _unix_socket(self, path: Path, kind: SocketKind, opened: contextlib.AsyncExitStack) -> socket:
        made = UnixSocket(path, kind, mode=self._config.unix.mode, owner=self._config.unix.owner)
        opened.callback(made.close)
        return made.socket

    def _start_datagrams(
        self, name: str, bound: socket, opened: contextlib.AsyncExitStack, *, holds_senders: bool
    ) -> None:
        source = DatagramSource(
            name, self._intake, holds_senders=holds_senders, clock=self._clock, metrics=self._metrics
        )
        source.start(bound)
        opened.push_async_callback(source.stop)
        self.datagrams[name] = source
