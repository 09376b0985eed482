"""What is fed with inputs, and what must be true of it whatever comes. Each target takes one seed."""

import asyncio
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from collector.bodies import BodyFormat, BodyParser, Parsed
from collector.config.kinds import Address
from collector.config.load import load
from collector.errors import ConfigInvalid, Rejected
from collector.events import UsageEvent
from collector.intake import Intake
from collector.observe.metrics import Metrics
from collector.observe.status import QueueStatus, Status, UpstreamStatus
from collector.queue.base import Backlog, Batch, Verdict
from collector.sources.access import Guard
from collector.sources.gateway import Gateway
from collector.sources.http import HttpSource
from collector.sources.http1 import Connection
from collector.sources.http_application import ConnectionLimits
from collector.sources.http_body import BodyLimits
from collector.upstream.passage import Passage
from collector.upstream.transport import Transport
from tests.fuzz import inputs
from tests.patience import until

Triple = tuple[int, str, str]

PARSER = BodyParser(max_events=1000)
KEEPING = BodyParser(max_events=1000, keep_fields=["extra"])


def said(text: str) -> Iterator[Triple]:
    """Every triple that some JSON value in the text holds, as another parser reads it: at any place, at any depth."""
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)
    for at, character in enumerate(text):
        if character == "{":
            try:
                pairs, _ = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                continue
            fields: dict[str, list[Any]] = {}
            for name, value in pairs:
                fields.setdefault(name, []).append(value)
            names = ("timestamp", "email", "eventName")
            if all(name in fields for name in names):
                yield cast("Triple", tuple(fields[name][-1] for name in names))


def check_events(events: Sequence[UsageEvent | None], data: bytes) -> None:
    """No event was made up: another parser finds each of them in the data."""
    taken = Counter((event.timestamp, event.email, event.event_name) for event in events if event is not None)
    if taken:
        # Bytes that are no text can only be in what was dropped: no field of an event has the replacement's marks.
        there = Counter(said(data.decode("utf-8", "surrogateescape")))
        assert taken <= there, (taken - there, data)


def check_parsed(parsed: Parsed, data: bytes) -> None:
    check_events(parsed.events, data)
    missing = [index for index, event in enumerate(parsed.events) if event is None]
    assert sorted({rejection.index or 0 for rejection in parsed.rejections}) == missing, data
    assert all(rejection.reason for rejection in parsed.rejections)


def bodies(seed: int) -> None:
    """Whatever a body holds, it is parsed or refused for a reason."""
    draw = random.Random(seed)
    data = inputs.body(draw)
    body_format = draw.choice(list(BodyFormat))
    parser = draw.choice([PARSER, KEEPING])
    refused = False
    try:
        parsed = parser.parse(data, body_format)
    except Rejected as error:
        refused = bool(str(error))
    else:
        check_parsed(parsed, data)
        return
    assert refused


def datagrams(seed: int) -> None:
    """Datagrams are taken in one go only where each of them would have been taken alone."""
    draw = random.Random(seed)
    row = [inputs.damaged(draw, inputs.event(draw)) + draw.choice([b"", b"\n"]) for _ in range(draw.randrange(1, 5))]
    parsed = PARSER.parse_row(row)
    if not parsed.events:
        return
    alone: list[UsageEvent | None] = []
    for data in row:
        alone += PARSER.parse(data, BodyFormat.JSON).events
    assert parsed.events == alone, row


def configuration(seed: int) -> None:
    """A configuration is read, or refused with its problems and without its secret."""
    draw = random.Random(seed)
    file = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp", f"collector-fuzz-{os.getpid()}.toml")  # noqa: S108
    data = inputs.configuration(draw)
    file.write_bytes(data)
    problems = "none"
    try:
        load(file, {}, with_credentials=False)
    except ConfigInvalid as error:
        problems = str(error)
    finally:
        file.unlink()
    assert problems
    # Where damage has put the secret under another key, nobody can know what it is.
    assert inputs.SECRET not in problems or b'client_secret = "%b"' % inputs.SECRET.encode() not in data


