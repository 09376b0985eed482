"""Those who send: over HTTP with retries, as programs do, and from inside the host program, where some are cancelled.

A client sends again what was not acknowledged, until it gives up; what an answer says goes into the books.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from collector.agent import Collector
from collector.bodies import BodyFormat
from collector.errors import CollectorError
from collector.intake import Report
from tests.simulation.books import Books, Identity, Post
from tests.simulation.loop import Died, Life
from tests.simulation.network import Cut, Link, Network, Refused
from tests.simulation.plan import DEFAULT_APP, Habits

EMAILS = ("a@example.com", "b@example.com", "Ünal@example.com", "c+d@example.com")
NAMES = ("opened", "saved", "gelöscht", 'shared \\ "it"')

INVALID: tuple[dict[str, Any], ...] = (
    {"timestamp": 1, "eventName": "saved"},
    {"timestamp": "1", "email": "a@example.com", "eventName": "saved"},
    {"timestamp": 2**63, "email": "a@example.com", "eventName": "saved"},
    {"timestamp": 1, "email": "nobody", "eventName": "saved"},
    {"timestamp": 1, "email": "a@example.com", "eventName": ""},
    {"timestamp": 1, "email": "a@example.com", "eventName": "saved", "appId": ".."},
)

encode = msgspec.json.encode


class Request(NamedTuple):
    """A body on its way, and what is in it."""

    path: str
    content_type: str
    body: bytes
    valid: Sequence[Identity]
    invalid: int


class Answer(NamedTuple):
    """What the agent said."""

    status: int
    retry_after_seconds: float
    report: Report


class Client:
    """One sender."""

    def __init__(
        self,
        number: int,
        *,
        habits: Habits,
        books: Books,
        network: Network,
        fate: random.Random,
        now_ms: Callable[[], int],
        poison: Callable[[Identity], None],
        tell: Callable[..., None],
        running: Callable[[], tuple[Life, Collector] | None],
        is_embedded: bool,
    ) -> None:
        self._name = f"{'caller' if is_embedded else 'client'} {number}"
        self._habits = habits
        self._books = books
        self._network = network
        self._fate = fate
        self._now_ms = now_ms
        self._poison = poison
        self._tell = tell
        self._running = running
        self._send = self._call if is_embedded else self._post
        self._link: Link | None = None

    async def run(self, seconds: float) -> None:
        """Sends its requests at random instants within so many seconds."""
        loop = asyncio.get_running_loop()
        times = sorted(self._fate.random() * seconds for _ in range(self._habits.requests))
        for at in times:
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            await self._deliver(self._compose())
        self._hang_up()

    async def _deliver(self, request: Request) -> None:
        """Sends a request until it is answered for good, or the client gives up."""
        for attempt in range(1, 6):
            self._tell(
                self._name,
                "sends %s and %d invalid to %s",
                self._books.name(request.valid),
                request.invalid,
                request.path,
            )
            post = self._books.post(request.valid, request.invalid)
            answer = await self._send(request)
            wait_seconds = self._fate.random() * 2**attempt
            if answer is not None:
                report = answer.report
                said = (answer.status, report.accepted, report.duplicates, report.rejected)
                self._tell(self._name, "hears %d: accepted %d, duplicates %d, rejected %d", *said)
                self._judge(post, answer)
                if answer.status in {200, 400}:
                    if self._fate.random() < 0.9:
                        return
                    continue  # some clients send twice what was taken
                assert answer.status in {408, 503, 507}, f"an answer that nobody expects: {answer}"
                wait_seconds += answer.retry_after_seconds
            await asyncio.sleep(wait_seconds)

    def _judge(self, post: Post, answer: Answer) -> None:
        report = answer.report
        # More than the counts is said only where the answer is about the whole request.
        in_full = answer.status == 200 or (answer.status == 400 and post.invalid > 0)
        self._books.answered(post, report.accepted, report.duplicates, report.rejected, in_full=in_full)
        if answer.status == 200:
            assert not report.rejected
            assert not report.errors

    def _compose(self) -> Request:
        fate, habits = self._fate, self._habits
        shape = fate.choice(("single", "array", "envelope", "row", "lines", "lines", "push"))
        push_app = fate.choice(habits.apps)
        count = (
            1 if shape == "single" else fate.choice((1, 2, 5, habits.most_events, fate.randint(1, habits.most_events)))
        )
        valid: list[Identity] = []
        written: list[bytes] = []
        old = list(self._books.sent)[-200:]
        for _ in range(count):
            if fate.random() < habits.spoils:
                written.append(encode(fate.choice(INVALID if shape != "push" else INVALID[:-1])))
                continue
            identity = fate.choice(old) if old and fate.random() < habits.repeats else self._new_event(push_app)
            if shape == "push" and identity.app_id != push_app:
                identity = self._new_event(push_app)
            valid.append(identity)
            old.append(identity)
            written.append(encode(self._as_sent(identity, names_app=shape != "push")))
        invalid = count - len(valid)
        if shape == "lines":
            return Request("/v1/events", "application/x-ndjson", b"\n".join(written), valid, invalid)
        if shape in {"single", "row"}:
            return Request("/v1/events", "application/json", b" ".join(written), valid, invalid)
        if shape == "array":
            return Request("/v1/events", "application/json", b"[%b]" % b",".join(written), valid, invalid)
        path = "/v1/events"
        if shape == "push":
            quoted = push_app.replace("ö", "%C3%B6").replace("ß", "%C3%9F").replace("/", "%2F")
            path = f"/services/push/v1/customer/apps/{quoted}/usage-events"
        return Request(path, "application/json", b'{"events":[%b]}' % b",".join(written), valid, invalid)

    def _new_event(self, app_id: str | None = None) -> Identity:
        fate = self._fate
        timestamp = fate.choice((self._now_ms(), self._now_ms() - fate.randrange(10**11), fate.randrange(50), -1))
        app_id = app_id or fate.choice(self._habits.apps)
        identity = Identity(app_id, timestamp, fate.choice(EMAILS), fate.choice(NAMES))
        if identity not in self._books.sent:
            kept: dict[str, Any] = {"note": {"n": len(self._books.sent), "ü": "\n"}} if fate.random() < 0.3 else {}
            self._books.new(identity, kept)
            if fate.random() < self._habits.poisons:
                self._poison(identity)
        return identity

    def _as_sent(self, identity: Identity, *, names_app: bool) -> dict[str, Any]:
        event: dict[str, Any] = {
            "timestamp": identity.timestamp,
            "email": identity.email,
            "eventName": identity.event_name,
            **self._books.sent[identity].kept,
        }
        if names_app and (identity.app_id != DEFAULT_APP or self._fate.random() < 0.5):
            event["appId"] = identity.app_id
        if self._fate.random() < 0.05:
            event["unknown"] = [1]
        return event

    async def _call(self, request: Request) -> Answer | None:
        """The request through the intake, by a caller that may be cancelled in the middle of it."""
        running = self._running()
        if running is None:
            return None
        life, collector = running
        if request.content_type == "application/x-ndjson":
            body_format = BodyFormat.NDJSON
        else:
            body_format = BodyFormat.ENVELOPE if "push" in request.path else BodyFormat.JSON
        app_id = request.valid[0].app_id if "push" in request.path and request.valid else None
        try:
            async with asyncio.timeout(self._patience_seconds()):
                report = await life.run(collector._intake.take(request.body, body_format, app_id))
        except TimeoutError:
            self._tell(self._name, "is cancelled")
            return None
        except Died:
            return None
        except CollectorError as error:
            self._tell(self._name, "is refused: %s", error)
            return None
        return Answer(400 if report.rejected else 200, 0.0, report)

    async def _post(self, request: Request) -> Answer | None:
        """The request over HTTP; None where there is no answer."""
        try:
            async with asyncio.timeout(self._patience_seconds()):
                return await self._exchange(request)
        except TimeoutError:
            self._tell(self._name, "hangs up")
        except Refused:
            self._tell(self._name, "cannot connect")
        except Cut:
            self._tell(self._name, "is cut off")
        self._hang_up()
        return None

    def _patience_seconds(self) -> float:
        return self._fate.random() * 0.05 if self._fate.random() < self._habits.hangs_up else 60.0

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.hang_up()
            self._link = None

    async def _exchange(self, request: Request) -> Answer:
        if self._link is None:
            self._link = self._network.connect()
        link, body = self._link, request.body
        is_chunked = self._fate.random() < 0.3
        length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(body)}"
        lines = (f"POST {request.path} HTTP/1.1", "Host: localhost", f"Content-Type: {request.content_type}", length)
        head = "".join(f"{line}\r\n" for line in (*lines, ""))
        pieces = [body]
        if self._fate.random() < 0.2:
            cut = self._fate.randrange(len(body) + 1)
            pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        link.send(head.encode())
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(self._fate.random())
            link.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            link.send(b"0\r\n\r\n")
        heard = b""
        while b"\r\n\r\n" not in heard:
            heard += await link.hear()
        said, _, content = heard.partition(b"\r\n\r\n")
        status_line, *fields_said = said.decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in fields_said)}
        while len(content) < int(fields["content-length"]):
            content += await link.hear()
        if fields.get("connection") == "close" or self._fate.random() < 0.7:
            self._hang_up()
        report = msgspec.json.decode(content, type=Report)
        return Answer(int(status_line.split()[1]), float(fields.get("retry-after", 0)), report)
