"""The WSGI middleware around applications of Flask and Django, and around bare ones."""

import gc
import io
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from wsgiref.handlers import SimpleHandler
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import httpx
import pytest
from django.core.wsgi import get_wsgi_application

from collector.integrations.recording import Recorder
from collector.integrations.wsgi import UsageMiddleware
from tests.integrations import django_site
from tests.integrations.recorders import ListRecorder, NowaitRecorder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def usage(environ: "WSGIEnvironment", status: int) -> tuple[str, str] | None:
    """What the application said of its user, with the status."""
    email = environ.get("usage.email")
    return (email, f"{environ['PATH_INFO']} {status}") if email else None


def flask_app(recorder: Recorder) -> "WSGIApplication":
    app = flask.Flask(__name__)
    app.wsgi_app = UsageMiddleware(app.wsgi_app, recorder=recorder, usage=usage)  # type: ignore[method-assign]

    @app.post("/saved")
    def saved() -> tuple[str, int]:
        flask.request.environ["usage.email"] = "user@example.com"
        return "saved", 201

    @app.get("/stranger")
    def stranger() -> str:
        return "hello"

    return app


def django_app(recorder: Recorder) -> "WSGIApplication":
    django_site.configure()
    return UsageMiddleware(get_wsgi_application(), recorder=recorder, usage=usage)


def asked(app: "WSGIApplication", method: str, path: str) -> httpx.Response:
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://wiki.example.com") as client:
        return client.request(method, path)


@pytest.mark.parametrize("make_app", [flask_app, django_app])
@pytest.mark.parametrize("make_recorder", [ListRecorder, NowaitRecorder])
def test_a_request_is_recorded_with_what_the_application_knows(
    make_app: "Callable[[Recorder], WSGIApplication]", make_recorder: Callable[[], ListRecorder]
) -> None:
    recorder = make_recorder()
    app = make_app(recorder)
    assert asked(app, "POST", "/saved").status_code == 201
    assert asked(app, "GET", "/stranger").status_code == 200
    assert asked(app, "GET", "/nothing").status_code == 404
    assert recorder.usages == [("user@example.com", "/saved 201")]


def environ_of(path: str) -> "WSGIEnvironment":
    environ: WSGIEnvironment = {
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "usage.email": "user@example.com",
    }
    setup_testing_defaults(environ)
    return environ


class Parts:
    """A response of two parts that starts with the first and says what happens to it."""

    def __init__(self, start_response: "StartResponse", happened: list[str]) -> None:
        self._start_response = start_response
        self._happened = happened

    def __iter__(self) -> Iterator[bytes]:
        self._start_response("200 OK", [("Content-Type", "text/plain")])
        for part in (b"a", b"b"):
            self._happened.append(part.decode())
            yield part

    def close(self) -> None:
        self._happened.append("closed")


def ignore(*_: object) -> Callable[[bytes], object]:
    return lambda _: None


def test_the_event_is_recorded_when_the_response_is_closed_and_only_once() -> None:
    recorder = ListRecorder()
    happened: list[str] = []

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return Parts(start_response, happened)

    response = UsageMiddleware(app, recorder=recorder, usage=usage, app_id="wiki")(environ_of("/"), ignore)
    assert not happened
    for _ in response:
        assert not recorder.events
    response.close()  # type: ignore[attr-defined]  # servers look whether there is one
    response.close()  # type: ignore[attr-defined]
    assert happened == ["a", "b", "closed"]
    assert [(event.event_name, event.app_id) for event in recorder.events] == [("/ 200", "wiki")]


def test_a_request_that_passes_twice_is_recorded_once_and_to_another_end_once_more() -> None:
    recorder = ListRecorder()
    app = UsageMiddleware(flask_app(recorder), recorder=recorder, usage=usage)
    app = UsageMiddleware(app, recorder=recorder, usage=usage, app_id="crm")
    for _ in range(2):
        assert asked(validator(app), "POST", "/saved").status_code == 201
    assert sorted(event.app_id or "" for event in recorder.events) == ["", "", "crm", "crm"]


