"""Events in over HTTP, and what the collector says of itself: health, readiness, metrics.

`POST /services/push/v1/customer/apps/{appId}/usage-events` takes what upstream's publishUsageEvents takes, so that a
client of the real API works when it is pointed here; `POST /v1/events` takes events in more shapes and for many apps.
Both answer after the commit is on disk. Every answer to a post, and every error, has the shape of `Report`.
"""

import functools
import math
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from collector.bodies import BodyFormat, Rejection
from collector.config.kinds import Address
from collector.errors import CollectorError, DiskFull, MalformedBody, QueueUnavailable, Retryable, TooLarge
from collector.intake import Intake, Report
from collector.observe.logs import get_logger
from collector.observe.metrics import CONTENT_TYPE, Metrics

log = get_logger(__name__)

SOURCE = "http"
PUSH_PATH = re.compile(r"/services/push/v1/customer/apps/([^/]+)/usage-events")
EVENTS_PATH = "/v1/events"

FORMATS = {
    "application/json": BodyFormat.JSON,
    "application/x-ndjson": BodyFormat.NDJSON,
    "application/ndjson": BodyFormat.NDJSON,
    "application/jsonl": BodyFormat.NDJSON,
}
PUSH_FORMATS = {"application/json": BodyFormat.ENVELOPE}
WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's words for: a gzip header, a zlib header
ENCODINGS = ("identity", *WINDOW_BITS)
JSON_HEADERS = {"Content-Type": "application/json"}

DEFAULT_RETRY_AFTER_SECONDS = 1.0

STOP_GRACE_SECONDS = 2.0
"""How long a stop waits for requests whose body is still on its way."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_encode = msgspec.json.Encoder().encode


class _Refusal(Exception):
    """A request that is not for us, or not in a form we take."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers or {}


