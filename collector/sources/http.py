"""Events in over HTTP, and what the collector says of itself: health, readiness, metrics.

`POST /services/push/v1/customer/apps/{appId}/usage-events` takes what upstream's publishUsageEvents takes, so that a
client of the real API works when it is pointed here; `POST /v1/events` takes events in more shapes and for many apps.
Both answer after the commit is on disk. Every answer to a post, and every error, has the shape of `Report`.
"""

import math
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from collector.bodies import BodyFormat, Rejection
from collector.config.kinds import Address
from collector.errors import CollectorError, DiskFull, MalformedBody, QueueUnavailable, Retryable
from collector.intake import Intake, Report
from collector.observe.logs import get_logger
from collector.observe.metrics import CONTENT_TYPE, Metrics

log = get_logger(__name__)

SOURCE = "http"
PUSH_PATH = "/services/push/v1/customer/apps/{appId}/usage-events"
EVENTS_PATH = "/v1/events"

FORMATS = {
    "application/json": BodyFormat.JSON,
    "application/x-ndjson": BodyFormat.NDJSON,
    "application/ndjson": BodyFormat.NDJSON,
    "application/jsonl": BodyFormat.NDJSON,
}
ENCODINGS = {"identity", "gzip", "deflate"}

DEFAULT_RETRY_AFTER_SECONDS = 1.0

STOP_GRACE_SECONDS = 2.0
"""How long a stop waits for requests whose body is still on its way."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_encode = msgspec.json.Encoder().encode


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
        application = web.Application(client_max_size=max_request_bytes, middlewares=[self._answer_errors])
        application.router.add_post(EVENTS_PATH, self._post_events)
        application.router.add_post(PUSH_PATH, self._push_usage_events)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._expose_metrics)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_GRACE_SECONDS)

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

    async def _post_events(self, request: web.Request) -> web.Response:
        return await self._take(request, FORMATS, None)

    async def _push_usage_events(self, request: web.Request) -> web.Response:
        return await self._take(request, {"application/json": BodyFormat.ENVELOPE}, request.match_info["appId"])

    async def _take(self, request: web.Request, formats: dict[str, BodyFormat], app_id: str | None) -> web.Response:
        body_format = formats.get(request.content_type)
        if body_format is None:
            sent = request.headers.get("Content-Type", "missing")
            raise web.HTTPUnsupportedMediaType(reason=f"Content-Type: {sent}; expected {' or '.join(formats)}")
        encoding = request.headers.get("Content-Encoding")
        if encoding is not None and encoding.lower() not in ENCODINGS:
            raise web.HTTPUnsupportedMediaType(
                reason=f"Content-Encoding: {encoding}; expected {', '.join(sorted(ENCODINGS))} or none"
            )
        report = await self._intake.take(await request.read(), body_format, app_id)
        self._accepted.inc(report.accepted)
        self._duplicates.inc(report.duplicates)
        self._rejected.inc(report.rejected)
        return _answer(report, 400 if report.rejected else 200)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._why_unready()
        if reason is None:
            return web.json_response({"status": "ready"})
        return self._refuse(503, reason, "unready", _retry_after(None))

    async def _expose_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error as an answer of the one shape; what nobody foresaw is logged, without the request's content."""
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            reason = f"the body is larger than http.max_request_bytes = {self._max_request_bytes} bytes"
            return self._refuse(413, reason, "too_large")
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return self._refuse(error.status, error.reason, "not_understood", headers)
        except MalformedBody as error:
            return self._refuse(400, str(error), "malformed")
        except Retryable as error:
            status = 507 if isinstance(error, DiskFull) else 503
            label = "unavailable" if isinstance(error, QueueUnavailable) else "overload"
            return self._refuse(status, str(error), label, _retry_after(error.retry_after_seconds))
        except CollectorError as error:
            log.error("http.request_failed", path=request.path, error=str(error))  # noqa: TRY400 - it says all there is
            return self._refuse(503, str(error), "unavailable", _retry_after(None))
        except Exception:
            log.exception("http.request_crashed", path=request.path)
            return self._refuse(500, "an error of the collector; its log has the details", "crashed")

    def _refuse(self, status: int, reason: str, label: str, headers: Mapping[str, str] | None = None) -> web.Response:
        self._metrics.refusals.labels(SOURCE, label).inc()
        return _answer(Report(errors=[Rejection(reason)]), status, headers)


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds or DEFAULT_RETRY_AFTER_SECONDS))}


def _answer(report: Report, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=_encode(report), status=status, content_type="application/json", headers=headers)