def test_where_one_application_has_nothing_to_record_the_next_that_the_request_comes_to_does() -> None:
    recorder = ListRecorder()
    first, second = UsageMiddleware(flask.Flask("first"), recorder=recorder, usage=usage), flask_app(recorder)

    def cascade(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        first(environ, ignore).close()  # type: ignore[attr-defined]
        return second(environ, start_response)

    assert asked(cascade, "POST", "/saved").status_code == 201
    assert recorder.usages == [("user@example.com", "/saved 201")]


def test_it_keeps_to_the_protocol_on_both_sides() -> None:
    recorder = ListRecorder()

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    wrapped = validator(UsageMiddleware(validator(app), recorder=recorder, usage=usage))
    response = wrapped(environ_of("/"), ignore)
    assert list(response) == [b"hello"]
    response.close()  # type: ignore[attr-defined]
    assert recorder.usages == [("user@example.com", "/ 200")]


def test_the_status_that_replaces_another_counts_and_a_response_that_never_started_does_not() -> None:
    recorder = ListRecorder()

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/replaced":
            start_response("200 OK", [])
            start_response("500 Oh", [], (None, None, None))
        return []

    wrapped = UsageMiddleware(app, recorder=recorder, usage=usage)
    for path in ("/replaced", "/never"):
        wrapped(environ_of(path), ignore).close()  # type: ignore[attr-defined]
    assert recorder.usages == [("user@example.com", "/replaced 500")]


def test_the_status_of_an_answer_that_had_begun_stays_what_the_client_has_seen() -> None:
    recorder = ListRecorder()

    def start_response(*begun: object) -> Callable[[bytes], object]:
        if len(begun) == 3:
            raise ValueError("headers were sent")  # which a server must raise again (PEP 3333)
        return ignore

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"half"
        start_response("500 Oh", [], (ValueError, ValueError("broken"), None))  # type: ignore[arg-type]

    response = UsageMiddleware(app, recorder=recorder, usage=usage)(environ_of("/"), start_response)
    with pytest.raises(ValueError, match="headers were sent"):
        list(response)
    response.close()  # type: ignore[attr-defined]
    assert recorder.usages == [("user@example.com", "/ 200")]


def test_an_application_that_raises_before_its_first_part_has_answered_nothing() -> None:
    recorder = ListRecorder()
    happened: list[str] = []

    class Broken(Parts):
        def __iter__(self) -> Iterator[bytes]:
            self._start_response("200 OK", [])  # which the server replaces, for nothing was sent
            raise RuntimeError("broken")
            yield b""

    response = UsageMiddleware(lambda _, start: Broken(start, happened), recorder=recorder, usage=usage)(
        environ_of("/"), ignore
    )
    with pytest.raises(RuntimeError, match="broken"):
        list(response)
    response.close()  # type: ignore[attr-defined]
    assert happened == ["closed"]
    assert not recorder.events


def test_a_client_that_goes_away_amid_the_response_is_recorded_and_the_response_closed_once() -> None:
    recorder = ListRecorder()
    happened: list[str] = []
    response = UsageMiddleware(lambda _, start: Parts(start, happened), recorder=recorder, usage=usage)(
        environ_of("/"), ignore
    )
    parts = iter(response)
    next(parts)
    response.close()  # type: ignore[attr-defined]
    del parts, response
    gc.collect()
    assert happened == ["a", "closed"]
    assert recorder.usages == [("user@example.com", "/ 200")]


class Handler(SimpleHandler):
    """wsgiref's server, without a network."""

    def __init__(self) -> None:
        self.output = io.BytesIO()
        super().__init__(io.BytesIO(), self.output, io.StringIO(), environ_of("/"))

    def answer(self, app: "WSGIApplication") -> bytes:
        self.run(app)
        return self.output.getvalue()


def written(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    write = start_response("200 OK", [])
    write(b"hello, ")
    return [b"world"]


def by_keyword(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    start_response("200 OK", [])
    start_response("500 Oh", [], exc_info=(None, None, None))  # type: ignore[call-arg]  # servers take it
    return [b"oh"]


@pytest.mark.parametrize(
    "app",
    [
        lambda _, start: start("200 OK", []) and [b"hello"],
        lambda _, start: start("204 No", []) and [],
        written,
        by_keyword,
    ],
)
def test_a_server_says_the_same_with_it_and_without(app: "WSGIApplication") -> None:
    recorder = ListRecorder()
    bare = Handler().answer(app)
    assert Handler().answer(UsageMiddleware(app, recorder=recorder, usage=usage)) == bare
    assert recorder.usages == [("user@example.com", f"/ {bare.split()[1].decode()}")]


@pytest.mark.parametrize("status", ["200 OK", "strange"])
def test_a_callable_that_fails_is_logged_once_and_breaks_no_request(
    caplog: pytest.LogCaptureFixture, status: str
) -> None:
    def broken(environ: "WSGIEnvironment", status: int) -> tuple[str, str] | None:
        raise KeyError(f"{environ['PATH_INFO']} {status}")

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response(status, [])
        return [b"hello"]

    recorder = ListRecorder()
    wrapped = UsageMiddleware(app, recorder=recorder, usage=broken)
    for _ in range(3):
        response = wrapped(environ_of("/"), ignore)
        assert list(response) == [b"hello"]
        response.close()  # type: ignore[attr-defined]
    assert not recorder.events
    assert [record.levelname for record in caplog.records] == ["ERROR"]
