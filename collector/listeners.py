"""The sources that others send to: HTTP over TCP and a Unix socket, datagrams over both.

Either they are opened as they are configured, or their sockets are passed in, bound already: then these and no others
are served. Passed sockets stay open with whoever passes them; what a stop leaves in them, connections and datagrams,
the next process finds there.

A forked child has none of what was opened here, nor the connections: nobody would answer there, and the port would be
taken beyond its parent's end. Of passed sockets it has what its parent has: to pass them on is a reason to fork.
"""

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, SOCK_STREAM, SocketKind, socket

from collector.clock import Clock
from collector.config import Config
from collector.config.kinds import Address, Secret
from collector.config.model import Access, Http
from collector.config.rules import exposure
from collector.config.tokens import read_tokens
from collector.errors import ConfigInvalid, Unusable, why_unbound
from collector.forks import let_go_in_child, no_fork
from collector.intake import Intake
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.status import Status
from collector.sources.access import Guard
from collector.sources.datagrams import DatagramSource, bind_udp, say_if_short, say_if_small
from collector.sources.gateway import Gateway
from collector.sources.http import HttpSource
from collector.sources.http_application import ConnectionLimits
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
        passed: Sequence[socket] = (),
        clock: Clock,
        metrics: Metrics,
        why_unready: Callable[[], str | None],
        read_status: Callable[[], Awaitable[Status]],
    ) -> None:
        self._config = config
        self._intake = intake
        self._passed = passed
        self._passed_places = [
            ("TCP" if bound.type == SOCK_STREAM else "UDP", Address(*bound.getsockname()[:2]))
            for bound in passed
            if bound.family != AF_UNIX
        ]
        self._clock = clock
        self._metrics = metrics
        self._guard = Guard(allowed_hosts=config.access.allowed_hosts)
        self._opened = contextlib.AsyncExitStack()
        self.datagrams: dict[str, DatagramSource] = {}
        self.udp_address: Address | None = None
        self.http = HttpSource(
            intake,
            listen=config.http.listen,
            connection_limits=_connection_limits(config.http),
            body_limits=_body_limits(config.http),
            guard=self._guard,
            gateway=gateway,
            metrics=metrics,
            why_unready=why_unready,
            read_status=read_status,
        )
        self._descriptors: list[Callable[[], Iterable[int]]] = [self.http.descriptors]  # of what was opened here

    async def open(self) -> None:
        """All listen. Raises Unusable or ConfigInvalid, with none left that does."""
        self._check_doors(self._config.access)
        self._use_tokens(_tokens(self._config))
        let_go_in_child(self)
        async with contextlib.AsyncExitStack() as opened:
            if self._passed:
                await self._open_passed(opened)
            else:
                with no_fork():  # a child would have what is not noted yet
                    await self._open_configured(opened)
            self._opened = opened.pop_all()

    async def close(self) -> None:
        """Nothing is accepted any more, and what was received is answered and on disk. Harmless to repeat."""
        await self._opened.aclose()

    def release(self) -> None:
        """This process, a child, has nothing open any more of what its parent opened; its loop must not run again."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in chain.from_iterable(read() for read in self._descriptors):
            if descriptor != -1:
                os.dup2(nothing, descriptor, inheritable=False)  # the number stays taken, for who may close it yet
        os.close(nothing)

    def reload(self, config: Config) -> None:
        """From now on this holds, but for what is said of the sockets; the tokens' file is read again.

        Raises ConfigInvalid, with everything as before, also where the sockets may not be open under it.
        """
        self._check_doors(config.access)
        self._use_tokens(_tokens(config))
        self._config = config
        self._guard.use_hosts(config.access.allowed_hosts)
        self.http.use_limits(_connection_limits(config.http), _body_limits(config.http))

    def _use_tokens(self, tokens: Sequence[Secret]) -> None:
        self._guard.use_tokens(token.reveal() for token in tokens)
        if tokens:
            log.info("listeners.tokens_loaded", count=len(tokens))

    def _check_doors(self, access: Access) -> None:
        """What a configuration is checked for as it is read, but by where the sockets are in truth."""
        places = [("TCP", self.http.address), ("UDP", self.udp_address), *self._passed_places]
        problems = [
            f"a socket for {protocol} at {reach}"
            for protocol, place in dict.fromkeys(places)
            if place is not None and (reach := exposure(protocol, place, access))
        ]
        if problems:
            raise ConfigInvalid("\n".join(problems))

    async def _open_configured(self, opened: contextlib.AsyncExitStack) -> None:
        config = self._config
        stream = None if config.unix.stream is None else self._unix_socket(config.unix.stream, SOCK_STREAM, opened)
        opened.push_async_callback(self.http.stop)
        try:
            await self.http.start()
        except OSError as error:
            raise Unusable(f"http.listen: cannot listen on {config.http.listen}: {why_unbound(error)}") from error
        if stream is not None:
            await self.http.serve(stream)
        if config.udp.listen is not None:
            try:
                udp = bind_udp(config.udp.listen, receive_buffer_bytes=config.udp.receive_buffer)
            except OSError as error:
                raise Unusable(f"udp.listen: cannot listen on {config.udp.listen}: {why_unbound(error)}") from error
            self._descriptors.append(lambda: [udp.fileno()])
            self._start_datagrams("udp", udp, opened, is_lent=False)
        if config.unix.datagram is not None:
            bound = self._unix_socket(config.unix.datagram, SOCK_DGRAM, opened)
            say_if_short()
            self._start_datagrams("unix", bound, opened, is_lent=False)

    async def _open_passed(self, opened: contextlib.AsyncExitStack) -> None:
        opened.push_async_callback(self.http.stop)
        for bound in self._passed:
            if bound.type == SOCK_STREAM:
                await self.http.serve(bound)
            elif bound.type == SOCK_DGRAM:
                name = "unix" if bound.family == AF_UNIX else "udp"
                if name == "udp":
                    say_if_small(bound, self._config.udp.receive_buffer, "ReceiveBuffer= in the .socket unit")
                self._start_datagrams(name, bound, opened, is_lent=True)
            else:
                raise Unusable(f"a passed socket is neither of streams nor of datagrams: {bound.type.name}")

    def _unix_socket(self, path: Path, kind: SocketKind, opened: contextlib.AsyncExitStack) -> socket:
        made = UnixSocket(path, kind, mode=self._config.unix.mode, owner=self._config.unix.owner)
        self._descriptors.append(made.descriptors)

        def close() -> None:
            with no_fork():
                made.close()

        opened.callback(close)
        return made.socket

    def _start_datagrams(self, name: str, bound: socket, opened: contextlib.AsyncExitStack, *, is_lent: bool) -> None:
        source = DatagramSource(
            name, self._intake, holds_senders=name == "unix", clock=self._clock, metrics=self._metrics
        )
        source.start(bound, is_lent=is_lent)
        opened.push_async_callback(source.stop)
        same = sum(known.partition(" ")[0] == name for known in self.datagrams)
        self.datagrams[f"{name} {same + 1}" if same else name] = source
        if name == "udp":
            self.udp_address = self.udp_address or Address(*bound.getsockname()[:2])


def _tokens(config: Config) -> Sequence[Secret]:
    return () if config.access.tokens_file is None else read_tokens(config.access.tokens_file)


def _connection_limits(http: Http) -> ConnectionLimits:
    return ConnectionLimits(
        head_bytes=http.max_header_bytes,
        head_seconds=http.header_timeout,
        body_seconds=http.body_timeout,
        idle_seconds=http.idle_timeout,
        connections=http.max_connections,
        requests_in_flight=http.max_in_flight,
    )


def _body_limits(http: Http) -> BodyLimits:
    return BodyLimits(
        sent_bytes=http.max_request_bytes,
        decompressed_bytes=http.max_decompressed_bytes,
        stream_bytes=http.max_stream_bytes,
        held_bytes=http.max_held_bytes,
    )
