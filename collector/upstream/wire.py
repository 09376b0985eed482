"""What goes over the wire and what the answers mean, without any I/O.

The contract declares 200, 400, 401 and 404; what all others mean is our policy: `raise_for_unexpected`.
Nothing here holds a connection, a clock or a token.
"""

import codecs
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, cast
from urllib.parse import quote, urlencode

import msgspec

from collector.config.kinds import is_sendable
from collector.contract.models import AccessToken
from collector.contract.operations import PUBLISH_USAGE_EVENTS, Answer, Operation
from collector.errors import (
    UNPARSABLE,
    AppUnusable,
    CredentialsRefused,
    MalformedAnswer,
    NotDone,
    Rejected,
    Retryable,
    TooLarge,
    Unanswered,
    Unusable,
)
from collector.version import __version__

USER_AGENT = f"usage-collector/{__version__}"
SAID_CHARS = 200
"""How much of upstream's own words goes into an error."""

MAX_RETRY_AFTER_SECONDS = 3600.0
"""A longer Retry-After is taken as this: a wrong clock upstream must not stop delivery for a year."""

UNKNOWN_APP = (b"unknown app", b"unknown_app", b"app not found", b"application not found", b"invalid app")
"""The contract states no error body; these are the words that such bodies use. Where they are missing, the flusher
still notices that no event at all gets through."""

NOTHING: Mapping[str, str] = MappingProxyType({})


class Request(msgspec.Struct, frozen=True):
    """One HTTP request. Its repr leaves out headers and body: they hold tokens and addresses of people."""

    name: str
    """What messages call it."""
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | Path
    """Bytes, or a file that is read while it is sent."""
    has_secret_url: bool = False

    def __repr__(self) -> str:
        size = f"{len(self.body)} bytes" if isinstance(self.body, bytes) else str(self.body)
        return f"Request({self.name}, {self.method} {'***' if self.has_secret_url else self.url}, {size})"


class Response(msgspec.Struct, frozen=True):
    """One HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def token_request(token_url: str, *, client_id: str, client_secret: str, scope: str) -> Request:
    """getAccessToken: client credentials, form-encoded (RFC 6749 section 4.4.2)."""
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret, "scope": scope}
    return Request(
        "getAccessToken", "POST", token_url, _headers("application/x-www-form-urlencoded"), urlencode(form).encode()
    )


def usage_events_request(base_url: str, path: str, *, app_id: str, lines: bytes, token: str | None) -> Request:
    """A publishUsageEvents. `lines` are events as JSON, one a line, and go into the body as they are."""
    # A line end cannot occur inside the JSON of an event, so this is all it takes to make an array of lines.
    body = b'{"events":[' + lines.replace(b"\n", b",") + b"]}"
    return api_request(PUBLISH_USAGE_EVENTS, base_url, {"appId": app_id}, path=path, body=body, token=token)


def api_request(
    operation: Operation[Any],
    base_url: str,
    names: Mapping[str, str] = NOTHING,
    *,
    token: str | None,
    path: str = "",
    query: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
) -> Request:
    """Any operation but getAccessToken. `names` fill the path, which is the contract's unless another is given.

    Raises AppUnusable or Rejected where a name cannot stand in a path, and Rejected where a text cannot be sent.
    """
    url = path or operation.path
    for parameter, text in (*names.items(), *query):
        if not is_sendable(text):
            raise Rejected(f"{operation.id}: {parameter} {text!r} is not UTF-8")
    for parameter, name in names.items():
        if name in {"", ".", ".."}:
            error = AppUnusable if parameter == "appId" else Rejected
            raise error(f"{operation.id}: {parameter} {name!r} cannot stand in a URL's path")
        url = url.replace(f"{{{parameter}}}", quote(name, safe=""))
    query_string = f"?{urlencode(query)}" if query else ""
    headers = _headers(operation.request_format if body else "")
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return Request(operation.id, operation.method, f"{base_url}{url}{query_string}", headers, body)


def upload_request(url: str, file: Path) -> Request:
    """The PUT of a file to the signed URL that getBatchUploadUrls gave for it: the signature is all it needs."""
    return Request(_upload_of(file), "PUT", url, {"User-Agent": USER_AGENT}, file, has_secret_url=True)


def _headers(content_type: str = "") -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
    return headers | {"Content-Type": content_type} if content_type else headers


def read_token(response: Response, *, now_seconds: float) -> AccessToken:
    """The token of a getAccessToken answer. Raises CredentialsRefused or Retryable."""
    if response.status in {400, 401, 403}:
        raise CredentialsRefused(
            f"getAccessToken: {response.status}, the client ID or secret was refused{said(response)}"
        )
    if response.status != 200:
        raise_for_unexpected(response, "getAccessToken", now_seconds)
    try:
        fields = msgspec.json.decode(response.body, type=dict[str, Any])
        # Not to the letter: for a life that is null, 60.0 or "60" no event should wait.
        told = {name: field for name, field in fields.items() if field is not None}
        token = msgspec.convert(told, AccessToken, strict=False)
    except UNPARSABLE as error:
        raise Retryable(f"getAccessToken: the answer is no token: {error}") from None
    if not token.access_token.isascii() or not token.access_token.isprintable() or not token.access_token:
        raise Retryable("getAccessToken: the token is empty or has characters that no header can carry")
    return token


def read_push(response: Response, operation: str, *, app_id: str, lines: bytes, now_seconds: float) -> None:
    """Returns if upstream has taken the request with these lines for an app.

    Raises Rejected (400, 422), TooLarge (413), CredentialsRefused (401), AppUnusable (403, 404, an unknown app),
    Unusable (redirects and other 4xx) or Retryable (all else, with Retry-After where it was stated).
    """
    if response.status == 200:
        _check_success(response, operation)
    elif response.status in {403, 404}:
        raise AppUnusable(f"{operation}: {response.status} for app {app_id!r}{said(response)}")
    elif response.status in {400, 422} and _names_the_app(response, lines):
        raise AppUnusable(f"{operation}: upstream does not know app {app_id!r}{said(response)}")
    else:
        _raise_refusal(response, operation, now_seconds)


def read_answer(response: Response, operation: Operation[Answer], *, now_seconds: float) -> Answer:
    """What an operation has answered, of the type that it names; None where it names none.

    Raises Rejected (400, 404, 422), TooLarge (413), CredentialsRefused (401), Unusable (redirects and other 4xx),
    MalformedAnswer (a 200 that is not what the contract says) or Retryable (all else).
    """
    if response.status != 200:
        _raise_refusal(response, operation.id, now_seconds)
    _check_success(response, operation.id)
    if operation.answer is None:
        return cast("Answer", None)
    if not response.body.strip():
        raise MalformedAnswer(f"{operation.id}: 200 with an empty body")
    try:
        return msgspec.json.decode(response.body, type=operation.answer)
    except UNPARSABLE as error:
        raise MalformedAnswer(f"{operation.id}: the answer is not what the contract says: {error}") from None


def read_upload(response: Response, file: Path, *, now_seconds: float) -> None:
    """Returns if the file was taken. Raises CredentialsRefused (401, 403) where a new URL is needed, else as above."""
    if response.status in {401, 403}:
        raise CredentialsRefused(f"{_upload_of(file)}: {response.status}, the signed URL was refused")
    if not 200 <= response.status < 300:
        _raise_refusal(Response(response.status, response.headers, b""), _upload_of(file), now_seconds)


def _upload_of(file: Path) -> str:
    return f"upload of {file.name!r}"


def _raise_refusal(response: Response, operation: str, now_seconds: float) -> NoReturn:
    if response.status in {400, 404, 422}:
        raise Rejected(f"{operation}: {response.status}{said(response)}")
    if response.status == 401:
        raise CredentialsRefused(f"{operation}: 401, the access token was refused{said(response)}")
    if response.status == 413:
        raise TooLarge(f"{operation}: 413, too large{said(response)}")
    raise_for_unexpected(response, operation, now_seconds)


def _check_success(response: Response, operation: str) -> None:
    """The contract gives a 200 no body; the live service may say `success`. A page of HTML is some proxy's, not its."""
    content = response.body.strip().removeprefix(codecs.BOM_UTF8)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content.startswith(b"<") or kind in {"text/html", "application/xhtml+xml"}:
        raise Retryable(f"{operation}: 200 with a page of HTML; is there a proxy in between?")
    try:
        answer = msgspec.json.decode(content) if content else None
    except UNPARSABLE:
        return
    if isinstance(answer, dict) and answer.get("success", True) is not True:
        raise Retryable(f"{operation}: 200, but success is not true{said(response)}")


