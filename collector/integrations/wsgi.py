"""For WSGI applications (Flask, Django): a usage event for each request.

app.wsgi_app = UsageMiddleware(app.wsgi_app, recorder=client, usage=usage)  # Flask
application = UsageMiddleware(get_wsgi_application(), recorder=client, usage=usage)  # Django

A view tells `usage` what it knows through the environ: Flask's `request.environ`, Django's `request.META`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from collector.integrations.recording import Recorder, Recording, Usage

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class UsageMiddleware:
    """Asks `usage(environ, status)` for email and event name, or None, when the response is over, and records them.

    The environ then has what the application put there. A server's own way to send files is not used behind this.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        recorder: Recorder,
        usage: "Callable[[WSGIEnvironment, int], Usage | None]",
        app_id: str | None = None,
    ) -> None:
        self._app = app
        self._recording = Recording(recorder, lambda environ, status: usage(environ, int(status[:3])), app_id)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """The application answers."""
        statuses: list[str] = []

        def note_status(status: str, headers: list[tuple[str, str]], *error: object) -> Callable[[bytes], object]:
            statuses.append(status)
            return start_response(status, headers, *error)  # type: ignore[arg-type]  # as the application gave it

        def record() -> None:
            if statuses:  # the last one counts: an error may have replaced the first (PEP 3333)
                self._recording.record(environ, statuses[-1])

        return _Closing(self._app(environ, note_status), record)


class _Closing:
    """A response that says when it is closed, once."""

    def __init__(self, parts: Iterable[bytes], when_closed: Callable[[], None]) -> None:
        self._parts = parts
        self._when_closed = when_closed
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        """What the server calls at the end of every request, also of one that has failed."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if close := getattr(self._parts, "close", None):
                close()
        finally:
            self._when_closed()