class _Memory:
    """A queue that keeps everything; for one that fails there are other tests."""

    def __init__(self) -> None:
        self.arrivals = asyncio.Event()
        self.lines: list[bytes] = []

    async def put(self, batches: Sequence[Batch]) -> list[Verdict]:
        for batch in batches:
            self.lines += batch.lines.split(b"\n")
        return [Verdict(batch.events) for batch in batches]

    def backlog(self) -> list[Backlog]:
        return []

    def waiting_events_of(self, app_id: str) -> int:
        raise AssertionError(f"a source asks what waits of {app_id}")

    async def lease(self, app_id: str, max_events: int) -> None:
        raise AssertionError(f"a source takes {max_events} events of {app_id} out")

    async def settle(self, *_: object, **__: object) -> None:
        raise AssertionError("a source settles")


class _Transport:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def write_eof(self) -> None:
        pass

    pause_reading = resume_reading = write_eof


async def _no_status() -> Status:
    return Status("0", is_running=True, now_ms=0, queue=QueueStatus(""), upstream=UpstreamStatus("", "unknown"))


ANSWERS = {100, 200, 400, 401, 403, 404, 405, 408, 413, 415, 421, 431, 501, 503}


class Http:
    """The whole way from a connection's bytes to the queue."""

    def __init__(self) -> None:
        self._queue = _Memory()
        metrics = Metrics()
        unused = Passage(Transport(timeout_seconds=1), {}, base_url="http://upstream.example.com")
        self._source = HttpSource(
            Intake(
                self._queue,
                default_app="wiki",
                parser=PARSER,
                batch_events=1000,
                max_event_bytes=65536,
                metrics=metrics,
            ),
            listen=Address("127.0.0.1", 0),
            connection_limits=ConnectionLimits(16384, 10, 30, 75, 512, 512),
            body_limits=BodyLimits(2**20, 2**20, 2**20, 2**20),
            guard=Guard(),
            gateway=Gateway((), unused, metrics),
            metrics=metrics,
            why_unready=lambda: None,
            read_status=_no_status,
        )

    async def __call__(self, seed: int) -> None:
        """Every answer is one of ours, none is a 500, and what is stored was sent."""
        draw = random.Random(seed)
        data = inputs.requests(draw)
        self._queue.lines.clear()
        transport = _Transport()
        connection = Connection(self._source._server, is_local=False)
        connection.connection_made(cast("asyncio.Transport", transport))
        at = 0
        while at < len(data):
            step = draw.choice([1, 7, 100, 10_000])
            if not transport.closed:
                connection.data_received(data[at : at + step])
            at += step
            if draw.random() < 0.1:
                await asyncio.sleep(0)
        connection.eof_received()
        await until(lambda: not connection._is_serving, pause_seconds=0)
        connection.connection_lost(None)
        statuses = {int(status) for status in re.findall(rb"^HTTP/1\.1 (\d+) ", transport.written, re.MULTILINE)}
        assert statuses <= ANSWERS, (transport.written, data)
        triples = [json.loads(line) for line in self._queue.lines]
        there = Counter(said(_unchunked(data).decode("utf-8", "surrogateescape")))
        taken = Counter((event["timestamp"], event["email"], event["eventName"]) for event in triples)
        assert taken <= there, (taken - there, data)


def _unchunked(data: bytes) -> bytes:
    """The data, and once more without what stands between chunks, where an event may have been cut."""
    return data + b"\n" + re.sub(rb"\r\n[0-9A-Fa-f]+[^\r\n]*\r\n", b"", data)


SYNCHRONOUS: dict[str, Callable[[int], None]] = {
    "bodies": bodies,
    "datagrams": datagrams,
    "configuration": configuration,
}


async def run(name: str, seeds: range) -> None:
    """Feeds a target with all seeds. Raises what it raises, with the seed."""
    target = SYNCHRONOUS.get(name)
    http = Http() if target is None else None
    for seed in seeds:
        try:
            if http is not None:
                await http(seed)
            elif target is not None:
                target(seed)
        except BaseException as error:
            error.add_note(f"target {name}, seed {seed}")
            raise


TARGETS = (*SYNCHRONOUS, "http")