def raise_for_unexpected(response: Response, operation: str, now_seconds: float) -> NoReturn:
    """What a status means that nothing more special is known of. Raises Retryable (NotDone, Unanswered) or Unusable."""
    if response.status in {408, 425, 429} or response.status >= 500:
        error = {408: Unanswered, 429: NotDone, 504: Unanswered}.get(response.status, Retryable)
        # A date means upstream's clock; ours may be wrong.
        told_seconds = date_seconds(response.headers.get("date", ""))
        raise error(
            f"{operation}: {response.status}{said(response)}",
            retry_after_seconds=retry_after_seconds(
                response.headers.get("retry-after"), now_seconds=now_seconds if told_seconds is None else told_seconds
            ),
        )
    if 300 <= response.status < 400:
        raise Unusable(f"{operation}: {response.status}, a redirect; is the configured URL right?")
    if 400 <= response.status < 500:
        raise Unusable(f"{operation}: {response.status}{said(response)}")
    raise Retryable(f"{operation}: {response.status}, which the contract does not know")


def _names_the_app(response: Response, lines: bytes) -> bool:
    """Whether a 400 is about the app and not about the events, whose own words it may quote."""
    said = response.body[:4096].lower()
    return any(words in said and words not in lines.lower() for words in UNKNOWN_APP)


def retry_after_seconds(value: str | None, *, now_seconds: float) -> float | None:
    """Retry-After as seconds from now: a number or an HTTP date (RFC 9110 section 10.2.3); None where it is neither."""
    if value is None:
        return None
    if value.strip().isdigit():
        try:
            seconds = float(value)
        except ValueError:
            return None
    else:
        told_seconds = date_seconds(value)
        if told_seconds is None:
            return None
        seconds = told_seconds - now_seconds
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def date_seconds(value: str) -> float | None:
    """An HTTP date in seconds since the epoch; None where it is none."""
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def said(response: Response) -> str:
    """Upstream's words in one readable line, after a colon; nothing where it said nothing."""
    text = " ".join(response.body[: 4 * SAID_CHARS].decode("utf-8", "replace").split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return f": {text[:SAID_CHARS]}" if text else ""
