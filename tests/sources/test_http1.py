"""HTTP/1.1 over real sockets, byte by byte: what is served, what is refused, and what no client can do to the others.

Where time matters it is the loop's own clock that is put forward, so that the server's own timer goes off.
"""

import asyncio
import functools
import inspect
import itertools
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.sources.http1 import (
    BODY_HIGH_WATER_BYTES,
    LINGER_SECONDS,
    PIPELINE_HIGH_WATER,
    SPARE_CONNECTIONS,
    Connection,
)
from collector.sources.http_application import BODY_STEP_BYTES, ConnectionLimits
from collector.sources.http_message import Answer, ClientGone, Refusal, Request, header_lines
from collector.sources.http_server import Server
from collector.sources.known_heads import Answered, Begin, KnownHeads
from tests.patience import PATIENCE_SECONDS, until

FUZZ_EXAMPLES = int(os.environ.get("COLLECTOR_FUZZ_EXAMPLES", "300"))

HEAD_SECONDS, BODY_SECONDS, IDLE_SECONDS = 10.0, 30.0, 75.0
LIMITS = {
    "head_bytes": 4096,
    "head_seconds": HEAD_SECONDS,
    "body_seconds": BODY_SECONDS,
    "idle_seconds": IDLE_SECONDS,
    "connections": 64,
    "requests_in_flight": 64,
}
ONE_READ_BYTES = 256 * 2**10
"""What asyncio and uvloop take from a socket at one time, at most."""

RESETTING = struct.pack("ii", 1, 0)
"""SO_LINGER with no time left: closing the socket sends a reset."""

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

ANSWER_FIELDS = {"content-length", "date", "connection", "x-method", "retry-after"}

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LOOK = b"GET /look HTTP/1.1\r\nHost: h\r\n\r\n"


def post(body: bytes, path: str = "/") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def chunked(body: bytes, path: str = "/") -> bytes:
    """A request as far as its body's first bytes: more follows."""
    return b"POST %b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%b" % (path.encode(), body)


# Both loops: pytest-asyncio chooses one for a whole folder only, and Hypothesis would want a loop of its own anyway.


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test, once on asyncio's loop and once on uvloop."""

    @functools.wraps(test)
    def run(*, loop_name: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(test(**arguments))

    names = inspect.signature(test)
    loop = inspect.Parameter("loop_name", inspect.Parameter.KEYWORD_ONLY)
    del run.__dict__["__wrapped__"]
    run.__signature__ = names.replace(parameters=[*names.parameters.values(), loop])  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize("loop_name", LOOPS)(run)
    return both


async def settle() -> None:
    """What was sent has been received, and whoever could go on has."""
    for _ in range(6):
        await asyncio.sleep(0)


# What is served


class Echo:
    """Answers with the request as it came. `/early` does not read it, `/gated` waits for the gate before it does."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.pending: asyncio.Future[object] | None = None  # the last answer that needs no task and takes longer
        self.served = 0
        self.begun = 0
        self.crashes: list[Exception] = []
        self.failures: list[Exception] = []
        self.most_buffered_bytes = 0

    async def answer(self, request: Request) -> Answer | None:
        self.served += 1
        try:
            return await self._answer(request)
        except ClientGone as gone:
            self.failures.append(gone)
            return None
        except Refusal as refusal:
            self.failures.append(refusal)
            return self.refuse(refusal)
        except Exception as error:  # noqa: BLE001 - it is kept, and fails the test
            self.crashes.append(error)
            return Answer(500, b"")

    def is_look(self, request: Request) -> bool:
        return request.target == "/look"

    def begin(self, request: Request) -> Begin | None:
        """The same without a task. `/held` waits for the gate, a body of odd length for some turns."""
        if (
            request.method != "POST"
            or request.target.startswith(("/gated", "/slow", "/large", "/refused"))
            or request.target.endswith("/early")
        ):
            return None

        def begun(body: bytes, _is_local: bool, answered: Answered) -> None:
            self.served += 1
            self.begun += 1
            answer = self._said(request, self._heard(request, [body]))
            if not (len(body) % 2 or request.target.startswith("/held")):
                answered(answer)
                return
            waits: Coroutine[Any, Any, object] = self.gate.wait() if request.target.startswith("/held") else settle()
            self.pending = pending = asyncio.ensure_future(waits)
            pending.add_done_callback(lambda _: answered(None if pending.cancelled() else answer))

        return begun

    def refuse(self, refusal: Refusal) -> Answer:
        assert "callback" not in str(refusal), "an exception of ours, reported as the client's mistake"
        return Answer(refusal.status, msgspec.json.encode({"label": refusal.label, "reason": str(refusal)}))

    async def _answer(self, request: Request) -> Answer:
        path = request.target
        if path.startswith("/gated"):
            await self.gate.wait()
        if path.endswith("/early"):
            return self._said(request, b"early")
        if path.startswith("/stream"):
            return Answer(200, self._stream())
        if path.startswith("/large"):
            return self._said(request, b"x" * int(path.removeprefix("/large/")))
        if path.startswith("/refused"):
            raise Refusal(413, "too large", "too_large")
        parts = []
        while True:
            self.most_buffered_bytes = max(self.most_buffered_bytes, request.buffered_bytes)
            if not (part := await request.read()):
                break
            parts.append(part)
            if path.startswith("/slow"):
                await settle()
        return self._said(request, self._heard(request, parts))

    async def _stream(self) -> AsyncGenerator[bytes]:
        yield b"x"
        await self.gate.wait()
        yield b"y"

    def _heard(self, request: Request, parts: list[bytes]) -> bytes:
        if request.target.endswith("/count"):
            parts = [b"%d " % len(part) for part in parts]
        said = {
            "method": request.method,
            "target": request.target,
            "version": request.version,
            "headers": request.headers,
            "body": b"".join(parts).decode("latin-1"),
        }
        return msgspec.json.encode(said)

    def _said(self, request: Request, content: bytes) -> Answer:
        return Answer(200, content, b"X-Method: %b\r\n" % request.method.encode())


class Got(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    content: bytes

    def said(self) -> dict[str, Any]:
        said: dict[str, Any] = msgspec.json.decode(self.content)
        return said

    @property
    def is_last(self) -> bool:
        return self.headers.get("connection") == "close"


class Client:
    """One connection, spoken in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Goes to the kernel at once, or as soon as it takes more."""
        self.writer.write(data)

    async def send_packets(self, packets: Iterable[bytes]) -> None:
        """Each is received by itself, until the server closes."""
        for packet in packets:
            if self.writer.is_closing():
                break
            self.send(packet)
            await settle()

    async def answer(self) -> Got:
        async with asyncio.timeout(PATIENCE_SECONDS):
            start, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
            version, status, phrase = start.split(" ", 2)
            assert version == "HTTP/1.1"
            assert phrase
            fields = [line.split(": ") for line in lines]
            headers = {name.lower(): value for name, value in fields}
            assert len(headers) == len(fields)
            assert headers.keys() <= ANSWER_FIELDS
            has_content = headers.get("x-method") != "HEAD" and status != "100"
            content = await self.reader.readexactly(int(headers["content-length"])) if has_content else b""
        return Got(int(status), headers, content)

    async def answers(self, count: int) -> list[Got]:
        return [await self.answer() for _ in range(count)]

    async def rest(self) -> list[Got]:
        """All answers until the server closes."""
        answers = []
        while True:
            try:
                answers.append(await self.answer())
            except asyncio.IncompleteReadError as end:
                if (end.partial, end.expected) != (b"", None):
                    raise  # in the middle of an answer
                return answers

    async def ask(self, request: bytes) -> Got:
        self.send(request)
        return await self.answer()

    async def closed(self) -> bool:
        """The server has closed, properly, and has said no more before."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.read() == b""

    async def gone(self) -> None:
        """Returns when the connection is no more, whichever way."""
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await self.reader.read(2**20):
                    pass

    def end(self) -> None:
        """Half of the connection is closed: nothing more will be sent."""
        self.writer.write_eof()

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)
        self.writer.transport.abort()


