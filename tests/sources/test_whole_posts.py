"""A small post is stored, counted and answered alike, whether its head is known, or parsed, or a task reads it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from collector.agent import Collector
from collector.queue.sqlite.database import FILE_NAME
from collector.sources.http import HttpSource
from collector.sources.known_heads import KnownHeads
from tests.embedded import embedded
from tests.patience import PATIENCE_SECONDS
from tests.sources.test_http import NOWHERE, PUSH, answer, encoded, event

SIZE = 400

BODIES = [
    encoded(event(1)),
    encoded(event(1)),
    encoded([event(1), event(2), event(2)]),
    encoded({"events": [event(3), event(1)]}),
    encoded(event(4)) + b"\n" + encoded(event(5)),
    encoded(event(6, appId="crm")),
    encoded(event(6, appId="..")),
    encoded([event(7, colour="red"), event(8), event(8, size=1)]),
    encoded([event(9), {"timestamp": 1}, event(10)]),
    encoded({"timestamp": "1", "email": "person@example.com", "eventName": "x"}),
    encoded(event(11)).replace(b"@", b""),
    encoded([event(12)])[:-1],
    b"[]",
    b"null",
    b'"\xff"',
    b"[" * 300,
    b"",
]
"""Each is filled up with spaces to one length, so that all have one head."""


class Got(NamedTuple):
    """An answer: status, header fields without the date, and what it says."""

    status: int
    headers: dict[str, str]
    said: dict[str, object]


class Line:
    """One connection to a collector."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._reader = reader
        self._writer = writer
        self.port = port

    async def post(self, body: bytes, path: str = "/v1/events", **fields: str) -> Got:
        """Sends it in one packet, filled up to `SIZE`."""
        names = {"Host": f"127.0.0.1:{self.port}", "Content-Type": "application/json"}
        names |= {name.replace("_", "-"): value for name, value in fields.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in names.items())
        head = f"POST {path} HTTP/1.1\r\n{lines}Content-Length: {SIZE}\r\n\r\n"
        self._writer.write(head.encode() + body.ljust(SIZE))
        async with asyncio.timeout(PATIENCE_SECONDS):
            start, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode()[:-4].split("\r\n")
            headers = dict(line.split(": ") for line in rest)
            content = await self._reader.readexactly(int(headers["Content-Length"]))
        assert headers.pop("Date")
        return Got(int(start.split()[1]), headers, msgspec.json.decode(content))


@asynccontextmanager
async def line_to(collector: Collector) -> AsyncIterator[Line]:
    assert collector.http_address is not None
    reader, writer = await asyncio.open_connection(collector.http_address.host, collector.http_address.port)
    try:
        yield Line(reader, writer, collector.http_address.port)
    finally:
        writer.close()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages whose heads were known."""
    found: list[bytes] = []
    find = KnownHeads.find

    def noted(self: KnownHeads, data: bytes) -> object:
        known = find(self, data)
        if known is not None:
            found.append(data)
        return known

    monkeypatch.setattr(KnownHeads, "find", noted)
    return found


def counted(collector: Collector) -> dict[str, float]:
    """Everything that posts are counted as, but for how long they took."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for metric in collector.metrics.registry.collect()
        for sample in metric.samples
        if sample.name.startswith(
            ("collector_events", "collector_refusals", "collector_unknown", "collector_http_held")
        )
        or sample.name in {"collector_acknowledgement_seconds_count", "collector_waiting_events"}
    }


