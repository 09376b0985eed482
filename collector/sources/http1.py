"""HTTP/1.1 under the HTTP source: from a connection's bytes to requests, and answers back in their order (RFC 9112).

The parsing is llhttp's, by way of httptools; what is here is the rest of a connection's life: how long each part of it
may take, how much of it is held in memory, who is served and who is not. It stands in place of a web framework because
the one route that matters has to be fast: a handler that does nothing answers 43,000 to 57,000 requests/s here and
16,000 to 29,000/s in aiohttp's application on the same machine.

A small post that the application can answer without a task of its own gets none: a task, and what has to be awaited in
it, would be a quarter of what one event costs.

A connection is in one of four states, each with a deadline: it waits for a request, a head is coming in, a body is
coming in, or an answer is going out. The server looks at all deadlines once a second; no request has its own timer.
Whatever is wrong with a request is a `Refusal`: where a handler is reading the body it is raised there, else it is
answered in the request's turn.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator
from typing import Protocol, cast

import httptools

from collector.sources.http_application import BODY_STEP_BYTES, Application, ConnectionLimits
from collector.sources.http_message import (
    Answer,
    AnswerBroken,
    ClientGone,
    Refusal,
    Request,
    chunk,
    header_lines,
)
from collector.sources.known_heads import MAX_BODY_BYTES, Begin, KnownHeads

BODY_HIGH_WATER_BYTES = 256 * 2**10
"""So much of bodies may wait to be read before a connection is read no further; also what one read brings at most."""

PIPELINE_HIGH_WATER = 32
"""So many requests of one connection may wait for their turn before it is read no further."""

SPARE_CONNECTIONS = 8
"""So many more than the limit may be open, each for one look: whether the collector lives, and what it counts, is asked
above all when it is full."""

LINGER_SECONDS = 2.0
"""How long a connection stays after an answer that came before the end of its request: closed at once, the kernel would
send a reset, and the client might never see the answer (RFC 9112 section 9.6)."""

HTTP_2_PREFACE = "Pause on PRI/Upgrade"
"""What the parser says where HTTP/2 begins without having been asked for, as from `curl --http2-prior-knowledge`."""

ABSOLUTE = re.compile(r"http://([^/?#]*)", re.IGNORECASE)
"""What a request's target begins with where it is said as to a proxy."""

NEVER = float("inf")


class Host(Protocol):
    """The server that a connection belongs to, as far as connections know it."""

    application: Application
    limits: ConnectionLimits
    stopping: bool
    stopped: bool
    in_flight: int
    date_line: bytes
    known_heads: KnownHeads

    @property
    def connections(self) -> int:
        """Connections that are open."""
        ...

    def opened(self, connection: "Connection") -> None:
        """A connection has come."""
        ...

    def closed(self, connection: "Connection") -> None:
        """A connection has gone, and nothing is done for it any more."""
        ...


