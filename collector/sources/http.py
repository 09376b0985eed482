"""Events in over HTTP, and what the collector says of itself: health, readiness, metrics, status.

`POST /services/push/v1/customer/apps/{appId}/usage-events` takes what upstream's publishUsageEvents takes, so that a
client of the real API works when it is pointed here; `POST /v1/events` takes events in more shapes and for many apps.
Both answer after the commit is on disk. Every answer to a post, and every error, has the shape of `Report`.

A JSON body is held whole until it is stored. NDJSON is stored as it comes, in pieces, however long the body is.
"""

import asyncio
import contextlib
import functools
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from collector.bodies import BodyFormat
from collector.config.kinds import Address
from collector.intake import Intake, Report
from collector.observe.logs import get_logger
from collector.observe.metrics import CONTENT_TYPE, Metrics
from collector.observe.status import Status
from collector.sources.access import FIELDS, Guard
from collector.sources.answers import JSON_TYPE, SOURCE, Answers, retry_after
from collector.sources.encodings import ENCODINGS
from collector.sources.gateway import Gateway, Route
from collector.sources.http_application import ConnectionLimits
from collector.sources.http_body import Body, BodyLimits, Memory
from collector.sources.http_message import Answer, ClientGone, Refusal, Request, header_lines, path_name
from collector.sources.http_server import Server
from collector.sources.known_heads import Answered, Begin
from collector.sources.status_page import StatusPage
from collector.sources.whole_posts import WholePosts

log = get_logger(__name__)

PUSH_PATH = re.compile(r"/services/push/v1/customer/apps/([^/]+)/usage-events")
EVENTS_PATH = "/v1/events"

FORMATS = {
    "application/json": BodyFormat.JSON,
    "application/x-ndjson": BodyFormat.NDJSON,
    "application/ndjson": BodyFormat.NDJSON,
    "application/jsonl": BodyFormat.NDJSON,
}
PUSH_FORMATS = {"application/json": BodyFormat.ENVELOPE}

METRICS_TYPE = header_lines({"Content-Type": CONTENT_TYPE})

BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""

STOP_GRACE_SECONDS = 2.0
"""How long a stop waits for requests whose body is still on its way."""

_FILE_STAYS: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""Whoever made a Unix socket's file takes it away; before 3.13 no loop did."""

Handler = Callable[[Request, Report], Awaitable[Answer]]


class Post(NamedTuple):
    """Events that are posted: the formats that their path takes, and whose they are where it says so."""

    formats: Mapping[str, BodyFormat]
    app_id: str | None

    def format_of(self, headers: Mapping[str, str]) -> BodyFormat:
        """How they are written. Raises Refusal."""
        content_type = headers.get("content-type", "missing")
        body_format = self.formats.get(content_type) or self.formats.get(content_type.partition(";")[0].strip().lower())
        if body_format is None:
            expected = " or ".join(self.formats)
            raise Refusal(415, f"Content-Type: {content_type[:80]}; expected {expected}", "not_understood")
        return body_format