class CountingHeads(KnownHeads):
    """Counts those that were known."""

    found = 0

    def find(self, data: bytes) -> tuple[Begin, bytes] | None:
        known = super().find(data)
        self.found += known is not None
        return known


class Site:
    """A server on a free port, and its clients."""

    def __init__(self, server: Server, app: Echo, listener: asyncio.Server) -> None:
        self.server = server
        self.heads = server.known_heads = CountingHeads(server.limits.head_bytes)
        self.app = app
        self.listener = listener
        self.port: int = listener.sockets[0].getsockname()[1]
        self._clients: list[Client] = []

    async def client(self, *, receive_bytes: int | None = None) -> Client:
        """A new connection; `receive_bytes` is for one that will not read: so much the kernel does for it."""
        own = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio looks at this before it turns Nagle's wait off
        if receive_bytes is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", self.port))
        limit = receive_bytes or 2**20
        client = Client(*await asyncio.open_connection(sock=own, limit=limit))
        self._clients.append(client)
        return client

    @property
    def only(self) -> Connection:
        (connection,) = self.server._connections
        return connection

    async def later(self, seconds: float) -> None:
        """It is `seconds` later, and what is due happens.

        asyncio's loop has its clock put forward. That of uvloop cannot be, so there the deadlines come nearer instead.
        """
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.BaseEventLoop):
            time = loop.time
            loop.time = lambda: time() + seconds  # type: ignore[method-assign]
        else:
            for connection in self.server._connections:
                connection.deadline -= seconds
            if self.server._tick is not None:
                self.server._tick.cancel()
            self.server._look()
        await settle()

    async def leave(self) -> None:
        for client in self._clients:
            client.writer.transport.abort()
        await settle()