@pytest.mark.parametrize("path", ["/v1/events", PUSH])
async def test_whole_posts_are_answered_and_counted_as_others(
    tmp_path: Path, known: list[bytes], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def told(folder: Path) -> tuple[list[Got], dict[str, float]]:
        folder.mkdir()
        limits = {"stop__deadline": "0s", "events__keep_fields": "size", "events__max_per_request": "90"}
        async with embedded(folder, NOWHERE, **limits) as collector, line_to(collector) as line:
            return [await line.post(body, path) for body in BODIES], counted(collector)

    by_head = await told(tmp_path / "known")
    assert len(known) == len(BODIES) - 2
    monkeypatch.setattr(KnownHeads, "find", lambda *_: None)
    assert by_head == await told(tmp_path / "parsed")
    monkeypatch.setattr(HttpSource, "begin", lambda *_: None)
    assert by_head == await told(tmp_path / "by a task")
    assert {got.status for got in by_head[0]} == {200, 400}


async def test_a_known_head_gives_no_right_to_post(tmp_path: Path, known: list[bytes]) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-0123456789\n")
    async with (
        embedded(tmp_path, NOWHERE, stop__deadline="0s", access__tokens_file=str(tokens)) as collector,
        line_to(collector) as line,
    ):
        first = {"Authorization": "Bearer first-token-0123456789"}
        for number in range(4):
            assert (await line.post(encoded(event(number)), **first)).said == answer(1)
        assert len(known) == 2
        tokens.write_text("third-token-0123456789\n")
        collector.reload(collector._config)
        got = await line.post(encoded(event(4)), **first)
        assert (got.status, got.headers["WWW-Authenticate"], got.said["accepted"]) == (401, "Bearer", 0)
        for number in range(3):
            assert (await line.post(encoded(event(4 + number)), Authorization="Bearer third-token-0123456789"))[
                0
            ] == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"Origin": "http://example.com"}, 403), ({"Host": "example.com"}, 421)],
    ids=["page", "name"],
)
async def test_what_is_refused_for_its_head_is_refused_each_time(
    tmp_path: Path, fields: dict[str, str], status: int
) -> None:
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector, line_to(collector) as line:
        for _ in range(3):
            assert (await line.post(encoded(event(1)), **fields))[0] == status


async def test_limits_hold_for_known_heads_as_soon_as_they_are_in_force(tmp_path: Path, known: list[bytes]) -> None:
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector, line_to(collector) as line:
        for _ in range(2):
            await line.post(encoded(event(1)))
        source = collector._listeners.http
        for name in ("sent_bytes", "decompressed_bytes", "held_bytes"):
            before = source._limits
            source._limits = msgspec.structs.replace(before, **{name: SIZE - 1})
            source._memory.limit_bytes = source._limits.held_bytes
            got = await line.post(encoded(event(2)))
            assert got.status == (503 if name == "held_bytes" else 413)
            assert (got.said["accepted"], source.held_bytes) == (0, 0)
            source._limits, source._memory.limit_bytes = before, before.held_bytes
        assert (await line.post(encoded(event(2)))).said == answer(1)
        assert len(known) == 4
        assert source.held_bytes == 0


async def test_a_full_queue_says_so_and_keeps_the_connection(tmp_path: Path, known: list[bytes]) -> None:
    async with (
        embedded(tmp_path, NOWHERE, stop__deadline="0s", queue__max_bytes="64KiB") as collector,
        line_to(collector) as line,
    ):
        posted = 0
        while (got := await line.post(encoded([event(10 * posted + number) for number in range(4)])))[0] == 200:
            posted += 1
            assert posted < 64 * 1024 // SIZE * 2
        assert (got.status, got.said["accepted"]) == (503, 0)
        assert int(got.headers["Retry-After"]) >= 1
        assert len(known) == posted - 1
        assert collector.metrics.registry.get_sample_value("collector_waiting_events") == 4 * posted


async def test_a_commit_that_fails_is_said_and_nothing_is_held_any_more(
    tmp_path: Path, known: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.queue.sqlite.database.BUSY_TIMEOUT_MS", 50)
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector, line_to(collector) as line:
        for number in (0, 1):
            assert (await line.post(encoded(event(number)))).said == answer(1)
        with closing(sqlite3.connect(tmp_path / "queue" / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            got = await line.post(encoded(event(2)))
            assert (got.status, got.said["accepted"]) == (503, 0)
            other.execute("ROLLBACK")
        assert collector.metrics.registry.get_sample_value("collector_http_held_bytes") == 0
        assert len(known) == 1


async def test_no_encoding_is_known_by_its_head_and_others_are_asked_for_each_time(
    tmp_path: Path, known: list[bytes]
) -> None:
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector, line_to(collector) as line:
        for number in range(4):
            got = await line.post(encoded([event(number, note="x")]), Content_Encoding="identity")
            assert got.said == answer(1)
        assert len(known) == 2
        got = await line.post(encoded([event(9)]), Content_Encoding="br")
        assert got.status == 415
