"""What a client of the HTTP source may send, and what it is told."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from collector.agent import Collector
from collector.sandbox.server import Sandbox
from tests.embedded import embedded

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


async def test_a_body_over_the_limit_is_refused_also_when_it_is_compressed_or_chunked(tmp_path: Path) -> None:
    async with (
        embedded(tmp_path, NOWHERE, stop__deadline="0s", http__max_request_bytes="1KiB") as collector,
        aiohttp.ClientSession() as session,
    ):
        client = Client(collector, session)
        large = encoded([event(number) for number in range(100)])

        async def chunks() -> AsyncIterator[bytes]:
            yield large[:1000]
            yield large[1000:]

        for body, headers in (
            (large, JSON),
            (gzip.compress(large), {**JSON, "Content-Encoding": "gzip"}),
            (chunks(), JSON),
        ):
            status, said, _ = await client.request("POST", "/v1/events", data=body, headers=headers)
            assert status == 413
            assert "http.max_request_bytes = 1024" in said["errors"][0]["reason"]
        assert (await client.post("/v1/events", event(1)))[1] == answer(1)


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
    assert await client.get_text("/healthz") == '{"status":"ok"}'
    assert await client.get_text("/readyz") == '{"status":"ready"}'
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
