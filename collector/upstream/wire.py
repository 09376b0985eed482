"""What goes over the wire and what the answers mean, without any I/O.

The contract declares 200, 400, 401 and 404; what all other answers mean is our policy, in `classify`. Nothing here
holds a connection, a clock or a token.
"""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import quote, urlencode

import msgspec

from collector.contract.models import AccessToken
from collector.errors import AppUnusable, CredentialsRefused, Rejected, Retryable, TooLarge, Unusable
from collector.version import __version__

USER_AGENT = f"usage-collector/{__version__}"
SAID_CHARS = 200
"""How much of upstream's own words goes into an error."""

MAX_RETRY_AFTER_SECONDS = 3600.0
"""A longer Retry-After is taken as this: a wrong clock upstream must not stop delivery for a year."""


class Request(msgspec.Struct, frozen=True):
    """One HTTP request. Its repr leaves out headers and body: they hold tokens and addresses of people."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Request({self.method} {self.url}, {len(self.body)} bytes)"


class Response(msgspec.Struct, frozen=True):
    """One HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def token_request(token_url: str, *, client_id: str, client_secret: str, scope: str) -> Request:
    """getAccessToken: client credentials, form-encoded (RFC 6749 section 4.4.2)."""
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret, "scope": scope}
    return Request("POST", token_url, _headers("application/x-www-form-urlencoded"), urlencode(form).encode())


def usage_events_request(base_url: str, path: str, *, app_id: str, lines: bytes, token: str) -> Request:
    """PublishUsageEvents. `lines` are events as JSON, one a line, and go into the body as they are."""
    if app_id in {".", ".."}:
        raise AppUnusable(f"app {app_id!r} cannot stand in a URL's path")
    # A line end cannot occur inside the JSON of an event, so this is all it takes to make an array of lines.
    body = b'{"events":[' + lines.replace(b"\n", b",") + b"]}"
    url = base_url + path.replace("{appId}", quote(app_id, safe=""))
    return Request("POST", url, _headers("application/json") | {"Authorization": f"Bearer {token}"}, body)


def _headers(content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type, "Accept": "application/json", "User-Agent": USER_AGENT}


def read_token(response: Response, *, now_seconds: float) -> AccessToken:
    """The token of a getAccessToken answer. Raises CredentialsRefused or Retryable."""
    if response.status in {400, 401, 403}:
        raise CredentialsRefused(
            f"getAccessToken: {response.status}, the client ID or secret was refused{_said(response)}"
        )
    if response.status != 200:
        _raise_for_unexpected(response, "getAccessToken", now_seconds)
    try:
        token = msgspec.json.decode(response.body, type=AccessToken)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Retryable(f"getAccessToken: the answer is no token: {error}") from None
    if not token.access_token.isascii() or not token.access_token.isprintable() or not token.access_token:
        raise Retryable("getAccessToken: the token is empty or has characters that no header can carry")
    return token


def read_push(response: Response, operation: str, *, app_id: str, now_seconds: float) -> None:
    """Returns if upstream has taken the request.

    Raises Rejected (400, 422), TooLarge (413), CredentialsRefused (401), AppUnusable (403, 404, an unknown app),
    Unusable (redirects and other 4xx) or Retryable (all else, with Retry-After where it was stated).
    """
    if response.status == 200:
        _check_success(response, operation)
    elif response.status in {400, 422}:
        if _names_the_app(response):
            raise AppUnusable(f"{operation}: upstream does not know app {app_id!r}{_said(response)}")
        raise Rejected(f"{operation}: {response.status}{_said(response)}")
    elif response.status == 401:
        raise CredentialsRefused(f"{operation}: 401, the access token was refused{_said(response)}")
    elif response.status in {403, 404}:
        raise AppUnusable(f"{operation}: {response.status} for app {app_id!r}{_said(response)}")
    elif response.status == 413:
        raise TooLarge(f"{operation}: 413, too large{_said(response)}")
    else:
        _raise_for_unexpected(response, operation, now_seconds)


def _check_success(response: Response, operation: str) -> None:
    """The contract gives a 200 no body; the live service may say `success`. A page of HTML is some proxy's, not its."""
    content = response.body.strip()
    if content.startswith(b"<"):
        raise Retryable(f"{operation}: 200 with a page of HTML; is there a proxy in between?")
    try:
        answer = msgspec.json.decode(content) if content else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if isinstance(answer, dict) and answer.get("success", True) is not True:
        raise Retryable(f"{operation}: 200, but success is not true{_said(response)}")


def _raise_for_unexpected(response: Response, operation: str, now_seconds: float) -> NoReturn:
    if response.status in {408, 425, 429} or response.status >= 500:
        raise Retryable(
            f"{operation}: {response.status}{_said(response)}",
            retry_after_seconds=retry_after_seconds(response.headers.get("retry-after"), now_seconds=now_seconds),
        )
    if 300 <= response.status < 400:
        raise Unusable(f"{operation}: {response.status}, a redirect; is the configured URL right?")
    if 400 <= response.status < 500:
        raise Unusable(f"{operation}: {response.status}{_said(response)}")
    raise Retryable(f"{operation}: {response.status}, which the contract does not know")


def _names_the_app(response: Response) -> bool:
    """Whether a 400 is about the app and not about the events.

    The contract states no error body; these are the words that such bodies use. Where they are missing, the flusher
    still notices that no event at all gets through.
    """
    said = response.body[:4096].lower()
    return any(
        words in said
        for words in (b"unknown app", b"unknown_app", b"app not found", b"application not found", b"invalid app")
    )


def retry_after_seconds(value: str | None, *, now_seconds: float) -> float | None:
    """Retry-After as seconds from now: a number or an HTTP date (RFC 9110 section 10.2.3); None where it is neither."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            seconds = float(value)
        else:
            date = parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_seconds
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def _said(response: Response) -> str:
    """Upstream's words in one readable line, after a colon; nothing where it said nothing."""
    text = " ".join(response.body[: 4 * SAID_CHARS].decode("utf-8", "replace").split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return f": {text[:SAID_CHARS]}" if text else ""