class HttpSource:
    """The HTTP server. `start` it in the loop that will serve it; `stop` answers what was received and closes."""

    def __init__(
        self,
        intake: Intake,
        *,
        listen: Address,
        max_request_bytes: int,
        metrics: Metrics,
        why_unready: Callable[[], str | None],
    ) -> None:
        self._intake = intake
        self._listen = listen
        self._max_request_bytes = max_request_bytes
        self._metrics = metrics
        self._why_unready = why_unready
        self._accepted = metrics.events.labels(SOURCE, "accepted")
        self._duplicates = metrics.events.labels(SOURCE, "duplicate")
        self._rejected = metrics.events.labels(SOURCE, "rejected")
        self._routes: dict[str, tuple[str, Handler]] = {
            EVENTS_PATH: ("POST", self._post_events),
            "/healthz": ("GET", self._healthz),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._expose_metrics),
        }
        # aiohttp's server without its application: a router, middlewares and signals cost half as much again as the
        # rest of a one-event request (measured: 70 us beside 105 us).
        self._runner = web.ServerRunner(
            web.Server(self._answer, access_log=None, auto_decompress=False), shutdown_timeout=STOP_GRACE_SECONDS
        )

    async def start(self) -> None:
        """Listens. Raises OSError where the address cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._listen.host, self._listen.port, backlog=1024).start()
        except OSError:
            await self._runner.cleanup()
            raise

    @property
    def address(self) -> Address:
        """Where it listens, with the port that the kernel chose if 0 was asked for."""
        host, port = self._runner.addresses[0][:2]
        return Address(host, port)

    async def stop(self) -> None:
        """Accepts no connection any more, answers the requests that are under way, and closes."""
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request's answer; errors have the one shape, and what nobody foresaw is logged without its content."""
        try:
            return await self._route(request)(request)
        except _Refusal as refusal:
            return self._refuse(refusal.status, str(refusal), "not_understood", refusal.headers)
        except TooLarge as error:
            return self._refuse(413, str(error), "too_large")
        except MalformedBody as error:
            return self._refuse(400, str(error), "malformed")
        except Retryable as error:
            status = 507 if isinstance(error, DiskFull) else 503
            label = "unavailable" if isinstance(error, QueueUnavailable) else "overload"
            return self._refuse(status, str(error), label, _retry_after(error.retry_after_seconds))
        except CollectorError as error:
            log.error("http.request_failed", path=request.path, error=str(error))  # noqa: TRY400 - it says all there is
            return self._refuse(503, str(error), "unavailable", _retry_after(None))
        except ConnectionError:
            raise  # the client has gone; there is nobody to answer
        except Exception:
            log.exception("http.request_crashed", path=request.path)
            return self._refuse(500, "an error of the collector; its log has the details", "crashed")

    def _route(self, request: web.BaseRequest) -> Handler:
        route = self._routes.get(request.path)
        if route is None:
            match = PUSH_PATH.fullmatch(request.rel_url.raw_path)
            if match is None:
                raise _Refusal(404, f"{request.path} is not here; events go to POST {EVENTS_PATH}")
            route = "POST", functools.partial(self._push_usage_events, app_id=unquote(match[1]))
        if request.method != route[0]:
            raise _Refusal(405, f"{request.method} is not for {request.path}; expected {route[0]}", {"Allow": route[0]})
        return route[1]

    async def _post_events(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._take(request, FORMATS, None)

    async def _push_usage_events(self, request: web.BaseRequest, *, app_id: str) -> web.StreamResponse:
        return await self._take(request, PUSH_FORMATS, app_id)

    async def _take(
        self, request: web.BaseRequest, formats: Mapping[str, BodyFormat], app_id: str | None
    ) -> web.StreamResponse:
        headers = request.headers
        content_type = headers.get("Content-Type", "missing")
        body_format = formats.get(content_type.partition(";")[0].strip().lower())
        if body_format is None:
            raise _Refusal(415, f"Content-Type: {content_type}; expected {' or '.join(formats)}")
        encoding = headers.get("Content-Encoding", "identity").lower()
        if encoding not in ENCODINGS:
            raise _Refusal(415, f"Content-Encoding: {encoding}; expected {', '.join(ENCODINGS)} or none")
        report = await self._intake.take(await self._read(request, encoding), body_format, app_id)
        for counter, events in (
            (self._accepted, report.accepted),
            (self._duplicates, report.duplicates),
            (self._rejected, report.rejected),
        ):
            if events:
                counter.inc(events)
        return _response(report, 400 if report.rejected else 200)

    async def _read(self, request: web.BaseRequest, encoding: str) -> bytes:
        """The whole body, decompressed. Raises TooLarge as soon as it is, without unpacking what is over the limit."""
        unpack = zlib.decompressobj(WINDOW_BITS[encoding]) if encoding in WINDOW_BITS else None
        parts: list[bytes] = []
        room = self._max_request_bytes
        while not request.content.at_eof():
            part = await request.content.readany()
            if unpack is not None:
                try:
                    part = unpack.decompress(part, room + 1)
                except zlib.error as error:
                    raise MalformedBody(f"the body is not {encoding}: {error}") from error
            room -= len(part)
            if room < 0:
                raise TooLarge(f"the body is larger than http.max_request_bytes = {self._max_request_bytes} bytes")
            parts.append(part)
        if unpack is not None and not unpack.eof:
            raise MalformedBody(f"the body is not {encoding}: it ends too early")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _healthz(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _response({"status": "ok"}, 200)

    async def _readyz(self, _request: web.BaseRequest) -> web.StreamResponse:
        reason = self._why_unready()
        if reason is None:
            return _response({"status": "ready"}, 200)
        return self._refuse(503, reason, "unready", _retry_after(None))

    async def _expose_metrics(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    def _refuse(self, status: int, reason: str, label: str, headers: Mapping[str, str] = {}) -> web.Response:
        self._metrics.refusals.labels(SOURCE, label).inc()
        return _response(Report(errors=[Rejection(reason)]), status, {**JSON_HEADERS, **headers})


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds or DEFAULT_RETRY_AFTER_SECONDS))}


def _response(content: Any, status: int, headers: Mapping[str, str] = JSON_HEADERS) -> web.Response:
    return web.Response(body=_encode(content), status=status, headers=headers)
