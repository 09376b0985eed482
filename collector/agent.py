"""The collector: the one place where its parts are put together, started, watched and stopped.

    sources -> intake -> queue -> flusher -> publisher -> upstream

It touches nothing outside itself: no signals, no logging set-up, no loop policy. A task of it that dies takes the
whole agent down, loudly; nothing stays "healthy" while it does nothing.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Self

import msgspec

from collector.clock import Clock
from collector.config import Config
from collector.config.kinds import Address, Secret
from collector.errors import CollectorError, Unusable
from collector.flusher import Flusher
from collector.intake import Intake
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.queue.sqlite import SqliteQueue
from collector.sources.http import HttpSource
from collector.upstream.auth import TokenSource
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

    def __init__(self, config: Config, *, clock: Clock | None = None) -> None:
        self._config = config
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
            keep_fields=config.events.keep_fields,
            batch_events=config.flush.batch_events,
            metrics=self.metrics,
        )
        self._transport = Transport(timeout_seconds=config.upstream.timeout)
        self._tokens = TokenSource(
            self._transport,
            token_url=config.upstream.token_url,
            client_id=config.upstream.client_id or "",
            client_secret=config.upstream.client_secret or Secret(""),
            scope=config.upstream.scope,
            clock=self._clock,
            metrics=self.metrics,
        )
        self._flusher = Flusher(
            self._queue,
            UsageEventsPublisher(
                self._transport,
                self._tokens,
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
        self._http = HttpSource(
            self._intake,
            listen=config.http.listen,
            max_request_bytes=config.http.max_request_bytes,
            metrics=self.metrics,
            why_unready=self.why_unready,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] | None = None
        self._open = contextlib.AsyncExitStack()
        self._stopping = False
        self._register_gauges()

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
            opened.push_async_callback(self._tokens.close)
            self._watch("queue.maintain", self._queue.maintain(), opened)
            self._watch("flusher.run", self._flusher.run(), opened)
            try:
                await self._http.start()
            except OSError as error:
                raise Unusable(f"http.listen: cannot listen on {self._config.http.listen}: {error.strerror}") from error
            opened.push_async_callback(self._http.stop)
            self._open = opened.pop_all()
        log.info(
            "agent.started",
            version=__version__,
            http=str(self.http_address),
            queue=str(self._config.queue.path),
            waiting_events=self._queue.waiting_events,
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

    def why_unready(self) -> str | None:
        """Why events should not be sent here now; None where they may."""
        if self._stopping or not self._tasks:
            return "the collector is stopping"
        dead = [name for name, task in self._tasks.items() if task.done()]
        return f"{dead[0]} has died" if dead else None

    def _watch(self, name: str, work: Coroutine[Any, Any, None], opened: contextlib.AsyncExitStack) -> None:
        """Runs `work` until the stop, and takes its end before then as the end of the agent."""
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._task_ended)

        async def end() -> None:
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

    def _register_gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("waiting_events", "Events that wait for delivery.", lambda: self._queue.waiting_events)
        gauge(
            "oldest_waiting_seconds",
            "How long the oldest event that is not being delivered has waited.",
            self._queue.oldest_waiting_seconds,
        )
        gauge("in_flight_leases", "Leases that are being delivered.", lambda: self._flusher.in_flight)
        gauge("held_apps", "Apps whose events wait for a person to act.", lambda: len(self._flusher.held))
        gauge(
            "uncommitted_bytes",
            "Bytes of events that wait in memory for their commit.",
            lambda: self._queue.uncommitted_bytes,
        )
