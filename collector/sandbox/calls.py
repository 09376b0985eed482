"""One call of an operation, read and judged as the contract's table says; and what it is answered."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from collector.contract.operations import In, Operation
from collector.errors import UNPARSABLE
from collector.sandbox.exact import as_asked

_JSON = "application/json"
_encode = msgspec.json.Encoder().encode


class Call(NamedTuple):
    """What an operation is called with. `parameters` are by the contract's names; those not given are not there."""

    parameters: Mapping[str, Any]
    body: Any = None
    url: str = ""
    """Where the caller found the sandbox: scheme, host and port."""


Handler = Callable[[Call], Awaitable[object]]
"""Carries an operation out and returns what a 200 answers; raises `Refusal`."""


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    @property
    def answer(self) -> web.Response:
        """The one shape of all errors."""
        return answer({"error": self.code, "message": str(self)}, self.status, self.headers)


def bad_request(message: str) -> Refusal:
    """What is asked is not what the contract says."""
    return Refusal(400, "bad_request", message)


def unknown_app(app_id: str, status: int = 400) -> Refusal:
    """There is no such app."""
    return Refusal(status, "unknown_app", f"unknown app {app_id!r}")


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`content` as JSON."""
    return web.Response(body=_encode(content) + b"\n", status=status, headers=headers, content_type=_JSON)


def read_parameters(operation: Operation[Any], request: web.Request) -> dict[str, Any]:
    """The operation's parameters. Raises Refusal with 400 for one that is missing or cannot be read."""
    given: dict[str, Any] = {}
    for parameter in operation.parameters:
        if parameter.place is In.PATH:
            given[parameter.name] = request.match_info[parameter.name]
        elif values := request.query.getall(parameter.name, []):
            given[parameter.name] = values if parameter.type == list[str] else values[-1]
            if parameter.type is datetime:
                given[parameter.name] = _instant(parameter.name, values[-1])
        elif parameter.is_required:
            raise bad_request(f"{parameter.name}: missing")
    return given


def _instant(name: str, value: str) -> datetime:
    try:
        instant: datetime = msgspec.convert(value, as_asked(datetime))
    except msgspec.ValidationError as error:
        # For the export operations the contract has no status but 401, which would send the client for a new token.
        raise bad_request(f"{name}: {error}; expected a date-time as in RFC 3339, 2026-01-15T10:30:00Z") from None
    return instant


def require_json(request: web.Request) -> None:
    """Raises Refusal with 400 where the body is not said to be JSON."""
    if request.content_type != _JSON:
        raise bad_request(f"Content-Type {request.content_type}; expected {_JSON}")


def read_json(operation: Operation[Any], body: bytes) -> Any:
    """The body as the model of the operation's request. Raises Refusal with 400 that names the field."""
    try:
        msgspec.json.decode(body, type=as_asked(operation.request))
        return msgspec.json.decode(body, type=operation.request)
    except UNPARSABLE as error:
        raise bad_request(str(error)) from None
