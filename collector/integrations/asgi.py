"""For ASGI applications (Starlette, FastAPI, Django): a usage event for each HTTP request.

app.add_middleware(UsageMiddleware, recorder=client, usage=usage)  # Starlette and FastAPI
application = UsageMiddleware(get_asgi_application(), recorder=client, usage=usage)  # Django

A Django view tells `usage` what it knows through `request.scope`, others through `request.state` or `request.scope`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from collector.integrations.recording import Recorder, Recording, Usage, once_a_request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
"""Of a scope, a receive and a send, for which each framework has types of its own."""


class UsageMiddleware:
    """Asks `usage(scope, status)` for email and event name, or None, once the response has started, and records them.

    The scope then has what the application put there: its user, its route. Bodies pass as they are.
    """

    def __init__(
        self, app: App, *, recorder: Recorder, usage: Callable[[Scope, int], Usage | None], app_id: str | None = None
    ) -> None:
        self._app = app
        once = once_a_request(lambda scope, start: usage(scope, start["status"]), (recorder, usage, app_id))
        self._recording = Recording(recorder, once, app_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application answers; websockets and lifespan events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_record(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self._recording.record(scope, message)

        await self._app(scope, receive, send_and_record)
