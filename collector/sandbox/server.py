"""The sandbox's HTTP server: the contract's operations, the PUT of uploads, and its own requests under `/_sandbox`.

An operation answers the statuses that the contract states for it. Beside them: 429 beyond the exports' rate, 405 for
another method, 413 for a body that is too large, 403 for an upload URL that is no longer good. A request for anything
else is answered 404 and counted as unexpected: a test can insist that there is none.
"""

import functools
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from collector.clock import Clock
from collector.contract.models import EXPORT_REQUESTS_PER_SECOND
from collector.contract.operations import GET_ACCESS_TOKEN, OPERATIONS, PUBLISH_USAGE_EVENTS, Operation
from collector.sandbox import uploads
from collector.sandbox.activity import Activity, Served
from collector.sandbox.calls import Call, Handler, Refusal, answer, read_json, read_parameters, require_json
from collector.sandbox.control import Control, SandboxStats
from collector.sandbox.export import Export
from collector.sandbox.faults import Fault, Faults
from collector.sandbox.grants import CLIENT_ID, CLIENT_SECRET, Grants, Signer
from collector.sandbox.push import DONE, Push, read_events
from collector.sandbox.seed import Seed, plant
from collector.sandbox.state import State
from collector.sandbox.uploads import Permit, Uploads

__all__ = ["CLIENT_ID", "CLIENT_SECRET", "MAX_BODY_BYTES", "Sandbox", "SandboxStats"]

MAX_BODY_BYTES = 64 * 2**20

_served: ContextVar[Served] = ContextVar("served")
"""What is remembered of the request that this task serves."""


class _ConnectionCut(Exception):
    """A fault has closed the connection: there is nobody to answer."""