@asynccontextmanager
async def serving(**limits: float) -> AsyncIterator[Site]:
    """A site whose loop has had nothing to complain of, and whose books are right when all clients have left."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    app = Echo()
    server = Server(app, msgspec.convert(LIMITS | limits, ConnectionLimits))
    listener = await loop.create_server(server.connect, "127.0.0.1", 0)
    site = Site(server, app, listener)
    try:
        yield site
    finally:
        app.gate.set()
        await site.leave()
        listener.close()
        await server.stop(PATIENCE_SECONDS)
    assert complaints == []
    assert app.crashes == []
    assert server.connections == 0
    assert server.in_flight == 0


# What a request is


@on_both_loops
@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n", {"method": "GET", "target": "/a?b=c", "version": "1.1"}),
        (b"GET / HTTP/1.1\r\nhOST: h\r\nX-A:\tb \r\n\r\n", {"headers": {"host": "h", "x-a": "b"}}),
        (b"GET / HTTP/1.1\r\nHost: h\r\nE:\r\nF:  \r\n\r\n", {"headers": {"host": "h", "e": "", "f": ""}}),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\na: 2\r\nA: 3\r\n\r\n", {"headers": {"host": "h", "a": "1, 2, 3"}}),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: \xe9\xff\r\n\r\n", {"headers": {"host": "h", "a": "\xe9\xff"}}),
        (b"\r\n\r\n" + GET, {"method": "GET"}),
        (b"GET HTTP://h:1/a?b HTTP/1.1\r\nHost: evil\r\n\r\n", {"target": "/a?b", "headers": {"host": "h:1"}}),
        (b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", {"target": "/", "headers": {"host": "h"}}),
        (b"GET http://h?b HTTP/1.1\r\nHost: h\r\n\r\n", {"target": "/?b", "headers": {"host": "h"}}),
        (post(b"body"), {"method": "POST", "body": "body"}),
        (post(b"\0\xff"), {"body": "\0\xff"}),
        (post(b""), {"body": ""}),
        (chunked(b"0\r\n\r\n"), {"body": ""}),
        (chunked(b"3\r\nabc\r\n0002\r\nde\r\n0\r\n\r\n"), {"body": "abcde"}),
        (chunked(b'A;x=1;y="a;b"\r\n0123456789\r\n0;z\r\n\r\n'), {"body": "0123456789"}),
        (
            chunked(b"1\r\na\r\n0\r\nX-T: 1\r\nHost: evil\r\nAuthorization:\r\n\r\n"),
            {"body": "a", "headers": {"host": "h", "transfer-encoding": "chunked"}},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            {"body": "a"},
        ),
    ],
)
async def test_a_request_is_what_its_bytes_say_and_the_connection_stays(
    request_bytes: bytes, expected: dict[str, object]
) -> None:
    async with serving() as site:
        client = await site.client()
        for _ in range(2):
            got = await client.ask(request_bytes)
            assert got.status == 200
            assert not got.is_last
            assert got.said() | expected == got.said()
            assert got.headers["date"].endswith(" GMT")
        assert (await client.ask(GET)).said()["headers"] == {"host": "h"}


@on_both_loops
async def test_an_answer_to_head_has_the_same_head_and_no_content() -> None:
    async with serving() as site:
        client = await site.client()
        got = await client.ask(b"HEAD /early HTTP/1.1\r\nHost: h\r\n\r\n")
        assert got.headers["content-length"] == str(len(b"early"))
        assert (await client.ask(GET)).status == 200


@on_both_loops
@pytest.mark.parametrize(
    ("request_bytes", "connection"),
    [
        (GET, None),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "close"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: foo, Close\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive"),
        (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", "keep-alive"),
        (b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\na", "close"),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", "close"),
        (b"OPTIONS * RTSP/1.0\r\n\r\n", "close"),
    ],
)
async def test_a_connection_is_kept_as_the_client_and_its_version_have_it(
    request_bytes: bytes, connection: str | None
) -> None:
    async with serving() as site:
        client = await site.client()
        got = await client.ask(request_bytes)
        assert (got.status, got.headers.get("connection")) == (200, connection)
        if connection == "close":
            assert await client.closed()
        else:
            assert (await client.ask(request_bytes)).status == 200


@on_both_loops
async def test_what_follows_a_request_that_wants_the_connection_closed_is_not_served() -> None:
    async with serving() as site:
        client = await site.client()
        got = await client.ask(b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET)
        assert got.is_last
        assert got.said()["target"] == "/last"
        assert await client.closed()
        assert site.app.served == 1


CONVERSATION = [
    b"GET /one HTTP/1.1\r\nHost: h\r\nEmpty:\r\nTwice: 1\r\nTwice: 2\r\n\r\n",
    post(b"two\r\n\r\n", "/two"),
    b"HEAD /early HTTP/1.1\r\nHost: h\r\n\r\n",
    chunked(b'2;x="y"\r\nab\r\n1\r\n\r\r\n0\r\nT: 1\r\nU:\r\n\r\n', "/four"),
    b"POST /five HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nfive",
    b"GET /six HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
]


def without_date(got: Got) -> Got:
    return got._replace(headers={name: value for name, value in got.headers.items() if name != "date"})


@on_both_loops
async def test_requests_are_answered_in_order_and_the_same_wherever_their_bytes_are_split() -> None:
    sent = b"".join(CONVERSATION)
    async with serving() as site:
        client = await site.client()
        expected = [without_date(await client.ask(request)) for request in CONVERSATION]
        assert [got.said().get("target") for got in expected if got.content.startswith(b"{")] == [
            "/one",
            "/two",
            "/four",
            "/five",
            "/six",
        ]
        splits: list[Sequence[bytes]] = [(sent[:at], sent[at:]) for at in range(len(sent))]
        splits.append([sent[at : at + 1] for at in range(len(sent))])
        for packets in splits:
            await client.send_packets(packets)
            assert [without_date(got) for got in await client.answers(len(CONVERSATION))] == expected


@on_both_loops
async def test_thousands_of_requests_in_one_packet_are_all_answered() -> None:
    async with serving() as site:
        client = await site.client()
        count = 5000
        client.send(b"".join(post(b"%d" % number) for number in range(count)))
        assert [got.said()["body"] for got in await client.answers(count)] == [str(number) for number in range(count)]


@on_both_loops
@pytest.mark.parametrize(
    ("request_bytes", "body", "is_last"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n%b\r\n", "", False),
        (b"POST / HTTP/1.1\r\nHost: h\r\n%bContent-Length: 4\r\n\r\nbody", "body", False),
        (b"POST / HTTP/1.1\r\nHost: h\r\n%bTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "body", False),
        (b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%bContent-Length: 4\r\n\r\nbody", "body", True),
        (b"GET / HTTP/1.0\r\n%b\r\n", "", True),
    ],
)
async def test_a_wish_to_upgrade_is_ignored(request_bytes: bytes, body: str, is_last: bool) -> None:
    # As `curl --http2` and Java's HttpClient send it, with any request.
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    async with serving() as site:
        client = await site.client()
        got = await client.ask(request_bytes % wish)
        assert (got.status, got.is_last, got.said()["body"]) == (200, is_last, body)
        assert "upgrade" not in got.said()["headers"]
        if is_last:
            assert await client.closed()
        else:
            assert (await client.ask(GET)).status == 200


@on_both_loops
async def test_thousands_of_wishes_to_upgrade_in_one_packet_are_ignored() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(2000 * b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        assert {got.status for got in await client.answers(2000)} == {200}


# What is refused

TLS_HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(range(200))


@on_both_loops
@pytest.mark.parametrize("is_dripped", [False, True], ids=["whole", "dripped"])
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(TLS_HELLO, 400, id="TLS"),
        pytest.param(b"hello\n\n", 400, id="a greeting"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400, id="HTTP/2"),
        pytest.param(bytes(100), 400, id="zeros"),
        pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 400, id="no known version"),
        pytest.param(b"get / HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="no known method"),
        pytest.param(b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="space in the target"),
        pytest.param(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", 501, id="CONNECT"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n\r\n", 400, id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400, id="two Hosts"),
        pytest.param(b"GET / HTTP/1.0\r\nHost: h\r\nhost: i\r\n\r\n", 400, id="two Hosts in HTTP/1.0"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", 400, id="line feed alone"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\n\n", 400, id="line feeds alone"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\rA: b\r\n\r\n", 400, id="carriage return alone"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n i\r\n\r\n", 400, id="folded field"),
        pytest.param(b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400, id="folded first field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, id="space before the colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nA\r\n\r\n", 400, id="no colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n", 400, id="no name"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n", 400, id="NUL in a value"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nA\0: b\r\n\r\n", 400, id="NUL in a name"),
        *(
            pytest.param(
                b"POST / HTTP/1.1\r\nHost: h\r\n" + framing.replace(b"|", b"\r\n") + b"\r\n\r\n0\r\n\r\n",
                status,
                id=framing.decode(),
            )
            for framing, status in (
                (b"Content-Length: 5|Transfer-Encoding: chunked", 400),
                (b"Transfer-Encoding: chunked|Content-Length: 5", 400),
                (b"Content-Length: 5|Content-Length: 6", 400),
                (b"Content-Length: 5|Content-Length: 5", 400),
                (b"Content-Length: 5, 5", 400),
                (b"Content-Length: -1", 400),
                (b"Content-Length: +5", 400),
                (b"Content-Length: 5 5", 400),
                (b"Content-Length: 0x5", 400),
                (b"Content-Length: 5.0", 400),
                (b"Content-Length:", 400),
                (b"Content-Length: 18446744073709551616", 400),
                (b"Content-Length: 99999999999999999999999999", 400),
                (b"Transfer-Encoding: gzip", 501),
                (b"Transfer-Encoding: identity", 501),
                (b"Transfer-Encoding: xchunked", 501),
                (b"Transfer-Encoding: gzip, chunked", 501),
                (b"Transfer-Encoding: gzip|Transfer-Encoding: chunked", 501),
                (b"Transfer-Encoding: chunked, gzip", 400),
                (b"Transfer-Encoding: chunked|Transfer-Encoding: chunked", 400),
                (b"Transfer-Encoding:|Content-Length: 5", 400),
                (b"Transfer-Encoding: \x0bchunked", 400),
            )
        ),
        pytest.param(
            b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            id="chunked in HTTP/1.0",
        ),
        *(
            pytest.param(chunked(body), 400, id=f"chunk {body!r}")
            for body in (
                b"x\r\n",
                b"-1\r\n",
                b"0x1\r\na\r\n0\r\n\r\n",
                b" 1\r\na\r\n0\r\n\r\n",
                b"1 \r\na\r\n0\r\n\r\n",
                b"1\na\r\n0\r\n\r\n",
                b"1;\na\r\n0\r\n\r\n",
                b"1;a=b\nc\r\na\r\n0\r\n\r\n",
                b"1\r\nab\r\n0\r\n\r\n",
                b"1\r\na\n0\r\n\r\n",
                b"fffffffffffffffff\r\n",
                b"1\r\na\r\n0\r\nContent-Length: 1\r\n\r\n",
                b"1\r\na\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"1\r\na\r\n0\r\nbad trailer\r\n\r\n",
            )
        ),
    ],
)
async def test_what_is_no_proper_request_is_refused_and_nothing_after_it_is_heard(
    sent: bytes, status: int, is_dripped: bool
) -> None:
    async with serving() as site:
        client = await site.client()
        await client.send_packets([bytes([byte]) for byte in sent + GET] if is_dripped else [sent + GET])
        got = await client.answer()
        assert (got.status, got.is_last) == (status, True)
        assert got.said()["reason"]
        client.end()
        assert await client.closed()
        assert site.app.served <= 1  # a body may turn out to be none while it is read


@on_both_loops
async def test_requests_before_one_that_is_refused_are_answered_first() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1") + post(b"2", "/gated/early") + b"nonsense")
        assert (await client.answer()).said()["body"] == "1"
        site.app.gate.set()
        early, refused = await client.answers(2)
        assert (early.status, early.is_last) == (200, False)
        assert (refused.status, refused.is_last) == (400, True)
        client.end()
        assert await client.closed()


@on_both_loops
@pytest.mark.parametrize("packet_bytes", [1000, 2**20], ids=["in pieces", "at once"])
@pytest.mark.parametrize(
    ("start", "more"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nA: ", b"x", id="one field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nA", b"x", id="one field's name"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n", b"A: b\r\n", id="fields"),
        pytest.param(b"GET /", b"x", id="target"),
        pytest.param(b"", b"\r\n", id="blank lines"),
        pytest.param(chunked(b"1\r\na\r\n0\r\n"), b"A: b\r\n", id="trailers"),
        pytest.param(chunked(b"1\r\na\r\n0\r\nA: "), b"x", id="one trailer"),
        pytest.param(chunked(b"1;"), b"x", id="chunk extension"),
        pytest.param(chunked(b"1\r\na\r\n"), b"0", id="chunk size"),
        pytest.param(GET, b"\r\n", id="blank lines after a request"),
    ],
)
async def test_no_part_of_a_head_is_endless(start: bytes, more: bytes, packet_bytes: int) -> None:
    async with serving() as site:
        client = await site.client()
        answered = asyncio.create_task(client.answers(2 if start == GET else 1))
        sent = start + more * (2**20 // len(more))
        await client.send_packets(sent[at : at + packet_bytes] for at in range(0, 100 * packet_bytes, packet_bytes))
        got = (await answered)[-1]
        assert (got.status, got.is_last) == (431, True)
        assert "http.max_header_bytes = 4096" in got.said()["reason"]
        client.end()
        assert await client.closed()


@on_both_loops
@pytest.mark.parametrize(("value_bytes", "status"), [(4000, 200), (4100, 431)])
async def test_a_head_up_to_the_limit_is_served(value_bytes: int, status: int) -> None:
    async with serving() as site:
        client = await site.client()
        head = b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * value_bytes + b"\r\n\r\n"
        assert (await client.ask(head)).status == status


@on_both_loops
async def test_a_body_may_come_in_the_smallest_chunks() -> None:
    async with serving() as site:
        client = await site.client()
        got = await client.ask(chunked(20_000 * b"1;x\r\na\r\n" + b"0\r\n\r\n"))
        assert got.said()["body"] == 20_000 * "a"


# Expect: 100-continue

EXPECTING = b"POST %b HTTP/1.%d\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n"


@on_both_loops
async def test_the_client_is_told_to_continue_when_its_body_is_read() -> None:
    async with serving() as site:
        client = await site.client()
        for _ in range(2):
            client.send(EXPECTING % (b"/gated", 1))
            await settle()
            assert not client.reader._buffer  # type: ignore[attr-defined]
            site.app.gate.set()
            assert (await client.answer()).status == 100
            got = await client.ask(b"body")
            assert (got.status, got.is_last, got.said()["body"]) == (200, False, "body")
            site.app.gate.clear()


@on_both_loops
@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        pytest.param(EXPECTING % (b"/", 1) + b"body", [200], id="the body is there already"),
        pytest.param(EXPECTING % (b"/", 0), [], id="HTTP/1.0 knows no interim answers"),
        pytest.param(EXPECTING % (b"/refused", 1), [413], id="the request is refused"),
        pytest.param(EXPECTING % (b"/early", 1), [200], id="the body is not wanted"),
        pytest.param(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", [400], id="the head is refused"),
        pytest.param(GET + EXPECTING % (b"/", 1), [200, 100], id="after the answers to earlier requests"),
    ],
)
async def test_the_client_is_told_to_continue_only_where_it_must(request_bytes: bytes, statuses: list[int]) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(request_bytes)
        assert [got.status for got in await client.answers(len(statuses))] == statuses
        await settle()
        client.end()
        assert await client.closed()


# Answers that come early, clients that leave early


@on_both_loops
@pytest.mark.parametrize("path", ["/early", "/refused", "/gated/early"])
async def test_an_answer_before_the_end_of_the_body_arrives_whole_although_the_client_goes_on_sending(
    path: str,
) -> None:
    async with serving() as site:
        client = await site.client()
        head = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (path.encode(), 2**40)
        client.send(head + b"x" * (50 * BODY_HIGH_WATER_BYTES))
        if path.startswith("/gated"):
            await until(lambda: site.only._is_paused)
            site.app.gate.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await client.writer.drain()
        got = await client.answer()
        assert (got.status, got.is_last) == (413 if path == "/refused" else 200, True)
        assert not client.writer.is_closing()
        client.end()
        assert await client.closed()
        assert site.app.served == 1


@on_both_loops
async def test_a_client_that_sends_on_for_ever_after_its_answer_is_cut_off() -> None:
    async with serving() as site:
        client = await site.client()
        got = await client.ask(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
        assert got.is_last
        await site.later(LINGER_SECONDS / 2)
        client.send(b"x")
        await settle()
        assert site.server.connections == 1
        await site.later(LINGER_SECONDS)
        assert site.server.connections == 0


@on_both_loops
async def test_requests_that_are_complete_are_answered_to_a_client_that_has_ended_its_half() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1", "/gated") + 50 * post(b"2") + b"GET /incomplete HT")
        client.end()
        await settle()
        site.app.gate.set()
        assert [got.said()["body"] for got in await client.answers(51)] == ["1", *50 * ["2"]]
        assert await client.closed()
        assert site.server.connections == 0


@on_both_loops
@pytest.mark.parametrize("sent", [b"nonsense", GET + b"nonsense", post(b"1234", "/gated/early")[:-1]])
async def test_a_connection_does_not_stay_for_a_client_that_has_ended_its_half(sent: bytes) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(sent)
        client.end()
        await settle()
        site.app.gate.set()
        assert (await client.rest())[-1].is_last
        await settle()
        assert site.server.connections == 0


@on_both_loops
@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(post(b"1234")[:-1], id="length"),
        pytest.param(chunked(b"1\r\na\r\n"), id="chunked"),
        pytest.param(EXPECTING % (b"/", 1), id="expecting"),
    ],
)
async def test_a_client_that_leaves_in_the_middle_of_a_body_is_gone_for_the_handler_and_nobody_else(
    sent: bytes, how: str
) -> None:
    async with serving() as site:
        client, other = await site.client(), await site.client()
        client.send(sent)
        await settle()
        getattr(client, how)()
        await until(lambda: len(site.app.failures) == 1)
        assert isinstance(site.app.failures[0], ClientGone)
        await settle()
        assert site.server.connections == 1
        assert (await other.ask(GET)).status == 200


@on_both_loops
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_what_came_before_the_client_left_can_still_be_read(how: str) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1234", "/gated")[:-1])
        await settle()
        request = site.only._requests[0]
        assert isinstance(request, Request)
        getattr(client, how)()
        await settle()
        assert await request.read() == b"123"
        with pytest.raises(ClientGone):
            await request.read()


@on_both_loops
async def test_a_request_whose_client_has_left_is_served_all_the_same() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(3 * post(b"1", "/gated"))
        await settle()
        client.reset()
        await settle()
        assert site.server.connections == 1
        site.app.gate.set()
        await until(lambda: site.server.connections == 0)
        assert site.app.served == 3


async def test_a_reset_between_an_early_answer_and_the_end_of_it_is_nobodys_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as site:
        regulate = Connection.regulate

        def reset_and_regulate(connection: Connection) -> None:
            if site.app.served and client.fileno() != -1:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)
                client.close()
            regulate(connection)

        monkeypatch.setattr(Connection, "regulate", reset_and_regulate)
        client = socket.create_connection(("127.0.0.1", site.port))
        client.sendall(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
        await until(lambda: site.app.served == 1)
        await until(lambda: site.server.connections == 0)


@on_both_loops
async def test_a_handler_that_reads_on_a_connection_that_is_being_closed_meets_nothing_worse_than_client_gone() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(EXPECTING % (b"/gated", 1))
        await settle()
        request = site.only._requests[0]
        assert isinstance(request, Request)
        site.only.abort()
        with pytest.raises(ClientGone):
            await request.read()


# Time


@on_both_loops
@pytest.mark.parametrize("is_dripping", [False, True], ids=["silent", "dripping"])
@pytest.mark.parametrize(
    ("sent", "limit_seconds", "statuses"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost", HEAD_SECONDS, [408], id="head"),
        pytest.param(GET + GET[:-2], HEAD_SECONDS, [200, 408], id="second head"),
        pytest.param(post(b"12345678")[:-8], BODY_SECONDS, [408], id="body"),
        pytest.param(post(b"12345678")[:-7], BODY_SECONDS, [408], id="rest of the body"),
        pytest.param(chunked(b"1\r\na\r\n0\r\nA: b\r\n"), BODY_SECONDS, [408], id="trailers"),
        pytest.param(post(b"1") + post(b"12345678")[:-7], BODY_SECONDS, [200, 408], id="second body"),
        pytest.param(post(b"12345678", "/gated")[:-7], BODY_SECONDS, [408], id="body that is not read yet"),
    ],
)
async def test_a_client_that_is_too_slow_with_its_request_is_told_so(
    sent: bytes, limit_seconds: float, statuses: list[int], is_dripping: bool
) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(sent)
        await settle()
        for _ in range(3):
            await site.later(limit_seconds * 0.3)
            assert not site.only._is_deaf
            client.send(b"a" * is_dripping)
            await settle()
        await site.later(limit_seconds * 0.2)
        site.app.gate.set()
        answers = await client.answers(len(statuses))
        assert [got.status for got in answers] == statuses
        assert answers[-1].is_last
        assert answers[-1].said()["label"] == "slow"
        client.end()
        assert await client.closed()


@on_both_loops
@pytest.mark.parametrize("dripped", [b"", b"\r\n"], ids=["silent", "dripping"])
@pytest.mark.parametrize(
    ("sent", "limit_seconds"),
    [pytest.param(b"", HEAD_SECONDS, id="no request yet"), pytest.param(GET, IDLE_SECONDS, id="no request any more")],
)
async def test_a_connection_without_a_request_is_closed_without_a_word(
    sent: bytes, limit_seconds: float, dripped: bytes
) -> None:
    async with serving() as site:
        client = await site.client()
        if sent:
            assert (await client.ask(sent)).status == 200
        for _ in range(3):
            client.send(dripped)
            await settle()
            await site.later(limit_seconds * 0.3)
            assert site.server.connections == 1
        await site.later(limit_seconds * 0.2)
        assert await client.closed()


@on_both_loops
async def test_a_slow_body_is_taken_as_long_as_it_goes_on() -> None:
    async with serving() as site:
        client = await site.client()
        steps = 6
        client.send(b"POST /count HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (steps * BODY_STEP_BYTES))
        for _ in range(steps):
            await settle()
            await site.later(BODY_SECONDS * 0.9)
            client.send(b"x" * BODY_STEP_BYTES)
        assert (await client.answer()).status == 200


@on_both_loops
async def test_a_handler_takes_the_time_it_takes() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1", "/gated"))
        await settle()
        await site.later(100 * IDLE_SECONDS)
        site.app.gate.set()
        assert (await client.answer()).status == 200


@on_both_loops
async def test_a_client_is_not_late_while_its_body_is_not_read() -> None:
    async with serving() as site:
        client = await site.client()
        size = 20 * BODY_HIGH_WATER_BYTES
        client.send(b"POST /gated/count HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await until(lambda: site.only._is_paused)
        await site.later(100 * BODY_SECONDS)
        site.app.gate.set()
        got = await client.answer()
        assert sum(int(count) for count in got.said()["body"].split()) == size


@on_both_loops
async def test_a_client_that_stops_sending_once_it_is_read_again_is_late() -> None:
    async with serving() as site:
        client = await site.client()
        size = 2 * BODY_HIGH_WATER_BYTES
        client.send(b"POST /gated/count HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (size + 1) + b"x" * size)
        await until(lambda: site.only._is_paused)
        await site.later(100 * BODY_SECONDS)
        site.app.gate.set()
        await settle()
        await site.later(BODY_SECONDS + 1)
        assert (await client.answer()).status == 408


@on_both_loops
@pytest.mark.parametrize("has_ended", [False, True], ids=["open", "half closed"])
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(b"", id="and sends nothing"),
        pytest.param(GET * 10, id="and sends requests"),
        pytest.param(GET * (10 * PIPELINE_HIGH_WATER), id="and sends many requests"),
        pytest.param(GET[:-2], id="and sends half a request"),
        pytest.param(post(b"1234")[:-1], id="and sends half a body"),
    ],
)
async def test_a_client_that_does_not_read_its_answers_is_cut_off(more: bytes, has_ended: bool) -> None:
    async with serving() as site:
        client = await site.client(receive_bytes=4096)
        client.send(b"GET /large/10000000 HTTP/1.1\r\nHost: h\r\n\r\n" + more)
        await until(lambda: site.only._writable is not None)
        client.send(more)
        if has_ended:
            client.end()
        await settle()
        await site.later(IDLE_SECONDS - 2)
        assert site.server.connections == 1
        await site.later(4)
        await until(lambda: site.server.connections == 0)


@on_both_loops
@pytest.mark.parametrize(
    "last",
    [
        pytest.param(GET, id="idle"),
        pytest.param(GET + GET[:-2], id="half a request"),
        pytest.param(GET + post(b"1234")[:-1], id="half a body"),
    ],
)
async def test_a_client_that_reads_some_of_its_answers_and_then_no_more_is_cut_off(last: bytes) -> None:
    async with serving() as site:
        client = await site.client(receive_bytes=4096)
        client.send(b"GET /large/10000000 HTTP/1.1\r\nHost: h\r\n\r\n" + last)
        await until(lambda: site.only._writable is not None)
        connection = site.only
        while connection._writable is not None:
            await client.reader.read(10_000)
        await settle()
        for _ in range(2):  # one to be told, one to be cut off
            await site.later(IDLE_SECONDS + 2)
        await until(lambda: site.server.connections == 0)


@on_both_loops
@pytest.mark.parametrize("how", ["Connection: close", "HTTP/1.0", "half close"])
async def test_a_client_that_leaves_the_end_of_its_last_answer_is_cut_off(how: str) -> None:
    async with serving() as site:
        site.listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = await site.client(receive_bytes=4096)
        version = b"1.0" if how == "HTTP/1.0" else b"1.1"
        fields = b"Connection: close\r\n" if how == "Connection: close" else b""
        # Less than what makes the transport ask for a pause: to the server it is as good as sent.
        client.send(b"GET /large/60000 HTTP/%b\r\nHost: h\r\n%b\r\n" % (version, fields))
        await until(lambda: site.app.served == 1)
        if how == "half close":
            client.end()
        await settle()
        await site.later(IDLE_SECONDS - 2)
        assert site.server.connections == 1
        await site.later(4)
        await until(lambda: site.server.connections == 0)


@on_both_loops
async def test_an_idle_client_that_has_not_read_its_last_answer_is_cut_off_too() -> None:
    async with serving() as site:
        site.listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = await site.client(receive_bytes=4096)
        client.send(b"GET /large/60000 HTTP/1.1\r\nHost: h\r\n\r\n")  # the transport asks for no pause
        await until(lambda: site.app.served == 1)
        await settle()
        for _ in range(2):  # one to be closed once all is sent, one to be cut off
            assert site.server.connections == 1
            await site.later(IDLE_SECONDS + 2)
        await until(lambda: site.server.connections == 0)


@on_both_loops
async def test_a_client_that_reads_slowly_gets_its_answer_whole() -> None:
    async with serving() as site:
        client = await site.client(receive_bytes=4096)
        client.send(b"GET /large/3000000 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        await until(lambda: site.only._writable is not None)
        await site.later(IDLE_SECONDS - 2)
        assert len((await client.answer()).content) == 3_000_000


@on_both_loops
async def test_an_answer_is_not_cut_off_by_a_half_request_that_was_begun_after_it_was_asked_for() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1", "/gated") + b"GET / HT")
        client.end()
        await settle()
        await site.later(2 * HEAD_SECONDS)
        site.app.gate.set()
        assert (await client.answer()).status == 200


# Backpressure


@on_both_loops
@pytest.mark.parametrize("path", ["/gated/count", "/slow/count"])
async def test_a_body_is_read_no_faster_than_its_handler_reads(path: str) -> None:
    async with serving() as site:
        client = await site.client()
        size = 40 * BODY_HIGH_WATER_BYTES
        client.send(b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (path.encode(), size) + b"x" * size)
        if path.startswith("/gated"):
            await until(lambda: site.only._is_paused)
            await settle()
            site.app.gate.set()
        got = await client.answer()
        assert sum(int(count) for count in got.said()["body"].split()) == size
        assert 2 * 2**10 < site.app.most_buffered_bytes <= BODY_HIGH_WATER_BYTES + ONE_READ_BYTES


def waiting_bytes(connection: Connection) -> int:
    return sum(request.buffered_bytes for request in connection._requests if isinstance(request, Request))


@on_both_loops
@pytest.mark.parametrize("body_bytes", [0, 1000, BODY_HIGH_WATER_BYTES - 1, BODY_HIGH_WATER_BYTES * 3])
async def test_requests_are_read_no_faster_than_they_are_answered(body_bytes: int) -> None:
    async with serving() as site:
        client = await site.client()
        count = 60 if body_bytes > 1000 else 6000
        client.send(b"GET /gated HTTP/1.1\r\nHost: h\r\n\r\n" + count * post(b"x" * body_bytes, "/count"))
        await until(lambda: site.only._is_paused)
        await settle()
        connection = site.only
        one_read = ONE_READ_BYTES // len(post(b"x" * body_bytes))
        assert len(connection._requests) <= PIPELINE_HIGH_WATER + one_read + 2
        assert waiting_bytes(connection) <= BODY_HIGH_WATER_BYTES + ONE_READ_BYTES
        site.app.gate.set()
        for got in await client.answers(count + 1):
            assert got.status == 200
        assert waiting_bytes(connection) == 0


@on_both_loops
async def test_bodies_that_nobody_has_read_do_not_stop_the_connection() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(30 * post(b"x" * (BODY_HIGH_WATER_BYTES // 2), "/gated/early"))
        await until(lambda: site.only._is_paused)
        site.app.gate.set()
        first = await client.answer()
        assert first.status == 200


# Limits


@on_both_loops
async def test_a_connection_too_many_is_told_so_and_closed_and_the_others_go_on() -> None:
    async with serving(connections=2) as site:
        first, second = await site.client(), await site.client()
        for client in (first, second):
            assert (await client.ask(GET)).status == 200
        for message in (GET, post(b"ab"), post(b"ab"), post(b"ab")):
            third = await site.client()
            got = await third.ask(message)
            assert (got.status, got.is_last, got.said()["label"]) == (503, True, "connections")
            assert "http.max_connections = 2" in got.said()["reason"]
            await third.gone()
            assert (await second.ask(GET)).status == 200
        assert site.app.served == 6
        first.reset()
        await until(lambda: site.server.connections == 1)
        assert (await (await site.client()).ask(GET)).status == 200


@on_both_loops
async def test_some_connections_are_spared_for_a_look_each() -> None:
    async with serving(connections=1) as site:
        only = await site.client()
        assert (await only.ask(LOOK)).is_last is False
        for _ in range(3):
            spare = [await site.client() for _ in range(SPARE_CONNECTIONS)]
            unasked = await site.client()
            got = await unasked.answer()
            assert (got.status, got.is_last, got.said()["label"]) == (503, True, "connections")
            assert await unasked.closed()
            for client in spare:
                client.send(LOOK + LOOK)
                got = await client.answer()
                assert (got.status, got.is_last) == (200, True)
                await client.gone()
        assert (await only.ask(GET)).status == 200


@on_both_loops
async def test_a_request_too_many_is_refused_and_its_connection_goes_on() -> None:
    async with serving(requests_in_flight=1) as site:
        first, second = await site.client(), await site.client()
        first.send(post(b"1", "/gated"))
        await settle()
        assert site.server.in_flight == 1
        for _ in range(2):
            got = await second.ask(post(b"2"))
            assert (got.status, got.is_last, got.said()["label"]) == (503, False, "requests_in_flight")
            assert (await second.ask(LOOK)).status == 200
        site.app.gate.set()
        assert (await first.answer()).said()["body"] == "1"
        assert (await second.ask(post(b"2"))).said()["body"] == "2"


# Stop


@on_both_loops
async def test_a_stop_closes_idle_connections_at_once_and_answers_what_is_asked() -> None:
    async with serving() as site:
        idle, fresh, half, busy = [await site.client() for _ in range(4)]
        assert (await idle.ask(GET)).status == 200
        half.send(GET[:-2])
        busy.send(post(b"1", "/gated") + post(b"2"))
        await settle()
        site.listener.close()
        stop = asyncio.create_task(site.server.stop(PATIENCE_SECONDS))
        assert await idle.closed()
        fresh.send(GET)
        half.send(GET[-2:])
        for client in (fresh, half):
            got = await client.answer()
            assert (got.status, got.is_last) == (200, True)
            assert await client.closed()
        assert not stop.done()
        busy.send(post(b"3"))
        await settle()
        site.app.gate.set()
        answers = await busy.answers(2)
        assert [(got.said()["body"], got.is_last) for got in answers] == [("1", False), ("2", True)]
        await busy.gone()
        await stop
        await site.server.stop(PATIENCE_SECONDS)


@on_both_loops
@pytest.mark.parametrize("path", ["/", "/gated"])
async def test_a_request_that_is_coming_in_at_a_stop_may_still_become_complete(path: str) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1234", path)[:-1])
        await settle()
        stop = asyncio.create_task(site.server.stop(PATIENCE_SECONDS))
        await settle()
        client.send(b"4")
        await settle()
        site.app.gate.set()
        got = await client.answer()
        assert (got.said()["body"], got.is_last) == ("1234", True)
        assert await client.closed()
        await stop


async def test_a_request_that_does_not_become_complete_after_a_stop_is_refused() -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1234")[:-1])
        await settle()
        stop = asyncio.create_task(site.server.stop(3.0))
        await settle()
        await site.later(2.9)
        assert site.server.connections == 1
        await site.later(0.2)
        got = await client.answer()
        assert (got.status, got.is_last, got.said()["label"]) == (503, True, "unavailable")
        client.end()
        assert await client.closed()
        await stop


async def test_who_has_asked_for_nothing_a_while_after_a_stop_is_let_go() -> None:
    async with serving() as site:
        silent, half = [await site.client() for _ in range(2)]
        half.send(GET[:-2])
        await settle()
        stop = asyncio.create_task(site.server.stop(3.0))
        await settle()
        await site.later(2.9)
        assert site.server.connections == 2
        await site.later(0.2)
        assert await silent.closed()
        got = await half.answer()
        assert (got.status, got.is_last, got.said()["label"]) == (503, True, "unavailable")
        half.end()
        assert await half.closed()
        await stop


@pytest.mark.parametrize("is_sending", [False, True], ids=["complete", "incomplete"])
async def test_a_stop_does_not_wait_for_ever(is_sending: bool) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(post(b"1234", "/gated")[: -1 if is_sending else None])
        await settle()
        stop = asyncio.create_task(site.server.stop(3.0))
        for seconds in (3.0, LINGER_SECONDS, 3.0):
            await settle()
            assert not stop.done()
            await site.later(seconds)
        await stop
        await client.gone()
        assert site.server.connections == 1  # it is being handled, and nobody takes that away


@on_both_loops
async def test_a_connection_that_comes_when_all_has_stopped_is_closed() -> None:
    async with serving() as site:
        ours, theirs = socket.socketpair()
        site.listener.close()
        await site.server.stop(PATIENCE_SECONDS)
        await asyncio.get_running_loop().connect_accepted_socket(site.server.connect, ours)
        client = Client(*await asyncio.open_connection(sock=theirs))
        client.send(GET)
        await client.gone()
        assert site.app.served == 0
        assert site.server.connections == 0
        client.writer.close()


# Whatever is sent


@contextmanager
def site_on(loop_name: str) -> Iterator[tuple[asyncio.Runner, Site]]:
    """A site for all examples of a property."""
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        context = serving()
        site = runner.run(context.__aenter__())
        try:
            yield runner, site
        finally:
            runner.run(context.__aexit__(None, None, None))


PLACES = st.lists(st.integers(0, 10_000), max_size=5)


def cut(sent: bytes, places: Iterable[int]) -> list[bytes]:
    """The same bytes in packets."""
    bounds = [0, *sorted({place % (len(sent) + 1) for place in places}), len(sent)]
    return [sent[start:end] for start, end in itertools.pairwise(bounds)]


TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8)
VALUE = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=12).map(
    lambda text: text.strip(" ")
)
FIELDS = st.dictionaries(TOKEN.map(lambda name: f"x-{name.lower()}"), VALUE, max_size=4)


@st.composite
def proper(draw: st.DrawFn) -> tuple[bytes, dict[str, object]]:
    """A request, and what it says."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]))
    target = "/" + draw(st.text("abc/?&=%20", max_size=12))
    headers = {"host": "h", **draw(FIELDS)}
    body = draw(st.none() | st.binary(max_size=60))
    content = b""
    if body is not None and draw(st.booleans()):
        headers["transfer-encoding"] = "chunked"
        chunks = [chunk for chunk in cut(body, draw(PLACES)) if chunk]
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b;c"']))
        trailers = header_lines(draw(FIELDS))
        content = b"".join(b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        content += b"0%b\r\n%b\r\n" % (extension, trailers)
    elif body is not None:
        headers["content-length"] = str(len(body))
        content = body
    sent = f"{method} {target} HTTP/1.1\r\n".encode() + header_lines(headers) + b"\r\n" + content
    said = {"method": method, "target": target, "version": "1.1", "headers": headers}
    return sent, {**said, "body": (body or b"").decode("latin-1")}


@pytest.mark.parametrize("loop_name", LOOPS)
def test_the_application_sees_what_was_sent_however_it_was_cut(loop_name: str) -> None:
    async def converse(site: Site, packets: Sequence[bytes], count: int) -> list[object]:
        client = await site.client()
        await client.send_packets(packets)
        answers = await client.answers(count)
        client.end()
        assert await client.closed()
        client.writer.close()
        return [got.said() for got in answers]

    with site_on(loop_name) as (runner, site):

        @settings(max_examples=100)
        @given(requests=st.lists(proper(), min_size=1, max_size=4), places=PLACES)
        def converses(requests: list[tuple[bytes, dict[str, object]]], places: list[int]) -> None:
            packets = cut(b"".join(sent for sent, _ in requests), places)
            assert runner.run(converse(site, packets, len(requests))) == [said for _, said in requests]

        converses()


TOKENS = [
    b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b'"', b"0", b"-1", b"\xff", b"GET ", b"HEAD ",
    b"POST ", b"CONNECT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"Host: h\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"Connection: upgrade\r\n", b"Connection: keep-alive\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n",
    b"3\r\nabc\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"99999999999999999999", b"/early", b"/refused", b"A: b\r\n",
    b"A" * 5000,
]  # fmt: skip
MESSAGES = st.sampled_from(
    [*CONVERSATION, GET, EXPECTING % (b"/", 1), EXPECTING % (b"/refused", 1) + b"body", TLS_HELLO]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Requests that were proper once."""
    sent = bytearray(b"".join(draw(st.lists(MESSAGES, min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(sent)))
        end = min(len(sent), start + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["insert", "delete", "replace", "repeat"])):
            case "insert":
                sent[start:start] = draw(st.sampled_from(TOKENS))
            case "delete":
                del sent[start:end]
            case "replace":
                sent[start:end] = draw(st.binary(max_size=3))
            case _:
                sent[start:start] = sent[start:end]
    return bytes(sent)


ANYTHING = damaged() | st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join) | st.binary(max_size=300)


@pytest.mark.parametrize("loop_name", LOOPS)
def test_no_bytes_bring_the_server_down_or_make_it_answer_nonsense(loop_name: str) -> None:
    async def attack(site: Site, witness: Client, packets: Sequence[bytes], *, resets: bool) -> None:
        client = await site.client()
        await client.send_packets(packets)
        # Who sends on after he has said that he would not has been reset, and does not get to know what was answered.
        with suppress(OSError):
            if client.writer.is_closing():
                pass
            elif resets:
                client.reset()
            else:
                client.end()
                assert {got.status for got in await client.rest()} <= {100, 200, 400, 413, 431, 501}
        await until(lambda: site.server.connections == 1)
        client.writer.close()
        assert (await witness.ask(post(b"proper"))).said()["body"] == "proper"

    with site_on(loop_name) as (runner, site):
        witness = runner.run(site.client())

        @settings(max_examples=FUZZ_EXAMPLES)
        @given(sent=ANYTHING, places=PLACES, resets=st.booleans())
        def attacks(sent: bytes, places: list[int], resets: bool) -> None:
            runner.run(attack(site, witness, cut(sent, places), resets=resets))

        attacks()
