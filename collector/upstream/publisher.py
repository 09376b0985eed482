"""Delivers batches of usage events: the flusher's Publishers over the wire and the transport.

One delivers to Productiv, with a token that it fetches; the other to a central collector, in Productiv's place.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from collector.clock import Clock
from collector.config.kinds import Secret, UnixUrl
from collector.contract.operations import PUBLISH_USAGE_EVENTS
from collector.errors import CollectorError, PartlyRejected, Rejected, Retryable
from collector.observe.metrics import Metrics
from collector.upstream.auth import TokenSource
from collector.upstream.central import VERDICT_BYTES, central_name, forward_request, read_report
from collector.upstream.transport import MAX_RESPONSE_BYTES, Transport
from collector.upstream.wire import Request, Response, read_push, usage_events_request


class _Publisher(ABC):
    """What each request took, and what became of each batch, is in the metrics. `_deliver` is how."""

    def __init__(self, transport: Transport, clock: Clock, metrics: Metrics) -> None:
        self._transport = transport
        self._clock = clock
        self._metrics = metrics

    async def publish(self, app_id: str, lines: bytes, events: int) -> float:
        """See `Publisher.publish`. The seconds are those of the attempt that was taken alone."""
        try:
            reasons, seconds = await self._deliver(app_id, lines, events)
        except CollectorError as error:
            self._metrics.deliveries.labels(_outcome(error)).inc()
            raise
        if taken := events - len(reasons):
            self._metrics.deliveries.labels("delivered").inc()
            self._metrics.batch_events.observe(taken)
        else:
            self._metrics.deliveries.labels("rejected").inc()
        if reasons:
            raise PartlyRejected(reasons, seconds=seconds)
        return seconds

    @abstractmethod
    async def _deliver(self, app_id: str, lines: bytes, events: int) -> tuple[Mapping[int, str], float]:
        """Why some of the events are refused for good, by position, and how long that took. Raises CollectorError."""
        ...

    async def _send(self, request: Request, max_response_bytes: int = MAX_RESPONSE_BYTES) -> tuple[Response, float]:
        """The answer and the seconds it took. Raises as `Transport.send` does."""
        started = self._clock.monotonic()
        try:
            response = await self._transport.send(request, max_response_bytes=max_response_bytes)
        except CollectorError:
            self._metrics.observe_upstream(self._clock.monotonic() - started, None)
            raise
        seconds = self._clock.monotonic() - started
        self._metrics.observe_upstream(seconds, response.status)
        return response, seconds


class UsageEventsPublisher(_Publisher):
    """publishUsageEvents. A 401 is tried once more with a new token; a second one is final."""

    def __init__(
        self, transport: Transport, tokens: TokenSource, *, base_url: str, path: str, clock: Clock, metrics: Metrics
    ) -> None:
        super().__init__(transport, clock, metrics)
        self._tokens = tokens
        self._base_url = base_url
        self._path = path

    async def _deliver(self, app_id: str, lines: bytes, _events: int) -> tuple[Mapping[int, str], float]:
        async def attempt(token: str) -> float:
            request = usage_events_request(self._base_url, self._path, app_id=app_id, lines=lines, token=token)
            response, seconds = await self._send(request)
            now_seconds = self._clock.now_ms() / 1000
            read_push(response, PUBLISH_USAGE_EVENTS.id, app_id=app_id, lines=lines, now_seconds=now_seconds)
            return seconds

        return {}, await self._tokens.authorize(attempt)


class CentralPublisher(_Publisher):
    """A central collector's HTTP endpoint: what it has stored, or knew before, is delivered."""

    def __init__(
        self, transport: Transport, *, url: str | UnixUrl, token: Secret | None, clock: Clock, metrics: Metrics
    ) -> None:
        super().__init__(transport, clock, metrics)
        self._url = url
        self._token = token

    async def _deliver(self, app_id: str, lines: bytes, events: int) -> tuple[Mapping[int, str], float]:
        request = forward_request(self._url, app_id=app_id, lines=lines, token=self._token)
        response, seconds = await self._send(request, MAX_RESPONSE_BYTES + events * VERDICT_BYTES)
        now_seconds = self._clock.now_ms() / 1000
        return read_report(response, central_name(self._url), events=events, now_seconds=now_seconds), seconds


def _outcome(error: CollectorError) -> str:
    if isinstance(error, Retryable):
        return "retried"
    return "rejected" if isinstance(error, Rejected) else "held"
