"""The collector: the one place where its parts are put together, started, watched and stopped.

    sources -> intake -> queue -> flusher -> publisher -> upstream

It touches nothing outside itself: no signals, no logging set-up, no loop policy. A task of it that dies takes the
whole agent down, loudly; nothing stays "healthy" while it does nothing.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from socket import socket
from typing import Self

import msgspec

from collector.bodies import BodyParser
from collector.clock import Clock
from collector.config import Config
from collector.config.changes import Changes, changes
from collector.config.kinds import Address, UnixUrl
from collector.config.model import Events, Flush
from collector.contract.operations import SCOPE_WRITE
from collector.election import Delivery, Election
from collector.errors import CollectorError, Unusable
from collector.events import UsageEvent
from collector.flusher import Flusher, Publisher
from collector.intake import Intake, Report
from collector.listeners import Listeners
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.observe.status import Status
from collector.observer import Observer
from collector.pace import Pace
from collector.queue.backend import backend
from collector.queue.limits import Limits
from collector.queue.sqlite.step_thread import StepThread
from collector.queue.sqlite.writer import Writer
from collector.retry_schedule import Delays
from collector.sources.gateway import Gateway
from collector.sources.recorder import Recorded, Recorder, event_of
from collector.supervision import Supervision
from collector.upstream.auth import token_sources, use_settings
from collector.upstream.passage import Passage
from collector.upstream.publisher import CentralPublisher, UsageEventsPublisher
from collector.upstream.transport import Transport
from collector.version import __version__

log = get_logger(__name__)

LAST_LOOK_SECONDS = 1.0
"""How long a stop waits to hear what still waits."""


class StopReport(msgspec.Struct, frozen=True):
    """What remains after a stop; it is in the queue and goes on with the next start."""

    waiting_events: int
    held_apps: dict[str, str]
    lost_events: int = 0
    """Of those that were recorded without waiting for the commit: the queue could not take them in time."""


class Collector:
    """A whole collector inside one event loop.

    `async with Collector(config) as collector:` starts it and stops it; `await collector.failed()` in between returns
    only if it cannot go on. It takes what the program records, and where it `listens`, also what others send to the
    configured sources, or to `sockets` that are bound already. Any number of processes can use one queue, in the way
    that `delivery` says. Time, the way to upstream, the queue's threads and who writes its file can be others than the
    machine's own.
    """

    def __init__(
        self,
        config: Config,
        *,
        listens: bool = False,
        sockets: Sequence[socket] = (),
        delivery: Delivery = Delivery.ELECTED,
        config_source: str = "the host program",
        clock: Clock | None = None,
        transport: Transport | None = None,
        new_thread: Callable[[str], StepThread] = StepThread,
        writer: Writer | None = None,
    ) -> None:
        self._config = config
        self._config_source = config_source
        self._listens = listens
        self._passed_sockets = len(sockets)
        self._process = os.getpid()
        self._clock = clock or Clock()
        self.metrics = Metrics()
        self._queue = backend(config, clock=self._clock, metrics=self.metrics, new_thread=new_thread, writer=writer)
        self._election = Election(self._queue, delivery, clock=self._clock)
        self._intake = Intake(
            self._queue,
            default_app=config.apps.default,
            parser=_parser(config.events),
            batch_events=config.flush.batch_events,
            max_event_bytes=config.events.max_event_bytes,
            metrics=self.metrics,
        )
        self._transport = transport or _transport(config)
        self._tokens = token_sources(self._transport, config.upstream, clock=self._clock, metrics=self.metrics)
        self._flusher = Flusher(
            self._queue,
            self._publisher(),
            batch_events=config.flush.batch_events,
            linger_seconds=config.flush.linger,
            max_in_flight=config.flush.max_in_flight,
            delays=_delays(config.flush),
            pace=Pace(config.flush.max_requests_per_second, self._queue.fleet_share, clock=self._clock),
            clock=self._clock,
            metrics=self.metrics,
        )
        self._recorder = Recorder(
            self._intake, max_waiting_events=config.events.max_recorded, clock=self._clock, metrics=self.metrics
        )
        self._passage = Passage(self._transport, self._tokens, base_url=config.upstream.base_url)
        self._gateway = Gateway(config.gateway.operations, self._passage, self.metrics)
        self._listeners = Listeners(
            config,
            self._intake,
            self._gateway,
            passed=sockets,
            clock=self._clock,
            metrics=self.metrics,
            why_unready=self.why_unready,
            read_status=self.status,
        )
        self._supervision = Supervision()
        self._open = contextlib.AsyncExitStack()
        self._has_begun = self._stopping = False
        self._changing = asyncio.Lock()  # held by a start and by a stop, which may come amid a start
        self._observer = Observer(
            config,
            queue=self._queue,
            flusher=self._flusher,
            http=self._listeners.http,
            datagrams=self._listeners.datagrams,
            clock=self._clock,
            metrics=self.metrics,
            why_unready=self.why_unready,
        )

    async def start(self) -> None:
        """Everything runs: what is posted from now on is stored, what waits is being delivered.

        Raises QueueInUse, QueueBroken, QueueUnavailable or Unusable, with nothing left running. Starts once.
        """
        self._check_process()
        if self._has_begun or self._stopping:
            raise Unusable("this Collector was started or stopped before; make another one")
        self._has_begun = True
        self._supervision.begin()
        async with self._changing, contextlib.AsyncExitStack() as opened:
            opened.callback(self._supervision.tasks.clear)
            opened.callback(self._election.resign)
            self._election.stand()
            await self._queue.open()
            opened.push_async_callback(self._queue.close)
            await self._transport.open()
            opened.push_async_callback(self._transport.close)
            for tokens in self._tokens.values():
                opened.push_async_callback(tokens.close)
            for name, work in (
                ("queue.maintain", self._queue.maintain()),
                ("flusher.run", self._deliver()),
                ("recorder.run", self._recorder.run()),
                ("observer.run", self._observer.run()),
            ):
                self._supervision.watch(name, work, opened)
            if self._listens:
                await self._listeners.open()
                opened.push_async_callback(self._listeners.close)
            self._open = opened.pop_all()
        log.info(
            "agent.started",
            version=__version__,
            config=self._config_source,
            http=_shown(self._listeners.http.address),
            udp=_shown(self.udp_address),
            passed_sockets=self._passed_sockets,
            delivery=self._election.delivery.name.lower(),
            queue=self._queue.place,
            waiting_events=self._queue.waiting_events,
            oldest_waiting_seconds=round(self._queue.oldest_waiting_seconds(), 3),
            upstream=self._config.delivers_to,
        )

    async def stop(self) -> StopReport:
        """Nothing runs any more: what was received is answered and on disk, and delivery went on up to `stop.deadline`.

        Returns what is left for the next start. Waits for a start that is under way. Harmless to repeat, or in a child.
        """
        if self._process != os.getpid():
            return StopReport(0, {})
        self._stopping = True
        async with self._changing:
            try:
                return await self._stop()
            except (Exception, asyncio.CancelledError):  # but no GeneratorExit: then there is no loop to wait in
                await self._open.aclose()
                raise

    async def _stop(self) -> StopReport:
        self._supervision.end()
        flushing = self._supervision.tasks.get("flusher.run")
        if flushing is None:
            return StopReport(0, {})
        is_lost = self._supervision.tasks["queue.maintain"].done()  # nothing can be stored or settled any more
        seconds = 0.0 if is_lost else self._config.stop.deadline
        deadline = self._clock.monotonic() + seconds
        await self._listeners.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._recorder.flush(), seconds)
        self._flusher.drain()
        self._election.withdraw()
        log.info("agent.draining", waiting_events=self._queue.waiting_events, deadline_seconds=seconds)
        await asyncio.wait([flushing], timeout=max(0.0, deadline - self._clock.monotonic()))
        with contextlib.suppress(CollectorError, TimeoutError):  # of other processes' puts not all is known yet
            await asyncio.wait_for(self._queue.refresh(), LAST_LOOK_SECONDS)
        report = StopReport(self._queue.waiting_events, self._flusher.held, self._recorder.waiting_events)
        await self._open.aclose()
        log.info("agent.stopped", waiting_events=report.waiting_events, held_apps=report.held_apps)
        if report.lost_events:
            log.error("agent.events_lost", events=report.lost_events, reason="recorded without waiting, never stored")
        return report

    async def record(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> Recorded:
        """What became of an event of this program, after the commit; stamped now where it has no time.

        Raises Rejected with the reason, Retryable where the queue cannot take it now, TypeError.
        """
        self._check_runs()
        stamped = self._clock.now_ms() if timestamp_ms is None else timestamp_ms
        return await self._recorder.record(event_of(email, event_name, stamped, app_id))

    async def record_many(self, events: Iterable[UsageEvent]) -> Report:
        """What became of the events, after the commit that holds all that were accepted. Raises Retryable."""
        self._check_runs()
        return await self._recorder.record_many(events)

    def record_nowait(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> bool:
        """Whether the event was taken into memory, which holds up to `events.max_recorded`; it is stored soon.

        For the loop's own thread. Until its commit an event dies with the process. Raises TypeError.
        """
        self._check_runs()
        stamped = self._clock.now_ms() if timestamp_ms is None else timestamp_ms
        return self._recorder.offer(event_of(email, event_name, stamped, app_id))

    async def flush(self) -> None:
        """Returns when everything that was recorded without waiting is on disk, or was rejected."""
        await self._recorder.flush()

    def reload(self, config: Config) -> Changes:
        """What of `config` is in force from now on, and what keeps its value until a restart; no connection is dropped.

        The tokens' file is read again. Held apps are tried at once where [upstream] or [forward] has changed. Raises
        ConfigInvalid, with everything as it was.
        """
        found = changes(self._config, config)
        config = found.config
        if self._listens:
            self._listeners.reload(config)
        self._config = config
        flush, upstream = config.flush, config.upstream
        self._intake.use_rules(
            default_app=config.apps.default,
            parser=_parser(config.events),
            max_event_bytes=config.events.max_event_bytes,
        )
        self._recorder.use_limit(config.events.max_recorded)
        self._queue.use_limits(Limits.of(config.queue))
        self._flusher.use_pace(
            linger_seconds=flush.linger,
            max_in_flight=flush.max_in_flight,
            delays=_delays(flush),
            max_requests_per_second=flush.max_requests_per_second,
        )
        self._transport.use_timeout(config.delivery_timeout)
        self._flusher.use_publisher(self._publisher())
        self._passage.use_address(upstream.base_url)
        self._gateway.use_operations(config.gateway.operations)
        use_settings(self._tokens, upstream)
        if any(key.startswith(("upstream.", "forward.")) for key in found.in_force):
            self._flusher.try_held()
        self._observer.use_config(config)
        log.info("agent.reloaded", in_force=list(found.in_force), need_restart=list(found.need_restart))
        return found

    async def round_trip(self) -> str:
        """How it is in one line, after a way through this loop and the queue's writer; never, where either hangs."""
        await self._queue.round_trip()
        return self._observer.summary()

    async def failed(self) -> None:
        """Raises, once a part of the collector has died and it cannot go on; never returns before."""
        await self._supervision.failed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def http_address(self) -> Address:
        """Where the HTTP source listens. Raises Unusable where it does not."""
        if self._listeners.http.address is None:
            raise Unusable("this collector does not listen")
        return self._listeners.http.address

    @property
    def udp_address(self) -> Address | None:
        """Where the UDP source listens, if there is one."""
        return self._listeners.udp_address

    def why_unready(self) -> str | None:
        """Why events should not be sent here now; None where they may."""
        if self._stopping or not self._supervision.tasks:
            return "the collector is stopping"
        if self._supervision.dead is not None:
            return f"{self._supervision.dead} has died"
        return None if self._queue.trouble is None else str(self._queue.trouble)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise Unusable("this Collector belongs to the process that made it; make another one after a fork")

    def _check_runs(self) -> None:
        self._check_process()
        if not self._supervision.tasks:
            raise Unusable("this Collector does not run: start it first")

    async def status(self) -> Status:
        """The status document, at most a second old; while the collector runs."""
        return await self._observer.status()

    async def _deliver(self) -> None:
        """Delivers, from when it falls to this process until the stop."""
        if await self._election.won():
            await self._flusher.run()

    def _publisher(self) -> Publisher:
        """Whatever delivers, as it is configured now: to the central collector if there is one, else to Productiv."""
        forward, upstream = self._config.forward, self._config.upstream
        if forward.url is not None:
            return CentralPublisher(
                self._transport, url=forward.url, token=forward.token, clock=self._clock, metrics=self.metrics
            )
        return UsageEventsPublisher(
            self._transport,
            self._tokens[SCOPE_WRITE],
            base_url=upstream.base_url,
            path=upstream.usage_events_path,
            clock=self._clock,
            metrics=self.metrics,
        )


def _parser(events: Events) -> BodyParser:
    return BodyParser(
        keep_fields=events.keep_fields,
        max_events=events.max_per_request,
        max_email_chars=events.max_email_chars,
        max_event_name_chars=events.max_event_name_chars,
        max_kept_bytes=events.max_kept_bytes,
    )


def _delays(flush: Flush) -> Delays:
    return Delays(flush.backoff_base, flush.backoff_max, flush.hold_retry)


def _transport(config: Config) -> Transport:
    """The way to whom events are delivered to."""
    url = config.forward.url
    return Transport(
        timeout_seconds=config.delivery_timeout, unix_socket=url.path if isinstance(url, UnixUrl) else None
    )


def _shown(address: Address | None) -> str | None:
    return None if address is None else str(address)