class HttpSource:
    """The HTTP server. `start` it in the loop that will serve it; `stop` answers what was received and closes."""

    def __init__(
        self,
        intake: Intake,
        *,
        listen: Address,
        connection_limits: ConnectionLimits,
        body_limits: BodyLimits,
        guard: Guard,
        gateway: Gateway,
        metrics: Metrics,
        why_unready: Callable[[], str | None],
        read_status: Callable[[], Awaitable[Status]],
    ) -> None:
        self._intake = intake
        self._listen = listen
        self._limits = body_limits
        self._guard = guard
        self._gateway = gateway
        self._metrics = metrics
        self._why_unready = why_unready
        self._status_page = StatusPage(read_status)
        self._answers = Answers(metrics)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/healthz": ("GET", self._healthz),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._expose_metrics),
            "/": ("GET", self._show_status),
            "/status.json": ("GET", self._tell_status),
        }
        self._server = Server(self, connection_limits)
        self._listeners: list[asyncio.Server] = []
        self._listener: asyncio.Server | None = None  # the one whose sockets are its own
        self.address: Address | None = None
        self._memory = Memory(body_limits.held_bytes)
        self._whole_posts = WholePosts(intake, self._memory, self._answers)

    async def start(self) -> None:
        """Listens on its address. Raises OSError where that cannot be had."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self._server.connect, self._listen.host, self._listen.port, backlog=BACKLOG)
        self._listeners.append(listener)
        self._listener = listener
        self.address = Address(*listener.sockets[0].getsockname()[:2])

    async def serve(self, bound: socket.socket) -> None:
        """Listens on a bound socket as well, TCP or Unix, which is closed with the others; a file of it stays."""
        loop = asyncio.get_running_loop()
        if bound.family == socket.AF_UNIX:
            listener = await loop.create_unix_server(
                self._server.connect_locally, sock=bound, backlog=BACKLOG, **_FILE_STAYS
            )
        else:
            listener = await loop.create_server(self._server.connect, sock=bound, backlog=BACKLOG)
            self.address = self.address or Address(*bound.getsockname()[:2])
        self._listeners.append(listener)

    def use_limits(self, connection_limits: ConnectionLimits, body_limits: BodyLimits) -> None:
        """From now on these hold, also for connections that are open."""
        self._server.limits, self._limits = connection_limits, body_limits
        self._server.known_heads.use_limit(connection_limits.head_bytes)
        self._memory.limit_bytes = body_limits.held_bytes

    async def stop(self) -> None:
        """Accepts no connection any more, answers the requests that are under way, and closes."""
        for listener in self._listeners:
            listener.close()
        await self._server.stop(STOP_GRACE_SECONDS)

    def descriptors(self) -> Iterator[int]:
        """Those of all that it has opened by itself: what listens on its address, and the connections."""
        if self._listener is not None:
            yield from (listening.fileno() for listening in self._listener.sockets)
        yield from self._server.descriptors()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return self._server.connections

    @property
    def requests_in_flight(self) -> int:
        """Requests that are being stored or answered, or received where they are not small posts."""
        return self._server.in_flight

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies in memory whose events are not stored yet."""
        return self._memory.held_bytes

    async def answer(self, request: Request) -> Answer | None:
        """Every request's answer; errors have the one shape, and what nobody foresaw is logged without its content."""
        report = Report()  # what has become of the events so far: it is part of the answer also when an error ends it
        try:
            handler = self._route(request)
            if not request.is_local:
                self._guard.check_host(request.headers)
            return await handler(request, report)
        except ClientGone:
            log.info("http.client_gone", **_said_of(report))
            self._metrics.refusals.labels(SOURCE, "client_gone").inc()
            return None
        except Exception as error:  # noqa: BLE001 - none may end the connection
            return self._answers.refused(error, report)

    def begin(self, request: Request) -> Begin | None:
        """What takes whole posts of JSON with the same head as this one."""
        with contextlib.suppress(Refusal):
            post = _post(request.path) if request.method == "POST" else None
            if post is not None and _encoding(request.headers) == "identity":
                body_format = post.format_of(request.headers)
                if body_format is not BodyFormat.NDJSON:
                    fields = {name: request.headers[name] for name in FIELDS if name in request.headers}
                    return functools.partial(self._begin, fields, body_format, post.app_id)
        return None

    def _begin(
        self,
        headers: Mapping[str, str],
        body_format: BodyFormat,
        app_id: str | None,
        body: bytes,
        is_local: bool,
        answered: Answered,
    ) -> None:
        """The same as `answer`, for a body that is there, without a task."""
        try:
            if not is_local:
                self._guard.check_host(headers)
                self._guard.check_sender(headers)
            self._limits.check_whole(len(body))
            self._whole_posts.add(body, body_format, app_id, answered)
        except Exception as error:  # noqa: BLE001 - none may end the connection
            answered(self._answers.refused(error))

    def is_look(self, request: Request) -> bool:
        """It asks how the collector is, and brings nothing."""
        return request.method in {"GET", "HEAD"} and request.path in self._routes

    def refuse(self, refusal: Refusal) -> Answer:
        """The answer to what is no proper request."""
        return self._answers.refused(refusal)

    def _route(self, request: Request) -> Handler:
        path = request.path
        route = self._routes.get(path)
        if route is None and (post := _post(path)) is not None:
            route = "POST", functools.partial(self._take, post)
        if route is None and (passed := self._gateway.route(request.method, path)) is not None:
            return functools.partial(self._pass_on, passed)
        if route is None:
            raise Refusal(404, f"{path[:80]} is not here; events go to POST {EVENTS_PATH}", "not_understood")
        method, handler = route
        if request.method != method and not (request.method == "HEAD" and method == "GET"):
            raise Refusal(
                405, f"{request.method} is not for {path[:80]}; expected {method}", "not_understood", {"Allow": method}
            )
        return handler

    async def _pass_on(self, route: Route, request: Request, _report: Report) -> Answer:
        if not request.is_local:
            self._guard.check_sender(request.headers)
        body = self._body(request)
        try:
            return await self._gateway.answer(route, request.target.partition("?")[2], await body.whole())
        finally:
            body.release()

    async def _take(self, post: Post, request: Request, report: Report) -> Answer:
        started = time.perf_counter()
        if not request.is_local:
            self._guard.check_sender(request.headers)
        body_format = post.format_of(request.headers)
        body = self._body(request)
        try:
            if body_format is BodyFormat.NDJSON:
                await self._intake.take_lines(body.pieces(), post.app_id, report)
            else:
                await self._intake.take(await body.whole(), body_format, post.app_id, report)
        except BaseException:
            self._answers.count(report)
            raise
        finally:
            body.release()
        return self._answers.taken(report, started)

    def _body(self, request: Request) -> Body:
        return Body(request, _encoding(request.headers), self._limits, self._memory)

    async def _healthz(self, _request: Request, _report: Report) -> Answer:
        return Answer(200, b'{"status":"ok"}\n', JSON_TYPE)

    async def _readyz(self, _request: Request, _report: Report) -> Answer:
        reason = self._why_unready()
        if reason is not None:
            raise Refusal(503, reason, "unready", retry_after(None))
        return Answer(200, b'{"status":"ready"}\n', JSON_TYPE)

    async def _expose_metrics(self, _request: Request, _report: Report) -> Answer:
        return Answer(200, self._metrics.exposition(), METRICS_TYPE)

    async def _show_status(self, request: Request, _report: Report) -> Answer:
        if not request.is_local:
            self._guard.check_viewer(request.headers)
        return self._status_page.page(request)

    async def _tell_status(self, request: Request, _report: Report) -> Answer:
        if not request.is_local:
            self._guard.check_viewer(request.headers)
        return await self._status_page.document()


def _post(path: str) -> Post | None:
    """What a post to this path brings. Raises Refusal for an app that cannot be."""
    if path == EVENTS_PATH:
        return Post(FORMATS, None)
    match = PUSH_PATH.fullmatch(path)
    return Post(PUSH_FORMATS, path_name(match[1])) if match is not None else None


def _encoding(headers: Mapping[str, str]) -> str:
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ENCODINGS:
        expected = ", ".join(ENCODINGS)
        raise Refusal(415, f"Content-Encoding: {encoding[:80]}; expected {expected} or none", "not_understood")
    return encoding


def _said_of(report: Report) -> dict[str, int]:
    return {"accepted": report.accepted, "duplicates": report.duplicates, "rejected": report.rejected}
