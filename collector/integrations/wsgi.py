"""For WSGI applications (Flask, Django): a usage event for each request.

app.wsgi_app = UsageMiddleware(app.wsgi_app, recorder=client, usage=usage)  # Flask
application = UsageMiddleware(get_wsgi_application(), recorder=client, usage=usage)  # Django

A view tells `usage` what it knows through the environ: Flask's `request.environ`, Django's `request.META`.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, cast

from collector.integrations.recording import Recorder, Recording, Usage, once_a_request

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class UsageMiddleware:
    """Asks `usage(environ, status)` for email and event name, or None, when the response is over, and records them.

    The environ then has what the application put there. Where it raises before the first part of a response, the server
    answers, and nothing is recorded. A server's own way to send files is not used behind this.
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
        once = once_a_request(lambda environ, status: usage(environ, int(status[:3])), (recorder, usage, app_id))
        self._recording = Recording(recorder, once, app_id)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """The application answers."""
        statuses: list[str] = []

        def note_status(
            status: str, headers: list[tuple[str, str]], exc_info: "OptExcInfo | None" = None
        ) -> Callable[[bytes], object]:
            write = start_response(status, headers, *(() if exc_info is None else (exc_info,)))
            statuses.append(status)  # which the server has not refused
            return write

        def record() -> None:
            if statuses:  # the last one counts: an error may have replaced the first (PEP 3333)
                self._recording.record(environ, statuses[-1])

        parts = self._app(environ, note_status)
        response = _SizedResponse if isinstance(parts, Sized) else _Response
        return response(parts, when_closed=record, when_nothing_came=statuses.clear)


class _Response:
    """What an application returned. It says when it is closed, once, and before that where it fails without a part."""

    def __init__(
        self, parts: Iterable[bytes], *, when_closed: Callable[[], None], when_nothing_came: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._iterator: Iterator[bytes]
        self._when_closed = when_closed
        self._when_nothing_came = when_nothing_came
        self._has_come = self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        self._iterator = iter(self._parts)
        return self

    def __next__(self) -> bytes:
        try:
            part = next(self._iterator)
        except StopIteration:
            raise
        except BaseException:
            if not self._has_come:
                self._when_nothing_came()
            raise
        self._has_come = self._has_come or part != b""  # with an empty part a server sends no headers yet
        return part

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


class _SizedResponse(_Response):
    """Servers look how many parts there are: of a single one they know the length."""

    def __len__(self) -> int:
        return len(cast("Sized", self._parts))
