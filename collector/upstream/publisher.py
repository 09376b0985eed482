"""Delivers batches of usage events to upstream: the flusher's Publisher over the wire, the token and the transport."""

from collector.clock import Clock
from collector.contract.operations import PUBLISH_USAGE_EVENTS
from collector.errors import CollectorError, Rejected, Retryable
from collector.observe.metrics import Metrics
from collector.upstream.auth import TokenSource
from collector.upstream.transport import Transport
from collector.upstream.wire import read_push, usage_events_request


class UsageEventsPublisher:
    """publishUsageEvents, with a fresh token where the first was refused."""

    def __init__(
        self, transport: Transport, tokens: TokenSource, *, base_url: str, path: str, clock: Clock, metrics: Metrics
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._base_url = base_url
        self._path = path
        self._clock = clock
        self._metrics = metrics

    async def publish(self, app_id: str, lines: bytes, events: int) -> float:
        """See `Publisher.publish`. A 401 is tried once more with a new token; a second one is final.

        The seconds are those of the attempt that was taken alone, without the token's and an earlier one's.
        """
        try:
            seconds = await self._tokens.authorize(lambda token: self._attempt(token, app_id, lines))
        except CollectorError as error:
            self._metrics.deliveries.labels(_outcome(error)).inc()
            raise
        self._metrics.deliveries.labels("delivered").inc()
        self._metrics.batch_events.observe(events)
        return seconds

    async def _attempt(self, token: str, app_id: str, lines: bytes) -> float:
        request = usage_events_request(self._base_url, self._path, app_id=app_id, lines=lines, token=token)
        started = self._clock.monotonic()
        try:
            response = await self._transport.send(request)
        except Retryable:
            self._metrics.observe_upstream(self._clock.monotonic() - started, None)
            raise
        seconds = self._clock.monotonic() - started
        self._metrics.observe_upstream(seconds, response.status)
        read_push(response, PUBLISH_USAGE_EVENTS.id, app_id=app_id, now_seconds=self._clock.now_ms() / 1000)
        return seconds


def _outcome(error: CollectorError) -> str:
    if isinstance(error, Retryable):
        return "retried"
    return "rejected" if isinstance(error, Rejected) else "held"
