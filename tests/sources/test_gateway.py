"""Local apps call the API's operations through the collector, without credentials of their own."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from collector.agent import Collector
from collector.contract.operations import OPERATIONS
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.embedded import embedded
from tests.patience import PATIENCE_SECONDS

PUSH = "/services/push/v1/customer"
EXPORT = "/services/export/v1/customer"
ALL = ",".join(operation.id for operation in OPERATIONS if operation.scope is not None)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def collector(tmp_path: Path, sandbox: Sandbox) -> AsyncIterator[Collector]:
    async with embedded(tmp_path, sandbox.url, gateway__operations=ALL) as collector:
        yield collector


def url(collector: Collector, path: str) -> str:
    return f"http://{collector.http_address}{path}"


def passed_on(collector: Collector, operation: str, status: str) -> float:
    labels = {"operation": operation, "status": status}
    return collector.metrics.registry.get_sample_value("collector_gateway_requests_total", labels) or 0


async def test_a_listed_operation_is_carried_out_with_the_collectors_own_token(
    collector: Collector, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
        assert answer.status == 200
        assert (await answer.json())["appName"] == "Wiki"
    assert passed_on(collector, "setupApplication", "200") == 1
    assert (await sandbox.stats()).tokens == 1


async def test_the_answers_status_and_words_are_upstreams(collector: Collector, session: aiohttp.ClientSession) -> None:
    async with session.post(url(collector, f"{PUSH}/apps"), json={"appNom": "Wiki"}) as answer:
        assert answer.status == 400
        assert "appName" in await answer.text()
    assert passed_on(collector, "setupApplication", "400") == 1


async def test_an_operation_that_is_not_listed_is_not_here(
    tmp_path: Path, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    async with embedded(tmp_path, sandbox.url, gateway__operations="getAppSummaries") as collector:
        async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
            assert answer.status == 404
        async with session.post(url(collector, f"{EXPORT}/app-summaries"), json={}) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    assert (await sandbox.stats()).tokens == 0


async def test_usage_events_go_through_the_queue_also_where_they_are_listed(
    collector: Collector, state: State, session: aiohttp.ClientSession
) -> None:
    await state.add_app("wiki", "Wiki")
    event = {"timestamp": 1, "email": "user@example.com", "eventName": "login"}
    async with session.post(url(collector, f"{PUSH}/apps/wiki/usage-events"), json={"events": [event]}) as answer:
        assert (await answer.json())["accepted"] == 1
    assert passed_on(collector, "publishUsageEvents", "200") == 0


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example.com"}, {"Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_web_pages_are_refused_also_where_they_only_read(
    collector: Collector, session: aiohttp.ClientSession, method: str, headers: dict[str, str]
) -> None:
    path = f"{EXPORT}/app-summaries" if method == "GET" else f"{PUSH}/apps"
    async with session.request(method, url(collector, path), headers=headers) as answer:
        assert answer.status == 403


async def test_where_tokens_are_asked_for_the_gateway_asks_too(
    tmp_path: Path, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    settings = {"gateway__operations": ALL, "access__tokens_file": str(tmp_path / "tokens")}
    async with embedded(tmp_path, sandbox.url, **settings) as collector:
        async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
            assert answer.status == 401
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}, headers=headers) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("name", ["..", "%2e%2e", "%2E", "%ff"])
async def test_a_name_that_leads_elsewhere_is_refused(collector: Collector, name: str) -> None:
    reader, writer = await asyncio.open_connection(*collector.http_address)
    writer.write(f"GET {EXPORT}/app-details/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_query_that_is_not_utf8_is_refused_since_it_would_say_something_else_upstream(
    collector: Collector, sandbox: Sandbox
) -> None:
    reader, writer = await asyncio.open_connection(*collector.http_address)
    target = f"{EXPORT}/audit-events?nextPageToken=%ff"
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the query is not UTF-8" in answer
    assert (await sandbox.stats()).tokens == 0


async def test_a_body_above_the_limit_is_refused_and_nothing_is_passed_on(
    tmp_path: Path, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    settings = {"gateway__operations": ALL, "http__max_request_bytes": "1KiB"}
    async with (
        embedded(tmp_path, sandbox.url, **settings) as collector,
        session.post(url(collector, f"{PUSH}/apps"), data=b"x" * 2000) as answer,
    ):
        assert answer.status == 413
    assert (await sandbox.stats()).tokens == 0


async def test_a_refused_token_is_renewed_once_and_then_said_to_be_the_collectors(
    collector: Collector, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    sandbox.set_faults(Fault(operation="setupApplication", status=401, times=1))
    async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
        assert answer.status == 200
    assert (await sandbox.stats()).tokens == 2
    sandbox.set_faults(Fault(operation="setupApplication", status=401))
    async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
        assert answer.status == 502
        assert "the collector's access token" in await answer.text()
    assert passed_on(collector, "setupApplication", "none") == 1


@pytest.mark.parametrize("fault", [Fault(operation="*", cut=True), Fault(operation="getAccessToken", status=503)])
async def test_where_upstream_does_not_answer_the_client_hears_so(
    collector: Collector, sandbox: Sandbox, session: aiohttp.ClientSession, fault: Fault
) -> None:
    sandbox.set_faults(fault)
    async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
        assert answer.status == 502
        assert (await answer.json())["errors"][0]["reason"]


async def test_where_it_is_known_when_to_try_again_the_client_hears_that_too(
    collector: Collector, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    sandbox.set_faults(Fault(operation="getAccessToken", status=503, headers={"Retry-After": "7"}))
    async with session.post(url(collector, f"{PUSH}/apps"), json={"appName": "Wiki"}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
        assert (await answer.json())["errors"][0]["reason"]


async def test_the_log_names_the_operation_and_nothing_of_what_was_said(
    collector: Collector, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "collector"):
        async with session.post(url(collector, f"{PUSH}/apps?x=hush"), json={"appName": "Wiki hush"}) as answer:
            assert answer.status == 200
    [record] = [record for record in caplog.records if record.name == "collector.sources.gateway"]
    assert record.getMessage() == "gateway.passed_on"
    assert (record.__dict__["operation"], record.__dict__["status"]) == ("setupApplication", 200)
    assert not any("hush" in str(record.__dict__) for record in caplog.records)


@pytest.mark.parametrize("status", [204, 304])
async def test_after_an_answer_that_can_have_no_content_the_connection_goes_on(
    collector: Collector, sandbox: Sandbox, status: int
) -> None:
    sandbox.set_faults(Fault(operation="getAppSummaries", status=status, body=""))
    address = collector.http_address
    assert address is not None
    reader, writer = await asyncio.open_connection(*address)
    for _ in range(2):
        writer.write(f"GET {EXPORT}/app-summaries HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"Transfer-Encoding" not in head
        assert b"Content-Length" not in head
    writer.close()


async def test_a_field_of_the_answer_that_is_not_latin_is_handed_over_as_it_came(
    collector: Collector, sandbox: Sandbox, session: aiohttp.ClientSession
) -> None:
    sandbox.set_faults(Fault(operation="getAppSummaries", status=200, headers={"Content-Type": "text/plain; a=\u20ac"}))
    async with session.get(url(collector, f"{EXPORT}/app-summaries")) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; a=\u20ac")


# -- an upstream that answers at length --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def slow_upstream(pieces: int, may_go_on: asyncio.Event, *, breaks: bool = False) -> AsyncIterator[str]:
    """Answers getAppSummaries with so many pieces, the second once it may."""

    async def token(_request: web.Request) -> web.Response:
        return web.json_response({"access_token": "t", "token_type": "Bearer", "expires_in": 60})

    async def summaries(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        await answer.write(b'{"apps":[')
        await may_go_on.wait()
        for number in range(pieces):
            await answer.write(json.dumps({"ApplicationId": "x" * 1000}).encode() + b"," * (number < pieces - 1))
        if breaks:
            assert request.transport is not None
            request.transport.abort()
            return answer
        await answer.write(b"]}")
        return answer

    application = web.Application()
    application.router.add_post("/oauth2/token", token)
    application.router.add_get(f"{EXPORT}/app-summaries", summaries)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_an_answer_is_handed_over_as_it_comes(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    may_go_on = asyncio.Event()
    async with (
        slow_upstream(5000, may_go_on) as upstream,
        embedded(tmp_path, upstream, gateway__operations=ALL) as collector,
        session.get(url(collector, f"{EXPORT}/app-summaries")) as answer,
    ):
        assert await answer.content.readexactly(9) == b'{"apps":['
        may_go_on.set()
        rest: Any = json.loads(b'{"apps":[' + await answer.read())
        assert len(rest["apps"]) == 5000
        assert answer.headers["Transfer-Encoding"] == "chunked"


async def test_an_old_client_sees_the_end_of_the_answer_by_the_end_of_the_connection(tmp_path: Path) -> None:
    may_go_on = asyncio.Event()
    may_go_on.set()
    async with (
        slow_upstream(3, may_go_on) as upstream,
        embedded(tmp_path, upstream, gateway__operations=ALL) as collector,
    ):
        reader, writer = await asyncio.open_connection(*collector.http_address)
        writer.write(f"GET {EXPORT}/app-summaries HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"Connection: close" in head
        assert len(json.loads(content)["apps"]) == 3


async def test_an_answer_that_breaks_off_is_cut_off_for_the_client_too(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    may_go_on = asyncio.Event()
    may_go_on.set()
    async with (
        slow_upstream(3, may_go_on, breaks=True) as upstream,
        embedded(tmp_path, upstream, gateway__operations=ALL) as collector,
    ):
        with pytest.raises(aiohttp.ClientError):
            async with session.get(url(collector, f"{EXPORT}/app-summaries")) as answer:
                await answer.read()
        async with session.get(url(collector, "/healthz")) as answer:
            assert answer.status == 200


async def test_a_client_that_goes_away_in_mid_answer_lets_go_of_upstream(tmp_path: Path) -> None:
    may_go_on = asyncio.Event()
    async with (
        slow_upstream(5000, may_go_on) as upstream,
        embedded(tmp_path, upstream, gateway__operations=ALL) as collector,
    ):
        reader, writer = await asyncio.open_connection(*collector.http_address)
        writer.write(f"GET {EXPORT}/app-summaries HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b'{"apps":[')
        writer.transport.abort()
        may_go_on.set()
        # the stop at the end of the block returns only once the connection is gone
