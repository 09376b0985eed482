"""The collector: the one place where its parts are put together, started, watched and stopped.

    sources -> intake -> queue -> flusher -> publisher -> upstream

It touches nothing outside itself: no signals, no logging set-up, no loop policy. A task of it that dies takes the
whole agent down, loudly; nothing stays "healthy" while it does nothing.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM, SocketKind, socket
from typing import Any, Self

import msgspec

from collector.bodies import BodyParser
from collector.clock import Clock
from collector.config import Config
from collector.config.kinds import Address
from collector.config.tokens import read_tokens
from collector.contract.operations import SCOPE_WRITE
from collector.errors import CollectorError, Unusable
from collector.flusher import Flusher
from collector.intake import Intake
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.status import Status
from collector.observer import Observer
from collector.queue.sqlite import SqliteQueue
from collector.sources.access import Guard
from collector.sources.datagrams import DatagramSource, bind_udp
from collector.sources.gateway import Gateway
from collector.sources.http import HttpSource
from collector.sources.http1 import Limits
from collector.sources.http_body import BodyLimits
from collector.sources.unix import UnixSocket
from collector.upstream.auth import token_sources
from collector.upstream.passage import Passage
from collector.upstream.publisher import UsageEventsPublisher
from collector.upstream.transport import Transport
from collector.version import __version__

log = get_logger(__name__)


class StopReport(msgspec.Struct, frozen=True):
    """What remains after a stop; it is in the queue and goes on with the next start."""

    waiting_events: int
    held_apps: dict[str, str]


class Collector:
    """A whole collector inside one event loop.

    `async with Collector(config) as collector:` starts it and stops it; `await collector.failed()` in between returns
    only if it cannot go on.
    """

    def __init__(self, config: Config, *, clock: Clock | None = None, config_source: str = "the host program") -> None:
        self._config = config
        self._config_source = config_source
        self._clock = clock or Clock()
        self.metrics = Metrics()
        self._queue = SqliteQueue(
            config.queue.path,
            batch_events=config.flush.batch_events,
            max_bytes=config.queue.max_bytes,
            max_uncommitted_bytes=config.queue.max_uncommitted,
            dedup_retention_seconds=config.queue.dedup_retention,
            clock=self._clock,
            metrics=self.metrics,
        )
        self._intake = Intake(
            self._queue,
            default_app=config.apps.default,
            parser=BodyParser(
                keep_fields=config.events.keep_fields,
                max_events=config.events.max_per_request,
                max_email_chars=config.events.max_email_chars,
                max_event_name_chars=config.events.max_event_name_chars,
                max_kept_bytes=config.events.max_kept_bytes,
            ),
            batch_events=config.flush.batch_events,
            max_event_bytes=config.events.max_event_bytes,
            metrics=self.metrics,
        )
        self._transport = Transport(timeout_seconds=config.upstream.timeout)
        self._tokens = token_sources(self._transport, config.upstream, clock=self._clock, metrics=self.metrics)
        self._flusher = Flusher(
            self._queue,
            UsageEventsPublisher(
                self._transport,
                self._tokens[SCOPE_WRITE],
                base_url=config.upstream.base_url,
                path=config.upstream.usage_events_path,
                clock=self._clock,
                metrics=self.metrics,
            ),
            batch_events=config.flush.batch_events,
            linger_seconds=config.flush.linger,
            max_in_flight=config.flush.max_in_flight,
            backoff_base_seconds=config.flush.backoff_base,
            backoff_max_seconds=config.flush.backoff_max,
            hold_retry_seconds=config.flush.hold_retry,
            clock=self._clock,
            metrics=self.metrics,
        )
        self._guard = Guard(allowed_hosts=config.access.allowed_hosts)
        self._http = HttpSource(
            self._intake,
            listen=config.http.listen,
            connection_limits=Limits(
                head_bytes=config.http.max_header_bytes,
                head_seconds=config.http.header_timeout,
                body_seconds=config.http.body_timeout,
                idle_seconds=config.http.idle_timeout,
                connections=config.http.max_connections,
                requests_in_flight=config.http.max_in_flight,
            ),
            body_limits=BodyLimits(
                sent_bytes=config.http.max_request_bytes,
                decompressed_bytes=config.http.max_decompressed_bytes,
                stream_bytes=config.http.max_stream_bytes,
                held_bytes=config.http.max_held_bytes,
            ),
            guard=self._guard,
            gateway=Gateway(
                config.gateway.operations,
                Passage(self._transport, self._tokens, base_url=config.upstream.base_url),
                self.metrics,
            ),
            metrics=self.metrics,
            why_unready=self.why_unready,
            read_status=self.status,
        )
        self._udp_address: Address | None = None
        self._datagrams: dict[str, DatagramSource] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] | None = None
        self._open = contextlib.AsyncExitStack()
        self._stopping = False
        self._observer = Observer(
            config,
            queue=self._queue,
            flusher=self._flusher,
            http=self._http,
            datagrams=self._datagrams,
            clock=self._clock,
            metrics=self.metrics,
            why_unready=self.why_unready,
        )

    async def start(self) -> None:
        """Everything runs: what is posted from now on is stored, what waits is being delivered.

        Raises QueueInUse, QueueBroken, QueueUnavailable or Unusable, with nothing left running.
        """
        self._failure = asyncio.get_running_loop().create_future()
        async with contextlib.AsyncExitStack() as opened:
            self._queue.take_flusher_role()
            opened.callback(self._queue.release_flusher_role)
            await self._queue.open()
            opened.push_async_callback(self._queue.close)
            await self._transport.open()
            opened.push_async_callback(self._transport.close)
            for tokens in self._tokens.values():
                opened.push_async_callback(tokens.close)
            self._watch("queue.maintain", self._queue.maintain(), opened)
            self._watch("flusher.run", self._flusher.run(), opened)
            self._watch("observer.run", self._observer.run(), opened)
            await self._open_sources(opened)
            self._open = opened.pop_all()
        log.info(
            "agent.started",
            version=__version__,
            config=self._config_source,
            http=str(self.http_address),
            udp=str(self.udp_address) if self.udp_address else None,
            queue=str(self._config.queue.path),
            waiting_events=self._queue.waiting_events,
            oldest_waiting_seconds=round(self._queue.oldest_waiting_seconds(), 3),
            upstream=self._config.upstream.base_url,
        )

    async def stop(self) -> StopReport:
        """Nothing runs any more: what was received is answered and on disk, and delivery went on up to `stop.deadline`.

        Returns what is left for the next start. Stopping again is harmless.
        """
        self._stopping = True
        flushing = self._tasks.get("flusher.run")
        if flushing is None:
            return StopReport(0, {})
        deadline = self._clock.monotonic() + self._config.stop.deadline
        await self._http.stop()
        for source in self._datagrams.values():
            await source.stop()
        self._flusher.drain()
        log.info(
            "agent.draining", waiting_events=self._queue.waiting_events, deadline_seconds=self._config.stop.deadline
        )
        await asyncio.wait([flushing], timeout=max(0.0, deadline - self._clock.monotonic()))
        report = StopReport(self._queue.waiting_events, self._flusher.held)
        await self._open.aclose()
        self._tasks.clear()
        log.info("agent.stopped", waiting_events=report.waiting_events, held_apps=report.held_apps)
        return report

    def reload(self) -> None:
        """Reads `access.tokens_file` again. Raises ConfigInvalid, with the tokens of before still in force."""
        file = self._config.access.tokens_file
        if file is not None:
            tokens = read_tokens(file)
            self._guard.use_tokens(token.reveal() for token in tokens)
            log.info("agent.tokens_loaded", count=len(tokens))

    async def failed(self) -> None:
        """Raises, once a part of the collector has died and it cannot go on; never returns before."""
        assert self._failure is not None, "start comes first"  # noqa: S101
        await asyncio.shield(self._failure)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def http_address(self) -> Address:
        """Where the HTTP source listens."""
        return self._http.address

    @property
    def udp_address(self) -> Address | None:
        """Where the UDP source listens, if there is one."""
        return self._udp_address

    def why_unready(self) -> str | None:
        """Why events should not be sent here now; None where they may."""
        if self._stopping or not self._tasks:
            return "the collector is stopping"
        dead = [name for name, task in self._tasks.items() if task.done()]
        return f"{dead[0]} has died" if dead else None

    async def status(self) -> Status:
        """The status document, at most a second old; while the collector runs."""
        return await self._observer.status()

    async def _open_sources(self, opened: contextlib.AsyncExitStack) -> None:
        config = self._config
        self.reload()
        stream = None if config.unix.stream is None else self._unix_socket(config.unix.stream, SOCK_STREAM, opened)
        try:
            await self._http.start(stream)
        except OSError as error:
            raise Unusable(f"http.listen: cannot listen on {config.http.listen}: {error.strerror}") from error
        opened.push_async_callback(self._http.stop)
        if config.udp.listen is not None:
            try:
                bound = bind_udp(config.udp.listen, receive_buffer_bytes=config.udp.receive_buffer)
            except OSError as error:
                raise Unusable(f"udp.listen: cannot listen on {config.udp.listen}: {error.strerror}") from error
            self._udp_address = Address(*bound.getsockname()[:2])
            self._start_datagrams("udp", bound, opened, holds_senders=False)
        if config.unix.datagram is not None:
            bound = self._unix_socket(config.unix.datagram, SOCK_DGRAM, opened)
            self._start_datagrams("unix", bound, opened, holds_senders=True)

    def _unix_socket(self, path: Path, kind: SocketKind, opened: contextlib.AsyncExitStack) -> socket:
        made = UnixSocket(path, kind, mode=self._config.unix.mode, owner=self._config.unix.owner)
        opened.callback(made.close)
        return made.socket

    def _start_datagrams(
        self, name: str, bound: socket, opened: contextlib.AsyncExitStack, *, holds_senders: bool
    ) -> None:
        source = DatagramSource(
            name, self._intake, holds_senders=holds_senders, clock=self._clock, metrics=self.metrics
        )
        source.start(bound)
        opened.push_async_callback(source.stop)
        self._datagrams[name] = source

    def _watch(self, name: str, work: Coroutine[Any, Any, None], opened: contextlib.AsyncExitStack) -> None:
        """Runs `work` until the stop, and takes its end before then as the end of the agent."""
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._task_ended)

        async def end() -> None:
            task.remove_done_callback(self._task_ended)
            task.cancel()
            await asyncio.wait([task])

        opened.push_async_callback(end)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self._stopping or self._failure is None or self._failure.done():
            return
        log.error("agent.task_died", task=task.get_name(), error=repr(error), exc_info=error)
        failure = Unusable(
            f"{task.get_name()} has died: {error!r}; this is a defect or a broken queue, the log has the details"
        )
        self._failure.set_exception(error if isinstance(error, CollectorError) else failure)
