"""The sandbox's HTTP server: the contract's operations, and a few of its own under `/_sandbox`.

Served so far: getAccessToken, setupApplication, publishUsageEvents, with the statuses that the contract states and no
others. A request for anything else is answered 404 and counted as unexpected: a test can insist that there is none.
"""

import asyncio
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from collector.contract.models import MAX_EVENTS_PER_REQUEST, AccessToken, App, AppSetup, Event
from collector.contract.operations import (
    GET_ACCESS_TOKEN,
    PUBLISH_USAGE_EVENTS,
    SCOPE_READ,
    SCOPE_WRITE,
    SETUP_APPLICATION,
)
from collector.sandbox.faults import Fault, Faults, FaultScript
from collector.sandbox.state import KeptEvent, State, Stats

CLIENT_ID = CLIENT_SECRET = "sandbox"  # noqa: S105 - known to everybody, that is its purpose
MAX_BODY_BYTES = 64 * 2**20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_encode = msgspec.json.Encoder().encode
_decode_envelope = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_setup = msgspec.json.Decoder(AppSetup).decode
_decode_script = msgspec.json.Decoder(FaultScript).decode

UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Refusal(Exception):
    """An answer with one of the contract's error statuses."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _ConnectionCut(Exception):
    """A fault has closed the connection: there is nobody to answer."""


class SandboxStats(Stats):
    """What `GET /_sandbox/stats` answers: also the tokens issued, and requests that no operation expects."""

    tokens: int = 0
    unexpected: int = 0


class Sandbox:
    """One sandbox server. `start` it in the loop that will serve it."""

    def __init__(
        self,
        state: State,
        *,
        create_apps: bool = False,
        token_lifetime_seconds: int = 3600,
        faults: Sequence[Fault] = (),
    ) -> None:
        self._state = state
        self._create_apps = create_apps
        self._token_lifetime_seconds = token_lifetime_seconds
        self._faults = Faults(faults)
        self._grants: dict[str, tuple[frozenset[str], float]] = {}
        self._tokens = 0
        self._unexpected = 0
        self._url: str | None = None
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._answer_refusals])
        application.router.add_post(GET_ACCESS_TOKEN.path, self._get_access_token)
        application.router.add_post(SETUP_APPLICATION.path, self._setup_application)
        application.router.add_post(PUBLISH_USAGE_EVENTS.path, self._publish_usage_events)
        application.router.add_get("/_sandbox/stats", self._stats)
        application.router.add_get("/_sandbox/events", self._events)
        application.router.add_get("/_sandbox/faults", self._list_faults)
        application.router.add_post("/_sandbox/faults", self._set_faults)
        application.router.add_post("/_sandbox/reset", self._reset)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listens, over TLS where that is given. Raises OSError where the address cannot be had."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, reuse_address=True, ssl_context=tls).start()
        bound_host, bound_port = self._runner.addresses[0][:2]
        scheme, name = "https" if tls else "http", f"[{bound_host}]" if ":" in bound_host else bound_host
        self._url = f"{scheme}://{name}:{bound_port}"

    @property
    def url(self) -> str:
        """Where it listens, or did last: the API's base URL. Raises RuntimeError before the first start."""
        if self._url is None:
            raise RuntimeError("the sandbox has not been started: it has no URL yet")
        return self._url

    async def stop(self) -> None:
        """Listens no more; every connection is closed. The state stays open."""
        await self._runner.cleanup()

    # -- the contract's operations ---------------------------------------------------------------------------------

    async def _get_access_token(self, request: web.Request) -> web.StreamResponse:
        async def grant() -> web.Response:
            form = await _read_form(request)
            if form.get("grant_type") != "client_credentials":
                raise _Refusal(401, "unsupported_grant_type", "expected a form with grant_type=client_credentials")
            if form.get("client_id") != CLIENT_ID or form.get("client_secret") != CLIENT_SECRET:
                raise _Refusal(401, "invalid_client", "client_id or client_secret is wrong")
            scopes = frozenset(str(form.get("scope") or f"{SCOPE_WRITE} {SCOPE_READ}").split())
            token = secrets.token_urlsafe(24)
            self._grants[token] = (scopes, time.monotonic() + self._token_lifetime_seconds)
            self._tokens += 1
            return _answer(AccessToken(token, "Bearer", self._token_lifetime_seconds))

        return await self._under_faults(request, self._faults.draw("getAccessToken"), grant)

    async def _setup_application(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request, SCOPE_WRITE)
        try:
            setup = _decode_setup(await request.read())
        except UNPARSABLE as error:
            raise _Refusal(400, "bad_request", str(error)) from None

        async def set_up() -> web.Response:
            app_id = secrets.token_hex(6)
            await self._state.add_app(app_id, setup.app_name)
            return _answer(App(app_id, setup.app_name))

        return await self._under_faults(request, self._faults.draw("setupApplication"), set_up)

    async def _publish_usage_events(self, request: web.Request) -> web.StreamResponse:
        app_id = request.match_info["appId"]
        body = await request.read()
        await self._state.count_request(app_id)
        self._authorize(request, SCOPE_WRITE)
        if self._create_apps:
            await self._state.add_app(app_id, app_id)
        if not await self._state.has_app(app_id):
            raise _Refusal(400, "unknown_app", f"unknown app {app_id!r}")
        events = _read_events(body, request.content_type)

        async def keep() -> web.Response:
            await self._state.keep(app_id, events)
            return _answer({"success": True})

        pairs = [(event.email, event.event_name) for event in events]
        return await self._under_faults(request, self._faults.draw("publishUsageEvents", app_id, pairs), keep)

    def _authorize(self, request: web.Request, scope: str) -> None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        scopes, expires_at = (
            self._grants.get(token, (frozenset(), 0.0)) if kind.lower() == "bearer" else (frozenset(), 0.0)
        )
        if not scopes or time.monotonic() >= expires_at:
            raise _Refusal(401, "invalid_token", "the access token is missing, unknown or expired")
        if scope not in scopes:
            raise _Refusal(401, "insufficient_scope", f"the access token lacks the scope {scope}")

    async def _under_faults(
        self, request: web.Request, fault: Fault | None, act: Callable[[], Awaitable[web.Response]]
    ) -> web.StreamResponse:
        """Carries an operation out, or what a fault makes of it."""
        if fault is None:
            return await act()
        alters = fault.cut or fault.status is not None
        answer = await act() if fault.after or not alters else None
        await asyncio.sleep(fault.delay_seconds)
        if fault.cut:
            if isinstance(request.transport, asyncio.Transport):
                if fault.raw:
                    request.transport.write(fault.raw.encode("latin-1", "replace"))
                    request.transport.close()  # once that is sent
                else:
                    request.transport.abort()
            raise _ConnectionCut
        if fault.status is not None:
            return web.Response(
                status=fault.status,
                headers={"Content-Type": "application/json", **fault.headers},
                body=fault.body.encode(),
            )
        assert answer is not None  # noqa: S101 - a fault that alters nothing has carried the operation out
        return answer

    # -- the sandbox's own -----------------------------------------------------------------------------------------

    async def stats(self) -> SandboxStats:
        """What was received so far."""
        stats = await self._state.stats()
        return SandboxStats(stats.requests, stats.received, stats.distinct, stats.apps, self._tokens, self._unexpected)

    def set_faults(self, *faults: Fault) -> None:
        """These faults are in force, and no others."""
        self._faults.set(faults)

    def forget_tokens(self) -> None:
        """Every token that was issued is refused from now on."""
        self._grants.clear()

    async def _stats(self, _request: web.Request) -> web.StreamResponse:
        return _answer(await self.stats())

    async def _events(self, _request: web.Request) -> web.StreamResponse:
        lines = [
            _encode({"appId": app_id, "event": msgspec.Raw(event)}) for app_id, event in await self._state.events()
        ]
        return web.Response(body=b"".join(line + b"\n" for line in lines), content_type="application/x-ndjson")

    async def _list_faults(self, _request: web.Request) -> web.StreamResponse:
        return _answer(FaultScript(list(self._faults.list())))

    async def _set_faults(self, request: web.Request) -> web.StreamResponse:
        try:
            script = _decode_script(await request.read())
        except UNPARSABLE as error:
            raise _Refusal(400, "bad_request", f'{error}; expected {{"faults": [...]}}') from None
        self._faults.set(script.faults)
        return await self._list_faults(request)

    async def _reset(self, _request: web.Request) -> web.StreamResponse:
        await self._state.reset()
        self._faults.set([])
        self._tokens = self._unexpected = 0
        return _answer(await self.stats())

    @web.middleware
    async def _answer_refusals(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except _Refusal as refusal:
            return _answer({"error": refusal.code, "message": str(refusal)}, refusal.status)
        except _ConnectionCut:
            return web.Response(status=500)  # goes nowhere
        except web.HTTPException as error:
            self._unexpected += 1
            return _answer(
                {"error": "unexpected", "message": f"{request.method} {request.path}: {error.reason}"}, error.status
            )


async def _read_form(request: web.Request) -> Mapping[str, Any]:
    """The form's fields; none where the body is no form, or one that cannot be read."""
    if request.content_type != "application/x-www-form-urlencoded":
        return {}
    try:
        return await request.post()
    except (ValueError, LookupError):  # not UTF-8, or a charset that nobody knows
        return {}


def read_faults(script: bytes) -> list[Fault]:
    """The faults of a script. Raises ValueError that says what is wrong with it."""
    try:
        return _decode_script(script).faults
    except UNPARSABLE as error:
        raise ValueError(f'{error}; expected {{"faults": [...]}}') from None


def _read_events(body: bytes, content_type: str) -> list[KeptEvent]:
    """The events of a publishUsageEvents request, checked against the contract."""
    if content_type != "application/json":
        raise _Refusal(400, "bad_request", f"Content-Type {content_type}; expected application/json")
    try:
        fields = _decode_envelope(body)
        if "events" not in fields:
            raise _Refusal(400, "bad_request", "events: missing")
        items = _decode_items(fields["events"])
    except UNPARSABLE as error:
        raise _Refusal(400, "bad_request", str(error)) from None
    if len(items) > MAX_EVENTS_PER_REQUEST:
        raise _Refusal(400, "bad_request", f"events: {len(items)} items, at most {MAX_EVENTS_PER_REQUEST} are allowed")
    kept = []
    for index, item in enumerate(items):
        try:
            event = _decode_event(item)
        except UNPARSABLE as error:
            raise _Refusal(400, "bad_request", f"events[{index}]: {error}") from None
        if "@" not in event.email:
            raise _Refusal(400, "bad_request", f"events[{index}].email: not an e-mail address")
        kept.append(KeptEvent(event.timestamp, event.email, event.event_name, bytes(item)))
    return kept


def _answer(content: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encode(content), status=status, content_type="application/json")
