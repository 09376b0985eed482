"""What a client of the HTTP source may send, and what it is told."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import aiohttp
import msgspec
import pytest

from collector.agent import Collector
from collector.sandbox.server import Sandbox
from tests.embedded import embedded, metric
from tests.patience import until

NOWHERE = "http://127.0.0.1:1"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
PUSH = "/services/push/v1/customer/apps/crm/usage-events"


def event(number: int, **more: object) -> dict[str, object]:
    return {"timestamp": number, "email": "person@example.com", "eventName": "page_viewed", **more}


def encoded(content: object) -> bytes:
    return content if isinstance(content, bytes) else msgspec.json.encode(content)


class Client:
    """Posts to one collector; an answer is its status, its content and its headers."""

    def __init__(self, collector: Collector, session: aiohttp.ClientSession) -> None:
        self.collector = collector
        self._session = session

    async def post(
        self, path: str, content: object, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        return await self.request("POST", path, data=encoded(content), headers=JSON if headers is None else headers)

    async def request(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        url = f"http://{self.collector.http_address}{path}"
        async with self._session.request(method, url, **more) as response:
            assert (await response.read()).endswith(b"}\n"), "a line, for who reads it in a terminal"
            return response.status, await response.json(), dict(response.headers)

    async def get_text(self, path: str) -> str:
        async with self._session.get(f"http://{self.collector.http_address}{path}") as response:
            assert response.status == 200
            return await response.text()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector, aiohttp.ClientSession() as session:
        yield Client(collector, session)


def answer(accepted: int, duplicates: int = 0, rejected: int = 0) -> dict[str, object]:
    return {"accepted": accepted, "duplicates": duplicates, "rejected": rejected, "errors": []}


@pytest.mark.parametrize(
    ("content", "headers", "accepted"),
    [
        (event(1), JSON, 1),
        ([event(1), event(2)], JSON, 2),
        ({"events": [event(1), event(2)]}, JSON, 2),
        (encoded(event(1)) + b"\n" + encoded(event(2)) + b"\n", NDJSON, 2),
        (event(1), {"Content-Type": "application/json; charset=utf-8"}, 1),
        ([], JSON, 0),
        (b"", NDJSON, 0),
        ([event(number) for number in range(2_500)], JSON, 2_500),
    ],
)
async def test_every_form_of_body_is_taken(
    client: Client, content: object, headers: dict[str, str], accepted: int
) -> None:
    status, said, _ = await client.post("/v1/events", content, headers)
    assert (status, said) == (200, answer(accepted))
    status, said, _ = await client.post("/v1/events", content, headers)
    assert (status, said) == (200, answer(0, duplicates=accepted))


def shipped(number: int) -> bytes:
    """An event as Fluent Bit sends it: with its own time beside the fields."""
    return encoded({"date": 1767225600.123456, **event(number)})


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"[" + shipped(1) + b"," + shipped(2) + b"]", "application/json"),
        (shipped(1) + b"\n" + shipped(2) + b"\n", "application/json"),
        (shipped(1) + shipped(2), "application/json"),
        (encoded([event(1), event(2)]), "application/json"),
        (encoded(event(1)) + b"\n" + encoded(event(2)), "application/x-ndjson"),
        (encoded([event(1), event(2)]), "application/json; charset=utf-8"),
        (encoded(event(1)) + b"\n" + encoded(event(2)), "application/json; charset=utf-8"),
    ],
    ids=[
        "Fluent Bit, json",
        "Fluent Bit, json_lines",
        "Fluent Bit, json_stream",
        "Vector, json",
        "Vector, newline_delimited",
        "rsyslog omhttp, jsonarray",
        "rsyslog omhttp, newline",
    ],
)
async def test_what_log_shippers_send_is_taken(client: Client, content: bytes, content_type: str) -> None:
    assert await client.post("/v1/events", content, {"Content-Type": content_type}) == (200, answer(2), ANY)


async def test_upstreams_own_request_is_taken_at_upstreams_own_path(client: Client) -> None:
    headers = {**JSON, "Authorization": "Bearer whatever"}
    status, said, _ = await client.post(PUSH, {"events": [event(1), event(1), event(2)]}, headers)
    assert (status, said) == (200, answer(2, duplicates=1))


async def test_the_app_in_the_path_is_meant_however_it_is_written(client: Client) -> None:
    path = "/services/push/v1/customer/apps/a%20b%2Fc/usage-events"
    assert (await client.post(path, {"events": [event(1)]}))[1] == answer(1)
    assert (await client.post("/v1/events", event(1, appId="a b/c")))[1] == answer(0, duplicates=1)
    assert (await client.post("/v1/events", event(1, appId="a%20b%2Fc")))[1] == answer(1)


async def test_events_that_name_no_app_belong_to_the_default_app(client: Client) -> None:
    assert (await client.post("/v1/events", [event(1), event(1, appId="wiki"), event(1, appId="crm")]))[1] == answer(
        2, duplicates=1
    )


async def test_the_same_triple_in_two_apps_is_two_events(client: Client) -> None:
    assert (await client.post("/v1/events", [event(1, appId="a"), event(1, appId="b")]))[1] == answer(2)


async def test_what_is_valid_is_stored_although_a_neighbour_is_not_and_sending_again_is_harmless(
    client: Client,
) -> None:
    content = [event(1), event(2, email="nobody"), {"timestamp": "3"}, event(4)]
    for accepted, duplicates in ((2, 0), (0, 2)):
        status, said, _ = await client.post("/v1/events", content)
        assert status == 400
        assert (said["accepted"], said["duplicates"], said["rejected"]) == (accepted, duplicates, 2)
        assert [error["index"] for error in said["errors"]] == [1, 2]
        assert said["errors"][0]["reason"].startswith('email: "nobody"; expected')
        assert "email: missing" in said["errors"][1]["reason"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1", b'{"events": 1}', b"\xff", b"null"])
async def test_a_body_that_cannot_be_parsed_stores_nothing(client: Client, content: bytes) -> None:
    status, said, _ = await client.post("/v1/events", content)
    assert status == 400
    assert said["accepted"] == 0
    assert said["errors"][0]["reason"]
    assert client.collector.metrics.registry.get_sample_value("collector_waiting_events") == 0


@pytest.mark.parametrize("content", [event(1), [event(1)], {}])
async def test_upstreams_path_takes_nothing_but_upstreams_form(client: Client, content: object) -> None:
    status, said, _ = await client.post(PUSH, content)
    assert status == 400
    assert "events" in said["errors"][0]["reason"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/nowhere", JSON, 404),
        ("GET", "/v1/events", {}, 405),
        ("PUT", PUSH, JSON, 405),
        ("POST", "/v1/events", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/events", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", PUSH, NDJSON, 415),
        ("POST", "/v1/events", {**JSON, "Content-Encoding": "br"}, 415),
    ],
)
async def test_every_refusal_has_the_one_shape_and_says_what_was_expected(
    client: Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    got, said, answered = await client.request(method, path, data=b"{}" if method != "GET" else None, headers=headers)
    assert got == status
    assert said == {**answer(0), "errors": [{"reason": said["errors"][0]["reason"]}]}
    assert ("Allow" in answered) == (status == 405)


async def test_a_post_without_a_content_type_is_refused(client: Client) -> None:
    skip = {"skip_auto_headers": ["Content-Type"]}
    status, said, _ = await client.request("POST", "/v1/events", data=encoded(event(1)), **skip)
    assert status == 415
    assert "missing" in said["errors"][0]["reason"]


@asynccontextmanager
async def client_of(folder: Path, **settings: str) -> AsyncIterator[Client]:
    """A client of a collector with settings of its own, whose upstream is nowhere."""
    async with (
        embedded(folder, NOWHERE, stop__deadline="0s", **settings) as collector,
        aiohttp.ClientSession() as session,
    ):
        yield Client(collector, session)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


EVENTS = [event(number) for number in range(100)]
LARGE = encoded(EVENTS)
LINES = b"\n".join(encoded(each) for each in EVENTS)


@pytest.mark.parametrize(
    ("setting", "parts", "headers"),
    [
        ("http__max_request_bytes", [LARGE], JSON),
        ("http__max_request_bytes", [LARGE[:1000], LARGE[1000:]], JSON),
        ("http__max_decompressed_bytes", [gzip.compress(LARGE)], {**JSON, "Content-Encoding": "gzip"}),
        ("http__max_stream_bytes", [LINES], NDJSON),
        ("http__max_stream_bytes", [gzip.compress(LINES)], {**NDJSON, "Content-Encoding": "gzip"}),
    ],
)
async def test_a_body_over_a_limit_is_refused_by_the_name_of_the_limit(
    tmp_path: Path, setting: str, parts: list[bytes], headers: dict[str, str]
) -> None:
    async with client_of(tmp_path, **{setting: "1KiB"}) as client:
        body = parts[0] if len(parts) == 1 else pieces(*parts)
        status, said, _ = await client.request("POST", "/v1/events", data=body, headers=headers)
        assert status == 413
        assert f"{setting.replace('__', '.')} = 1024" in said["errors"][0]["reason"]
        assert said["accepted"] == 0
        assert (await client.post("/v1/events", event(1)))[1] == answer(1)


@pytest.mark.parametrize("content", [EVENTS, [1] * 1000])
async def test_a_body_of_too_many_events_is_refused_and_stores_nothing(tmp_path: Path, content: object) -> None:
    async with client_of(tmp_path, events__max_per_request="99") as client:
        status, said, _ = await client.post("/v1/events", content)
        assert (status, said["accepted"]) == (413, 0)
        assert "events.max_per_request = 99" in said["errors"][0]["reason"]


async def test_bodies_that_take_all_of_the_memory_are_refused_until_there_is_room_again(tmp_path: Path) -> None:
    async with client_of(tmp_path, http__max_held_bytes="4KiB") as client:
        comes, goes_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield LARGE[:3000]
            comes.set()
            await goes_on.wait()
            yield b" " * 500

        first = asyncio.create_task(client.request("POST", "/v1/events", data=slow(), headers=JSON))
        await comes.wait()
        await until(lambda: metric(client.collector, "http_held_bytes") == 3000)
        status, said, headers = await client.post("/v1/events", EVENTS[:40])
        assert status == 503
        assert int(headers["Retry-After"]) >= 1
        assert "http.max_held_bytes = 4096" in said["errors"][0]["reason"]
        goes_on.set()
        assert (await first)[0] == 400  # half a body
        assert (await client.post("/v1/events", EVENTS[:40]))[1] == answer(40)
        assert metric(client.collector, "http_held_bytes") == 0


# Streams


def many(first: int, count: int) -> bytes:
    return b"".join(encoded(event(number)) + b"\n" for number in range(first, first + count))


async def test_a_stream_is_stored_as_it_comes_and_a_bad_line_costs_only_itself(client: Client) -> None:
    stored_early = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield many(0, 10_000)
        await until(lambda: metric(client.collector, "waiting_events"))
        stored_early.set()
        yield b"rubbish\n" + many(10_000, 10)

    status, said, _ = await client.request("POST", "/v1/events", data=stream(), headers=NDJSON)
    assert stored_early.is_set()
    assert (status, said["accepted"], said["rejected"]) == (400, 10_010, 1)
    assert said["errors"][0]["index"] == 10_000


async def test_what_was_stored_of_a_stream_is_said_with_the_error_that_ended_it(tmp_path: Path) -> None:
    async with client_of(tmp_path, queue__max_bytes="1MiB") as client:
        stream = pieces(*[many(number, 1000) for number in range(0, 40_000, 1000)])
        status, said, headers = await client.request("POST", "/v1/events", data=stream, headers=NDJSON)
        assert status == 503
        assert "Retry-After" in headers
        assert 0 < said["accepted"] == client.collector.metrics.registry.get_sample_value("collector_waiting_events")
        assert "queue.max_bytes" in said["errors"][-1]["reason"]


async def test_what_was_stored_of_a_stream_stays_where_the_client_goes_away_and_the_log_says_it(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    address = client.collector.http_address
    lines = many(0, 10_000)
    with caplog.at_level(logging.INFO):
        _, writer = await asyncio.open_connection(address.host, address.port)
        head = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
        writer.write(f"{head}Content-Length: {2 * len(lines)}\r\n\r\n".encode() + lines)
        await writer.drain()
        await until(lambda: metric(client.collector, "waiting_events"))
        writer.transport.abort()
        await until(lambda: "http.client_gone" in caplog.messages)
    [gone] = [record for record in caplog.records if record.message == "http.client_gone"]
    assert 0 < gone.__dict__["accepted"] == metric(client.collector, "waiting_events")


async def test_a_line_of_a_stream_that_never_ends_is_refused(client: Client) -> None:
    status, said, _ = await client.request("POST", "/v1/events", data=pieces(*[b"x" * 100_000] * 10), headers=NDJSON)
    assert status == 413
    assert "event 0: its line is longer than events.max_event_bytes = 65536" in said["errors"][0]["reason"]


# Who may send


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8787"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_web_page_cannot_post(client: Client, headers: dict[str, str]) -> None:
    status, said, answered = await client.post("/v1/events", event(1), JSON | headers)
    assert (status, said["accepted"]) == (403, 0)
    assert not [name for name in answered if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_what_a_browser_sends_without_asking_first_is_no_content_type_of_ours(
    client: Client, content_type: str
) -> None:
    status, said, _ = await client.post("/v1/events", event(1), {"Content-Type": content_type})
    assert (status, said["accepted"]) == (415, 0)


async def test_a_preflight_gets_no_permission(client: Client) -> None:
    asks = {"Origin": "https://evil.example.com", "Access-Control-Request-Method": "POST"}
    status, _, answered = await client.request("OPTIONS", "/v1/events", headers=asks)
    assert status == 405
    assert not [name for name in answered if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", ["/v1/events", "/metrics", "/readyz", "/healthz", "/", "/status.json"])
async def test_a_name_that_was_rebound_to_this_machine_is_refused(client: Client, path: str) -> None:
    method = "POST" if path == "/v1/events" else "GET"
    status, said, _ = await client.request(method, path, headers={**JSON, "Host": "evil.example.com:8787"})
    assert status == 421
    assert "access.allowed_hosts" in said["errors"][0]["reason"]


async def test_with_tokens_every_post_must_carry_one_of_them(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# crm\nfirst-token-0123456789\nsecond-token-0123456789\n")
    async with client_of(tmp_path, access__tokens_file=str(tokens)) as client:
        for authorization in ("", "Bearer wrong-token-0123456789", "Basic first-token-0123456789"):
            status, said, headers = await client.post("/v1/events", event(1), {**JSON, "Authorization": authorization})
            assert (status, said["accepted"], headers["WWW-Authenticate"]) == (401, 0, "Bearer")
        for token in ("first-token-0123456789", "second-token-0123456789"):
            headers = {**JSON, "Authorization": f"Bearer {token}", "Host": "collector.example.com"}
            assert (await client.post("/v1/events", event(1), headers))[0] == 200
        tokens.write_text("third-token-0123456789\n")
        client.collector.reload(client.collector._config)
        for token, status in (("first-token-0123456789", 401), ("third-token-0123456789", 200)):
            assert (await client.post("/v1/events", event(1), {**JSON, "Authorization": f"Bearer {token}"}))[
                0
            ] == status


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"hello collector\r\n\r\n", "not HTTP/1.1: "),
        (b"<13>1 2026-01-01T00:00:00Z host app - - - text\n", "not HTTP/1.1: "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), "not HTTP/1.1: "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not HTTP/1.1: this is HTTP/2; send HTTP/1.1"),
    ],
    ids=["text", "syslog", "TLS", "HTTP/2"],
)
async def test_what_is_not_http_at_all_gets_an_answer_of_the_one_shape(
    client: Client, sent: bytes, reason: str
) -> None:
    address = client.collector.http_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    said = msgspec.json.decode(content)
    assert said == {**answer(0), "errors": [{"reason": said["errors"][0]["reason"]}]}
    assert said["errors"][0]["reason"].startswith(reason)
    writer.close()


@pytest.mark.parametrize(
    ("app_id", "status"), [("%FF", 400), ("%2E", 400), ("..", 400), ("a" * 256, 200), ("a" * 257, 400), ("", 404)]
)
async def test_an_app_that_cannot_be_is_refused_in_the_path_too(client: Client, app_id: str, status: int) -> None:
    address = client.collector.http_address
    path = f"/services/push/v1/customer/apps/{app_id}/usage-events"
    reader, writer = await asyncio.open_connection(address.host, address.port)
    body = encoded({"events": [event(1)]})
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert int((await reader.read()).split()[1]) == status
    writer.close()


async def test_a_length_may_begin_with_any_number_of_zeros(client: Client) -> None:
    address = client.collector.http_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    body = encoded(event(1))
    head = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {'0' * 5000}{len(body)}\r\n\r\n".encode() + body)
    assert int((await reader.read()).split()[1]) == 200
    writer.close()


# Encodings


async def test_a_gzipped_body_is_taken(client: Client) -> None:
    body = gzip.compress(encoded(event(1)))
    assert (await client.post("/v1/events", body, {**JSON, "Content-Encoding": "gzip"}))[1] == answer(1)


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b"[]")[:-1]])
async def test_a_body_that_is_not_what_its_encoding_says_is_malformed(client: Client, body: bytes) -> None:
    status, said, _ = await client.post("/v1/events", body, {**JSON, "Content-Encoding": "gzip"})
    assert status == 400
    assert said["errors"][0]["reason"].startswith("the body is not gzip")


async def test_a_full_queue_answers_503_with_retry_after_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with (
        embedded(tmp_path, NOWHERE, stop__deadline="0s", queue__max_bytes="64KiB") as collector,
        aiohttp.ClientSession() as session,
    ):
        client = Client(collector, session)
        assert (await client.post("/v1/events", [event(number) for number in range(600)]))[0] == 200
        status, said, headers = await client.post("/v1/events", [event(1000 + number) for number in range(600)])
        assert status == 503
        assert int(headers["Retry-After"]) >= 1
        assert "queue.max_bytes = 65536" in said["errors"][0]["reason"]
        assert collector.metrics.registry.get_sample_value("collector_waiting_events") == 600


async def test_kept_fields_reach_upstream_and_others_are_counted(tmp_path: Path, sandbox: Sandbox) -> None:
    async with (
        embedded(tmp_path, sandbox.url, events__keep_fields="plan,details") as collector,
        aiohttp.ClientSession() as session,
    ):
        client = Client(collector, session)
        await sandbox._state.add_app("wiki", "wiki")
        content = event(1, plan="pro", details={"a": [1, 2.50]}, secret_sauce=1)
        assert (await client.post("/v1/events", content))[1] == answer(1)
        assert collector.metrics.registry.get_sample_value("collector_unknown_fields_total") == 1
    kept = [msgspec.json.decode(line) for _, line in await sandbox._state.events()]
    assert kept == [event(1, plan="pro", details={"a": [1, 2.50]})]


async def test_health_readiness_and_metrics_are_said(client: Client) -> None:
    assert await client.get_text("/healthz") == '{"status":"ok"}\n'
    assert await client.get_text("/readyz") == '{"status":"ready"}\n'
    await client.post("/v1/events", [event(1), event(1), event(2, email="")])
    metrics = await client.get_text("/metrics")
    for verdict in ("accepted", "duplicate", "rejected"):
        assert f'collector_events_total{{source="http",verdict="{verdict}"}} 1.0' in metrics
    assert "collector_waiting_events 1.0" in metrics
    assert "collector_commit_seconds_count 1.0" in metrics


async def test_a_stop_answers_the_requests_that_are_under_way(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector:
            client = Client(collector, session)
            posts = [asyncio.create_task(client.post("/v1/events", event(number))) for number in range(20)]
            await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        answered = [post.result()[1] for post in posts if post.done() and not post.exception()]
        await asyncio.gather(*posts, return_exceptions=True)
        assert answered
        assert all(said == answer(1) for said in answered)


async def test_each_answer_to_a_post_is_timed_once_however_many_events_it_has(client: Client) -> None:
    await client.post("/v1/events", [event(number) for number in range(100)])
    await client.post("/v1/events", [event(1), {}])
    await client.post("/v1/events", b"rubbish")
    count = client.collector.metrics.registry.get_sample_value("collector_acknowledgement_seconds_count")
    assert count == 2, "what was refused as a whole was not acknowledged"
