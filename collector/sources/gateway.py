"""Other operations of the API for local apps: asked here without credentials, carried out with the collector's.

Only operations that the configuration lists are passed on. A request is held whole, within the limits of every JSON
body; the answer is streamed as it comes. Who may ask is who may send events. Usage events do not come this way: they go
through the queue.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from collector.contract.operations import BY_ID, PUBLISH_USAGE_EVENTS, Operation
from collector.errors import CollectorError, Retryable
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics
from collector.sources.answers import retry_after
from collector.sources.http_message import WITHOUT_CONTENT, Answer, AnswerBroken, Refusal, header_lines, path_name

log = get_logger(__name__)

PASSED_HEADERS = ("content-type", "retry-after")


class Passed(Protocol):
    """What upstream has answered."""

    @property
    def status(self) -> int:
        """As it was."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        ...

    @property
    def content(self) -> AsyncGenerator[bytes]:
        """As it comes."""
        ...


class Passage(Protocol):
    """The way to upstream."""

    async def carry_out(
        self, operation: Operation[Any], names: Mapping[str, str], query: Sequence[tuple[str, str]], body: bytes
    ) -> Passed:
        """What upstream has answered, whatever its status. Raises CollectorError where there is no answer."""
        ...


class Route(NamedTuple):
    """A listed operation, and what a request's path says beside it."""

    operation: Operation[Any]
    names: Mapping[str, str]


class Gateway:
    """Passes the listed operations on."""

    def __init__(self, operations: Iterable[str], passage: Passage, metrics: Metrics) -> None:
        self._passage = passage
        self._metrics = metrics
        self._routes: list[tuple[Operation[Any], re.Pattern[str]]] = []
        self.use_operations(operations)

    def use_operations(self, names: Iterable[str]) -> None:
        """From now on these are passed on."""
        self._routes = [
            (operation, re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(operation.path))))
            for operation in (BY_ID[name] for name in names)
            if operation is not PUBLISH_USAGE_EVENTS
        ]

    def route(self, method: str, path: str) -> Route | None:
        """Which operation a request asks for, if it is listed. Raises Refusal where only its method is wrong."""
        fitting = [
            (operation, match) for operation, pattern in self._routes if (match := pattern.fullmatch(path)) is not None
        ]
        for operation, match in fitting:
            if operation.method == method:
                return Route(operation, {name: path_name(value) for name, value in match.groupdict().items()})
        if fitting:
            allowed = ", ".join(operation.method for operation, _ in fitting)
            raise Refusal(
                405, f"{method} is not for {path[:80]}; expected {allowed}", "not_understood", {"Allow": allowed}
            )
        return None

    async def answer(self, route: Route, query: str, body: bytes) -> Answer:
        """What upstream says.

        Raises Refusal: 502 where upstream says nothing, or refuses the collector itself; 503 where it is known when to
        try again; 400 for a query that is not UTF-8, which would say something else when it is handed on.
        """
        name = route.operation.id
        try:
            pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise Refusal(400, "the query is not UTF-8", "malformed") from error
        try:
            passed = await self._passage.carry_out(route.operation, route.names, pairs, body)
        except CollectorError as error:
            self._metrics.passed_on.labels(name, "none").inc()
            log.warning("gateway.failed", operation=name, error=type(error).__name__)
            if isinstance(error, Retryable) and error.retry_after_seconds is not None:
                raise Refusal(503, str(error), "upstream", retry_after(error.retry_after_seconds)) from error
            raise Refusal(502, str(error), "upstream") from error
        self._metrics.passed_on.labels(name, str(passed.status)).inc()
        log.info("gateway.passed_on", operation=name, status=passed.status)
        headers = {field: _as_sent(passed.headers[field]) for field in PASSED_HEADERS if field in passed.headers}
        if passed.status in WITHOUT_CONTENT:
            with contextlib.suppress(CollectorError):
                async for _ in passed.content:
                    pass
            return Answer(passed.status, b"", header_lines(headers))
        return Answer(passed.status, _as_it_comes(passed.content, name), header_lines(headers))


def _as_sent(value: str) -> str:
    """A field's value with a character for each byte, as `header_lines` takes it; aiohttp has read it as UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


async def _as_it_comes(content: AsyncGenerator[bytes], name: str) -> AsyncGenerator[bytes]:
    try:
        async with contextlib.aclosing(content):
            async for piece in content:
                yield piece
    except CollectorError as error:
        log.warning("gateway.broken_off", operation=name, error=type(error).__name__)
        raise AnswerBroken(str(error)) from error
