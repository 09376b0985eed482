"""Who may do what: access tokens, and what the sandbox signs to recognise it later."""

import base64
import hmac
import secrets
from typing import TypeVar

import msgspec
from aiohttp import web

from collector.clock import Clock
from collector.contract.models import AccessToken, TokenRequest
from collector.contract.operations import GET_ACCESS_TOKEN, SCOPE_READ, SCOPE_WRITE
from collector.sandbox.calls import Refusal
from collector.sandbox.exact import as_asked

CLIENT_ID = CLIENT_SECRET = "sandbox"  # noqa: S105 - known to everybody, that is its purpose

_SIGNATURE_BYTES = 16
_FORM = GET_ACCESS_TOKEN.request_format
_Signed = TypeVar("_Signed")


class Grants:
    """The access tokens that were issued, with their scopes, until they expire."""

    def __init__(self, clock: Clock, lifetime_seconds: int) -> None:
        self._clock = clock
        self._lifetime_seconds = lifetime_seconds
        self.tokens: dict[str, tuple[frozenset[str], float]] = {}
        self.issued = 0

    async def judge(self, request: web.Request) -> frozenset[str]:
        """The scopes that a token request asks for. Raises Refusal with 401, the one error it has in the contract."""
        form = await self._form(request)
        if form.client_id != CLIENT_ID or form.client_secret != CLIENT_SECRET:
            raise Refusal(401, "invalid_client", "client_id or client_secret is wrong")
        return frozenset((form.scope or f"{SCOPE_WRITE} {SCOPE_READ}").split())

    async def _form(self, request: web.Request) -> TokenRequest:
        if request.content_type != _FORM:
            raise _no_form(f"Content-Type {request.content_type}")
        try:
            form = dict(await request.post())
            msgspec.convert(form, as_asked(GET_ACCESS_TOKEN.request))
            return msgspec.convert(form, TokenRequest)
        except (ValueError, LookupError) as error:  # not UTF-8, a charset that nobody knows, or the wrong fields
            raise _no_form(str(error)) from None

    def issue(self, scopes: frozenset[str]) -> AccessToken:
        """A new token, good for these scopes from now on."""
        token = secrets.token_urlsafe(24)
        self.tokens[token] = (scopes, self._clock.monotonic() + self._lifetime_seconds)
        self.issued += 1
        return AccessToken(token, "Bearer", self._lifetime_seconds)

    def authorize(self, request: web.Request, scope: str) -> None:
        """Raises Refusal with 401 unless the request has a live token with `scope`."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        scopes, expires_at = self.tokens.get(token, (frozenset(), 0.0)) if kind.lower() == "bearer" else ((), 0.0)
        if not scopes or self._clock.monotonic() >= expires_at:
            raise _unauthorized("invalid_token", "the access token is missing, unknown or expired")
        if scope not in scopes:
            raise _unauthorized("insufficient_scope", f"the access token lacks the scope {scope}")

    def forget(self) -> None:
        """Every token that was issued is refused from now on."""
        self.tokens.clear()


def _no_form(message: str) -> Refusal:
    message += "; expected a form with grant_type=client_credentials, client_id and client_secret"
    return Refusal(401, "invalid_request", message)


def _unauthorized(code: str, message: str) -> Refusal:
    return Refusal(401, code, message, {"WWW-Authenticate": f'Bearer error="{code}"'})


class Signer:
    """Turns values into text that only this process can have made. Its key dies with it."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, value: msgspec.Struct) -> str:
        """`value` as text for a URL."""
        return self._signed(msgspec.json.encode(value)).decode()

    def read(self, text: str, kind: type[_Signed]) -> _Signed | None:
        """The value that was signed; None where it was not signed here, or is of another kind."""
        try:
            content = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))[_SIGNATURE_BYTES:]
            # Compared as text: base64 has more than one spelling of the same bytes.
            is_ours = hmac.compare_digest(text.encode(), self._signed(content))
            return msgspec.json.decode(content, type=kind) if is_ours else None
        except ValueError:
            return None

    def _signed(self, content: bytes) -> bytes:
        signature = hmac.digest(self._key, content, "sha256")[:_SIGNATURE_BYTES]
        return base64.urlsafe_b64encode(signature + content).rstrip(b"=")
