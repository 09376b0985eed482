"""The ASGI middleware around applications of Starlette, FastAPI and Django, and around bare ones."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from django.core.asgi import get_asgi_application
from fastapi import FastAPI
from fastapi import Request as FastApiRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from collector.integrations.asgi import App, Message, Receive, Scope, Send, UsageMiddleware
from collector.integrations.recording import Recorder
from tests.integrations import django_site
from tests.integrations.recorders import ListRecorder, NowaitRecorder


def usage(scope: Scope, status: int) -> tuple[str, str] | None:
    """What the application said of its user, with the status."""
    user = scope.get("state", {}).get("user") or scope.get("user")
    return (user, f"{scope['path']} {status}") if user else None


def starlette_app(recorder: Recorder) -> App:
    async def saved(request: Request) -> Response:
        request.state.user = "user@example.com"
        return PlainTextResponse("saved", status_code=201)

    async def stranger(_: Request) -> Response:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/saved", saved, methods=["POST"]), Route("/stranger", stranger)])
    app.add_middleware(UsageMiddleware, recorder=recorder, usage=usage)
    return app


def fastapi_app(recorder: Recorder) -> App:
    app = FastAPI()
    app.add_middleware(UsageMiddleware, recorder=recorder, usage=usage)

    @app.post("/saved", status_code=201)
    async def saved(request: FastApiRequest) -> str:
        request.state.user = "user@example.com"
        return "saved"

    @app.get("/stranger")
    async def stranger() -> str:
        return "hello"

    return app


def django_app(recorder: Recorder) -> App:
    django_site.configure()
    return UsageMiddleware(get_asgi_application(), recorder=recorder, usage=usage)


async def asked(app: App, method: str, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://wiki.example.com") as client:
        return await client.request(method, path)


@pytest.mark.parametrize("make_app", [starlette_app, fastapi_app, django_app])
@pytest.mark.parametrize("make_recorder", [ListRecorder, NowaitRecorder])
async def test_a_request_is_recorded_with_what_the_application_knows(
    make_app: Callable[[Recorder], App], make_recorder: Callable[[], ListRecorder]
) -> None:
    recorder = make_recorder()
    app = make_app(recorder)
    assert (await asked(app, "POST", "/saved")).status_code == 201
    assert (await asked(app, "GET", "/stranger")).status_code == 200
    assert (await asked(app, "GET", "/nothing")).status_code == 404
    assert recorder.usages == [("user@example.com", "/saved 201")]


async def test_a_request_that_passes_twice_is_recorded_once_and_to_another_end_once_more() -> None:
    recorder = ListRecorder()
    inner = Starlette(routes=[Mount("/pages", starlette_app(recorder))])
    inner.add_middleware(UsageMiddleware, recorder=recorder, usage=usage)
    inner.add_middleware(UsageMiddleware, recorder=recorder, usage=usage, app_id="crm")
    for _ in range(2):
        assert (await asked(inner, "POST", "/pages/saved")).status_code == 201
    assert sorted(event.app_id or "" for event in recorder.events) == ["", "", "crm", "crm"]


async def test_the_event_is_recorded_once_the_response_has_started_and_no_part_is_held_back() -> None:
    recorder = ListRecorder()
    seen: list[object] = []

    async def parts() -> Any:
        for part in (b"a", b"b"):
            seen.append(len(recorder.events))
            yield part

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["user"] = "user@example.com"
        seen.append(len(recorder.events))
        await StreamingResponse(parts())(scope, receive, send)

    async def send(message: Message) -> None:
        seen.append(message.get("body", message["type"]))

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    wrapped = UsageMiddleware(app, recorder=recorder, usage=usage, app_id="wiki")
    await wrapped({"type": "http", "path": "/", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert seen == [0, "http.response.start", 1, b"a", 1, b"b", b""]
    assert recorder.events[0].app_id == "wiki"


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_what_is_no_request_passes_through(kind: str) -> None:
    recorder = ListRecorder()
    passed: list[object] = []

    async def app(*received: object) -> None:
        passed.extend(received)

    async def receive() -> Message:
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError

    scope = {"type": kind, "user": "user@example.com", "path": "/"}
    await UsageMiddleware(app, recorder=recorder, usage=usage)(scope, receive, send)
    assert passed == [scope, receive, send]
    assert not recorder.events


async def test_a_callable_that_fails_is_logged_once_and_breaks_no_request(caplog: pytest.LogCaptureFixture) -> None:
    def broken(scope: Scope, status: int) -> tuple[str, str] | None:
        raise KeyError(f"{scope['path']} {status}")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("hello")(scope, receive, send)

    recorder = ListRecorder()
    wrapped = UsageMiddleware(app, recorder=recorder, usage=broken)
    for _ in range(3):
        assert (await asked(wrapped, "GET", "/")).text == "hello"
    assert not recorder.events
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None


async def test_a_response_without_a_status_is_for_the_server_to_refuse() -> None:
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start"})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    recorder = ListRecorder()
    await UsageMiddleware(app, recorder=recorder, usage=usage)({"type": "http"}, receive, send)
    assert sent == [{"type": "http.response.start"}]
    assert not recorder.events


async def test_an_application_that_raises_is_not_recorded_and_its_error_goes_on() -> None:
    async def app(*_: object) -> None:
        raise RuntimeError("broken")

    recorder = ListRecorder()
    with pytest.raises(RuntimeError, match="broken"):
        await UsageMiddleware(app, recorder=recorder, usage=usage)({"type": "http"}, app, app)  # type: ignore[arg-type]
    assert not recorder.events