class Sandbox:
    """One sandbox server. `start` it in the loop that will serve it."""

    def __init__(
        self,
        state: State,
        *,
        create_apps: bool = False,
        token_lifetime_seconds: int = 3600,
        faults: Sequence[Fault] = (),
        export_limit: int = EXPORT_REQUESTS_PER_SECOND,
        seed: Seed | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`export_limit` is in requests within any second, 0 for none; `seed` is there from the start."""
        self._state = state
        self._seed = seed or Seed()
        self._clock = clock or Clock()
        self._faults = Faults(faults)
        self._grants = Grants(self._clock, token_lifetime_seconds)
        self._exports = _RateLimit(self._clock, export_limit)
        self._activity = Activity(self._clock)
        self._url: str | None = None
        signer = Signer()
        place = state.directory and state.directory / "uploads"
        self._uploads = Uploads(place, self._clock, signer)
        self._control = Control(
            state,
            self._seed,
            clock=self._clock,
            faults=self._faults,
            grants=self._grants,
            activity=self._activity,
            uploads=self._uploads,
        )
        push = Push(state, self._clock, self._uploads, self._activity, create_apps=create_apps)
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._serve])
        handlers = {**push.handlers, **Export(state, signer).handlers}
        for operation in OPERATIONS:
            carry_out = (
                self._grant
                if operation is GET_ACCESS_TOKEN
                else functools.partial(self._operate, operation, handlers[operation.id])
            )
            application.router.add_route(operation.method, operation.path, carry_out)
        application.router.add_put(uploads.PATH, self._upload)
        self._control.add_routes(application.router)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listens, over TLS where that is given, and knows its seed. Raises OSError where the address cannot be had."""
        await plant(self._state, self._seed)
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

    async def stats(self) -> SandboxStats:
        """What was received so far."""
        return await self._control.stats()

    def set_faults(self, *faults: Fault) -> None:
        """These faults are in force, and no others."""
        self._faults.set(faults)

    def forget_tokens(self) -> None:
        """Every token that was issued is refused from now on."""
        self._grants.forget()

    # -- one path for all operations -------------------------------------------------------------------------------

    async def _operate(self, operation: Operation[Any], handle: Handler, request: web.Request) -> web.StreamResponse:
        """Who asks is judged first, then what is asked; nothing is made or changed before both are right.

        Only then faults act: which requests they hit is told by what these hold.
        """
        served = _served.get()
        served.what = operation.id
        app_id = served.app_id = request.match_info.get("appId") or request.match_info.get("applicationId")
        content = await request.read() if operation.request else b""  # all of it, or a refusal would cut its sender off
        if operation is PUBLISH_USAGE_EVENTS and app_id is not None:
            await self._state.count_request(app_id)
        if operation.scope is not None:
            self._grants.authorize(request, operation.scope)
        if operation.is_export:
            self._exports.take()
        parameters = read_parameters(operation, request)
        pairs: Sequence[tuple[str, str]] = ()
        body = None
        if operation.request:
            require_json(request)
            if operation is PUBLISH_USAGE_EVENTS:
                body = read_events(content)
                pairs = [(event.email, event.event_name) for event in body]
            else:
                body = read_json(operation, content)
        call = Call(parameters, body, f"{request.scheme}://{request.host}")
        return await self._under_faults(request, lambda: handle(call), app_id, pairs)

    async def _grant(self, request: web.Request) -> web.StreamResponse:
        """getAccessToken, which is not asked for a token, and takes a form."""
        _served.get().what = GET_ACCESS_TOKEN.id

        async def issue() -> object:
            return self._grants.issue(scopes)

        scopes = await self._grants.judge(request)
        return await self._under_faults(request, issue)

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        """The PUT of a file to the URL that getBatchUploadUrls gave, which is all the authority it needs."""
        served = _served.get()
        served.what = uploads.OPERATION
        content = await request.read()
        permit = self._uploads.permit(request.query.get("signed", ""))
        served.app_id = permit.app_id
        return await self._under_faults(request, lambda: self._keep_upload(permit, content), permit.app_id)

    async def _keep_upload(self, permit: Permit, content: bytes) -> object:
        upload = await self._uploads.keep(permit, content)
        await self._state.records.add_upload(upload, self._clock.now_us())
        return DONE

    async def _under_faults(
        self,
        request: web.Request,
        act: Callable[[], Awaitable[object]],
        app_id: str | None = None,
        pairs: Sequence[tuple[str, str]] = (),
    ) -> web.StreamResponse:
        """Carries an operation out, or what a fault makes of it."""
        served = _served.get()
        fault = self._faults.draw(served.what, app_id, pairs)
        if fault is None:
            return answer(await act())
        served.fault = fault.about
        alters = fault.cut or fault.status is not None
        truth = answer(await act()) if fault.after or not alters else None
        if fault.delay_seconds:
            await self._clock.sleep(fault.delay_seconds)
        if fault.cut:
            if request.transport is not None:
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
        assert truth is not None  # noqa: S101 - a fault that alters nothing has carried the operation out
        return truth

    @web.middleware
    async def _serve(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors have one shape, and the page is told what went on. Its own requests are no news."""
        started = self._clock.monotonic()
        served = Served(self._clock.now_ms(), request.method)
        _served.set(served)
        try:
            response = await self._answer(request, handler)
            served.status = response.status
        except _ConnectionCut:
            served.status = 0
            return web.Response(status=500)  # goes nowhere
        else:
            return response
        finally:
            if served.what:
                served.took_ms = round((self._clock.monotonic() - started) * 1000, 1)
                self._activity.served(served)

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return refusal.answer
        except web.HTTPRequestEntityTooLarge:
            return Refusal(413, "too_large", f"the body has more than {MAX_BODY_BYTES} bytes").answer
        except web.HTTPException as error:
            self._activity.unexpected += 1
            _served.get().what = request.path
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return Refusal(error.status, "unexpected", f"{request.method} {request.path}: {error.reason}", allow).answer


class _RateLimit:
    """At most `limit` takes within any second; 0 for no limit."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._taken: deque[float] = deque(maxlen=max(1, limit))

    def take(self) -> None:
        """One more. Raises Refusal with 429 where it would be one too many."""
        now = self._clock.monotonic()
        if self._limit and len(self._taken) == self._limit and now - self._taken[0] < 1.0:
            message = f"more than {self._limit} export requests within a second"
            raise Refusal(429, "too_many_requests", message, {"Retry-After": "1"})
        self._taken.append(now)