class Connection(asyncio.Protocol):
    """One client's connection. The methods `on_…` are the parser's callbacks."""

    def __init__(self, server: Host, *, is_local: bool) -> None:
        self.deadline = NEVER
        self.is_local = is_local
        self.buffered_bytes = 0  # of the bodies of all requests that wait
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._requests: deque[Request | Refusal] = deque()
        self._receiving: Request | None = None  # the request whose body is coming in
        self._is_spare = False  # one look is answered, and the connection closes
        self._is_serving = False  # a request is being answered, and later ones wait
        self._task: asyncio.Task[None] | None = None  # that does so, or has
        self._writable: asyncio.Future[None] | None = None
        self._is_paused = False
        self._is_deaf = False  # what still comes in is dropped, and the connection closes after its last answer
        self._has_ended = False  # the client's half: it sends no more
        self._has_asked = False
        self._is_in_head = False
        self._head_bytes = 0
        self._unaccounted_bytes = 0  # since the parser has last made something of them
        self._step_bytes = 0

    @property
    def descriptor(self) -> int:
        """Its socket's; -1 where it is being closed."""
        return -1 if self._transport.is_closing() else self._transport.get_extra_info("socket").fileno()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)
        server = self._server
        server.opened(self)
        self.deadline = self._loop.time() + server.limits.head_seconds
        if server.stopped:
            self._transport.abort()
        elif server.connections > server.limits.connections + SPARE_CONNECTIONS:
            self._is_deaf = True
            self._send(server.application.refuse(self._too_many()))
            self._transport.close()  # without lingering: who is too many must not stay
        self._is_spare = server.connections > server.limits.connections

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._is_deaf:
            return
        begins = not self._is_serving and self._receiving is None and not self._is_in_head
        if begins and self._take_known(data):
            return
        self._unaccounted_bytes += len(data)
        while not self._is_deaf:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                said = "this is HTTP/2; send HTTP/1.1" if str(error) == HTTP_2_PREFACE else str(error)
                self._fail(Refusal(400, f"not HTTP/1.1: {said}", "malformed"))
        if self._unaccounted_bytes > self._server.limits.head_bytes:
            self._fail(self._head_too_large())
        if self._requests and not self._is_serving and not self._take_whole(data if begins else b""):
            self._serve()
        self.regulate()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. Stays open for the answers to requests that are complete."""
        self._break_off(ClientGone())
        self._is_deaf = self._has_ended = True
        return self._is_serving

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio.BaseProtocol. What is being stored is stored all the same."""
        self._is_deaf = True
        self._break_off(ClientGone())
        self.resume_writing()
        if not self._is_serving:
            self._server.closed(self)

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._writable = self._loop.create_future()
        self.regulate()
        self.deadline = self._loop.time() + self._server.limits.idle_seconds

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        self.deadline = NEVER
        self.regulate()

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target = b""
        self._headers: dict[str, str] = {}
        self._is_in_head = True
        self._head_bytes = self._unaccounted_bytes = 0
        self.deadline = self._loop.time() + self._server.limits.head_seconds

    def on_url(self, part: bytes) -> None:
        """Some of the request target, if not all of it."""
        self._target += part
        self._head_bytes += len(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        self._head_bytes += len(name) + len(value)
        if self._receiving is not None:
            return  # a trailer: nothing here asks for any
        field, text = name.decode("latin-1").lower(), value.rstrip().decode("latin-1")
        known = self._headers.get(field)
        if known is None:
            self._headers[field] = text
        elif field == "host":
            self._fail(Refusal(400, "Host: more than one", "malformed"))
        else:
            self._headers[field] = f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """The head is there: the request can be answered while its body comes in."""
        self._is_in_head = False
        self._unaccounted_bytes = self._step_bytes = 0
        if self._is_deaf:
            return
        headers, parser, limits = self._headers, self._parser, self._server.limits
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                self._fail(Refusal(501, "CONNECT is not for this server", "not_understood"))
            return  # see _without_upgrade
        self.deadline = self._loop.time() + limits.body_seconds
        version, coding = parser.get_http_version(), headers.get("transfer-encoding")
        if self._head_bytes > limits.head_bytes:
            self._fail(self._head_too_large())
        elif coding is not None and (coding.lower() != "chunked" or version == "1.0"):
            expected = "none" if version == "1.0" else "chunked or none"
            self._fail(Refusal(501, f"Transfer-Encoding: {coding}; expected {expected}", "not_understood"))
        elif "host" not in headers and version != "1.0":
            self._fail(Refusal(400, "Host: missing; HTTP/1.1 requires it", "malformed"))
        else:
            method, target = parser.get_method().decode("ascii"), self._target.decode("latin-1")
            if absolute := ABSOLUTE.match(target):  # its host counts, whatever the field says (RFC 9112 section 3.2.2)
                headers["host"], target = absolute[1], target[absolute.end() :]
                target = target if target.startswith("/") else f"/{target}"
            request = Request(self, method, target, version, headers)
            if self._is_spare and not self._server.application.is_look(request):
                self._fail(self._too_many())
                return
            if "expect" in headers and version != "1.0":
                request.expects_continue = headers["expect"].lower() == "100-continue"
            self._receiving = request
            self._has_asked = True
            self._requests.append(request)

    def on_body(self, part: bytes) -> None:
        """Some of the body."""
        self._unaccounted_bytes = 0
        request = self._receiving
        if request is None or self._is_deaf:
            return
        self._step_bytes += len(part)
        if self._step_bytes >= BODY_STEP_BYTES:
            self._step_bytes = 0
            self.deadline = self._loop.time() + self._server.limits.body_seconds
        self.buffered_bytes += len(part)
        request.feed(part)

    def on_message_complete(self) -> None:
        """The request has ended."""
        request, self._receiving = self._receiving, None
        self._unaccounted_bytes = 0
        self.deadline = NEVER
        if request is not None:
            request.keeps_alive = self._parser.should_keep_alive()
            request.complete()
            self._is_deaf |= self._server.stopping or self._is_spare or not request.keeps_alive

    # What requests and the server call

    async def serve(self) -> None:
        """Answers what waits, in order, until nothing does or the connection ends."""
        is_whole = True
        while True:
            if self._writable is not None:
                await self._writable
            if not self._requests or not is_whole:
                break
            request = self._requests[0]
            answer = await self._answer(request)
            is_whole = False
            if isinstance(request, Request):
                is_whole = request.is_complete
                if request.buffered_bytes:  # nobody will read it
                    self.buffered_bytes -= request.buffered_bytes
                    request.buffered_bytes = 0
            if answer is not None:
                is_last = not is_whole or (self._is_deaf and len(self._requests) == 1)
                self._send(answer, request, is_last=is_last)
                if not isinstance(answer.content, bytes):
                    chunked = isinstance(request, Request) and request.version != "1.0"
                    is_whole = await self._stream(answer.content, chunked=chunked) and chunked and is_whole
            self._requests.popleft()
            self.regulate()
        self._rest(is_whole=is_whole)

    def send_continue(self) -> None:
        """The client may send its body (RFC 9110 section 10.1.1)."""
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def regulate(self) -> None:
        """Reads on, or stops reading, by how much waits to be taken. A client is not late while we do not read."""
        behind = (
            self.buffered_bytes > BODY_HIGH_WATER_BYTES
            or len(self._requests) > PIPELINE_HIGH_WATER
            or self._writable is not None
        )
        if behind != self._is_paused and not self._is_deaf and not self._transport.is_closing():
            self._is_paused = behind
            if behind:
                self._transport.pause_reading()
                self.deadline = NEVER
            else:
                self._transport.resume_reading()
                self.deadline = self._loop.time() + self._server.limits.body_seconds

    def finish(self) -> None:
        """Closes the connection, after the answers to what it has asked.

        Whoever has only just connected, or begun to ask, may still do so: he has heard of no stop, and elsewhere he
        would not have been refused.
        """
        if self._is_serving and self._receiving is None:
            self._is_deaf = True
        elif not self._requests and self._has_asked and not self._is_in_head:
            self._transport.close()

    def expire(self) -> None:
        """The deadline has passed."""
        limits = self._server.limits
        self.deadline = NEVER
        if self._writable is not None or (self._is_deaf and not self._is_serving):
            self.abort()
        elif self._receiving is not None:
            pace = f"{BODY_STEP_BYTES} bytes, or its end, within http.body_timeout = {limits.body_seconds:g} s"
            self._fail(Refusal(408, f"the body is too slow: not another {pace}", "slow"))
        elif self._is_in_head:
            limit = f"http.header_timeout = {limits.head_seconds:g} s"
            self._fail(Refusal(408, f"the request's head did not come within {limit}", "slow"))
        elif not self._is_serving:
            self._part(linger=False)

    def fail(self, refusal: Refusal) -> None:
        """Refuses the request that is coming in; without one, the connection is closed."""
        if self._receiving is not None or self._is_in_head:
            self._fail(refusal)
        elif not self._is_serving:
            self._part(linger=False)

    def abort(self) -> None:
        """Closes the connection at once."""
        self._transport.abort()

    # Steps

    def _take_known(self, data: bytes) -> bool:
        """Whether it is a request with a known head, which is answered as soon as what it asks for is done."""
        server = self._server
        if server.stopping or self._is_spare or server.in_flight >= server.limits.requests_in_flight:
            return False
        known = server.known_heads.find(data)
        if known is None:
            return False
        begin, body = known
        self._has_asked = True
        self._unaccounted_bytes = 0
        self.deadline = NEVER
        self._begin(begin, body)
        return True

    def _take_whole(self, data: bytes) -> bool:
        """Whether the only request is a small one that needs no task, or will be when the rest of its body is there.

        `data` has just come: a message begins with it, or it is empty.
        """
        request, server = self._requests[0], self._server
        if (
            len(self._requests) > 1
            or isinstance(request, Refusal)
            or request.version != "1.1"
            or not request.fits(MAX_BODY_BYTES)
            or server.in_flight >= server.limits.requests_in_flight
            or (begin := server.application.begin(request)) is None
        ):
            return False
        if request.is_complete:
            self._requests.clear()
            body = request.take()
            if not self._is_deaf:  # as where the client wants the connection closed, which its head says
                server.known_heads.learn(data, body, begin)
            self._begin(begin, body)
        return True

    def _begin(self, begin: Begin, body: bytes) -> None:
        self._is_serving = True
        self._server.in_flight += 1
        begin(body, self.is_local, self._answer_begun)

    def _answer_begun(self, answer: Answer | None) -> None:
        self._server.in_flight -= 1
        if answer is None:
            self._transport.abort()
        else:
            self._send(answer, is_last=self._is_deaf and not self._requests)
        self._is_serving = False
        self._serve()
        if not self._is_serving:
            self._rest(is_whole=True)

    def _serve(self) -> None:
        """A task answers what waits, once the client reads our answers, unless something does already."""
        if not self._is_serving and (self._requests or self._writable is not None):
            self._is_serving = True
            self._task = self._loop.create_task(self.serve())

    def _rest(self, *, is_whole: bool) -> None:
        """All that will be answered is; the last request was read to its end, or was not, and none behind it counts."""
        self._is_serving = False
        self._requests.clear()
        if self._transport.is_closing():
            self._server.closed(self)
        elif self._is_deaf or not is_whole:
            self._part(linger=not is_whole and not self._has_ended)
        elif not self._is_in_head and self._receiving is None:
            self.deadline = self._loop.time() + self._server.limits.idle_seconds

    def _fail(self, refusal: Refusal) -> None:
        """Takes nothing more from this connection, and says why when the requests before are answered."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self.deadline = NEVER
        if self._receiving is None:
            self._has_asked = True
            self._requests.append(refusal)
            self._serve()
        else:
            self._break_off(refusal)

    def _break_off(self, failure: Exception) -> None:
        """What is still to come of a request will not."""
        if self._receiving is not None:
            self._receiving.fail(failure)
            self._serve()

    def _without_upgrade(self) -> bytes:
        """The head that has come, without the wish to upgrade: it may be ignored (RFC 9110 section 7.8).

        The parser ends such a request at its head, with or without a body. So a fresh one gets it from here on.
        """
        parser, self._parser = self._parser, httptools.HttpRequestParser(self)
        start = f"{parser.get_method().decode()} {self._target.decode('latin-1')} HTTP/{parser.get_http_version()}\r\n"
        fields = {name: value for name, value in self._headers.items() if name != "upgrade"}
        return start.encode("latin-1") + header_lines(fields) + b"\r\n"

    def _too_many(self) -> Refusal:
        limit = f"http.max_connections = {self._server.limits.connections} connections are open"
        return Refusal(503, limit, "connections", {"Retry-After": "1"})

    def _head_too_large(self) -> Refusal:
        limit = f"http.max_header_bytes = {self._server.limits.head_bytes} bytes"
        return Refusal(431, f"the request's head is larger than {limit}", "too_large")

    async def _answer(self, request: Request | Refusal) -> Answer | None:
        server = self._server
        if isinstance(request, Refusal):
            return server.application.refuse(request)
        if server.in_flight >= server.limits.requests_in_flight and not server.application.is_look(request):
            limit = f"http.max_in_flight = {server.limits.requests_in_flight} requests are under way"
            return server.application.refuse(Refusal(503, limit, "requests_in_flight", {"Retry-After": "1"}))
        server.in_flight += 1
        try:
            return await server.application.answer(request)
        finally:
            server.in_flight -= 1

    def _send(self, answer: Answer, request: Request | Refusal | None = None, *, is_last: bool = True) -> None:
        if self._transport.is_closing():
            return
        version, method = (request.version, request.method) if isinstance(request, Request) else ("1.1", "")
        head = answer.head(self._server.date_line, version=version, is_last=is_last)
        content = answer.content if isinstance(answer.content, bytes) and method != "HEAD" else b""
        self._transport.write(head + content)

    async def _stream(self, pieces: AsyncGenerator[bytes], *, chunked: bool) -> bool:
        """Whether all of a streamed answer has gone out; where not, the client sees that it is cut off."""
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    self._transport.write(chunk(piece) if chunked else piece)
                    if self._writable is not None:
                        await self._writable
                    if self._transport.is_closing():
                        return False
        except AnswerBroken:
            self._transport.abort()
            return False
        if chunked:
            self._transport.write(chunk(b""))
        return True

    def _part(self, *, linger: bool) -> None:
        """Closes the connection; where the client is still sending, only once it has had time to see the answer."""
        self._is_deaf = True
        if not linger or self._transport.is_closing():
            self._transport.close()
            self.deadline = self._loop.time() + self._server.limits.idle_seconds  # for what is still to be sent
            return
        with contextlib.suppress(OSError):  # the client has reset the connection just now
            self._transport.write_eof()
        self.deadline = self._loop.time() + LINGER_SECONDS
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
