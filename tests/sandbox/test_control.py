"""The page for people, what it is told, and the OpenAPI document as it is served."""

import base64
import hashlib
import re

import aiohttp
import pytest

from collector.contract.operations import GET_APP_DETAILS, OPERATIONS, PUBLISH_ORG_CHART, PUBLISH_PROVISIONED_USERS
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.fake_clock import START_MS, FakeClock
from tests.sandbox.client import APP, Client, event, serving

EVIL = "<script>alert(1)</script>"


async def test_the_page_runs_its_own_script_and_nothing_else(client: Client, state: State) -> None:
    await state.add_app(EVIL, EVIL)
    answer = await client.request("GET", "/")
    html = answer.body.decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert EVIL not in html
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for element in ("script", "style"):
        [text] = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    # What was sent must stay text, and nobody else may be asked for anything.
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=|\sstyle=", html)
    assert not re.findall(r"(?:src|href)=\"(?!/|data:,)", html)
    assert set(re.findall(r"https?://[^\"]*", html)) == {"http://www.w3.org/2000/svg"}


async def test_the_page_is_told_of_apps_minutes_and_requests(
    session: aiohttp.ClientSession, state: State, clock: FakeClock
) -> None:
    await state.add_app(EVIL, "Evil")
    async with serving(Sandbox(state, create_apps=True, clock=clock)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        await client.push(event(1), event(2), event(2))
        clock.advance(120)
        await client.push(event(2))
        await client.call(PUBLISH_PROVISIONED_USERS, {"users": [{"email": "a"}]}, appId=APP)
        await client.call(GET_APP_DETAILS, applicationId="secret-of-nobody")
        await client.request("GET", "/nowhere?token=secret")
        sandbox.set_faults(Fault(operation="*", status=503, times=2))
        await client.call(PUBLISH_ORG_CHART, {})
        answer = await client.request("GET", "/_sandbox/activity")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert client.token not in answer.body.decode()
    assert "token=secret" not in answer.body.decode()
    told = answer.json
    assert told["nowMs"] == START_MS + 120_000
    assert told["apps"] == [
        {"appId": APP, "appName": APP, "requests": 2, "received": 4, "distinct": 2, "users": 1},
        {"appId": EVIL, "appName": "Evil", "requests": 0, "received": 0, "distinct": 0, "users": 0},
    ]
    assert [told[name] for name in ("received", "distinct", "tokens", "unexpected", "faults")] == [4, 2, 1, 1, 1]
    now = (START_MS + 120_000) // 60_000
    assert [minute["minute"] for minute in told["minutes"]] == list(range(now - 59, now + 1))
    taken = [minute for minute in told["minutes"] if minute["received"]]
    assert taken == [
        {"minute": now - 2, "received": 3, "distinct": 2},
        {"minute": now, "received": 1, "distinct": 0},
    ]
    assert [(one["what"], one["status"], one["appId"], one["fault"]) for one in told["requests"]] == [
        ("publishOrgChart", 503, None, "503"),
        ("/nowhere", 404, None, None),
        ("getAppDetails", 404, "secret-of-nobody", None),
        ("publishProvisionedUsers", 200, APP, None),
        ("publishUsageEvents", 200, APP, None),
        ("publishUsageEvents", 200, APP, None),
        ("getAccessToken", 200, None, None),
    ]


async def test_no_more_than_50_requests_and_an_hour_are_remembered(
    session: aiohttp.ClientSession, state: State, clock: FakeClock
) -> None:
    async with serving(Sandbox(state, create_apps=True, clock=clock, token_lifetime_seconds=7200)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        for number in range(65):
            await client.push(event(number))
            clock.advance(60)
        told = (await client.request("GET", "/_sandbox/activity")).json
    assert len(told["requests"]) == 50
    assert sum(minute["received"] for minute in told["minutes"]) == 59, "the last minute is a new one"


async def test_the_document_is_served_with_the_address_it_was_asked_at(client: Client, sandbox: Sandbox) -> None:
    for host in (None, "sandbox.example.com:8788"):
        headers = {"Host": host} if host else {}
        document = (await client.request("GET", "/openapi.json", headers=headers)).json
        assert document["servers"] == [{"url": f"http://{host}" if host else sandbox.url}]
        assert len(document["paths"]) == len({operation.path for operation in OPERATIONS})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_another_method_is_refused_with_405_and_those_that_are_allowed(client: Client, method: str) -> None:
    answer = await client.request(method, "/_sandbox/stats")
    assert (answer.status, answer.json["error"]) == (405, "unexpected")
    assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}
    await client.request("POST", "/_sandbox/reset")
