"""The sandbox keeps the contract and counts what it gets; spoken to by plain HTTP."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from collector.contract.models import MAX_EVENTS_PER_REQUEST
from collector.contract.operations import (
    GET_ACCESS_TOKEN,
    PUBLISH_USAGE_EVENTS,
    SCOPE_READ,
    SCOPE_WRITE,
    SETUP_APPLICATION,
)
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import AppCounts, State
from tests.fake_clock import FakeClock
from tests.sandbox.client import APP, FORM, Client, event, opened, serving

# -- getAccessToken ----------------------------------------------------------------------------------------------------


async def test_right_credentials_get_a_token_with_its_lifetime(stranger: Client) -> None:
    answer = await stranger.ask_token(scope=SCOPE_WRITE)
    assert answer.status == 200
    assert answer.json["access_token"]
    assert {name: value for name, value in answer.json.items() if name != "access_token"} == {
        "token_type": "Bearer",
        "expires_in": 3600,
    }
    assert (await stranger.stats())["tokens"] == 1


async def test_each_token_is_another(stranger: Client) -> None:
    assert len({(await stranger.ask_token()).json["access_token"] for _ in range(10)}) == 10


@pytest.mark.parametrize(
    "form",
    [
        {"client_id": "other"},
        {"client_id": ""},
        {"client_secret": "Sandbox"},
        {"client_secret": ""},
        {"grant_type": "password"},
        {"grant_type": ""},
    ],
)
async def test_wrong_credentials_are_refused_with_401(stranger: Client, form: dict[str, str]) -> None:
    assert (await stranger.ask_token(**form)).status == 401
    assert (await stranger.stats())["tokens"] == 0


async def test_credentials_that_are_no_form_are_refused_with_401(stranger: Client) -> None:
    assert (await stranger.request("POST", GET_ACCESS_TOKEN.path, json=FORM)).status == 401
    assert (await stranger.request("POST", GET_ACCESS_TOKEN.path)).status == 401
    assert (await stranger.request("POST", GET_ACCESS_TOKEN.path, params=FORM)).status == 401


@pytest.mark.parametrize(
    ("authorization", "error"),
    [
        (None, "invalid_token"),
        ("", "invalid_token"),
        ("Bearer", "invalid_token"),
        ("Bearer nonsense", "invalid_token"),
        ("Basic {token}", "invalid_token"),
        ("{token}", "invalid_token"),
        ("Bearer {token}x", "invalid_token"),
    ],
)
async def test_nothing_is_taken_without_a_token_that_was_issued(
    client: Client, authorization: str | None, error: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.format(token=client.token)}
    for path in (SETUP_APPLICATION.path, PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP)):
        answer = await client.request("POST", path, json={"events": [event()], "appName": "x"}, headers=headers)
        assert (answer.status, answer.json["error"]) == (401, error)
    assert (await client.stats())["received"] == 0


async def test_the_name_of_the_scheme_may_be_written_in_any_case(client: Client) -> None:
    headers = {"Authorization": f"bEARER {client.token}"}
    path = PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP)
    assert (await client.request("POST", path, json={"events": []}, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (SCOPE_WRITE, 200),
        (f"{SCOPE_READ} {SCOPE_WRITE}", 200),
        ("", 200),
        (SCOPE_READ, 401),
        ("https://api.productiv.com/connector", 401),
        (SCOPE_WRITE.upper(), 401),
    ],
)
async def test_a_token_opens_what_its_scopes_allow_and_all_where_none_were_named(
    client: Client, scope: str, status: int
) -> None:
    await client.authorize(scope=scope)
    assert (await client.push(event())).status == status
    assert (await client.post(SETUP_APPLICATION.path, b'{"appName":"x"}')).status == status


async def test_a_token_expires(session: aiohttp.ClientSession, state: State, clock: FakeClock) -> None:
    async with serving(Sandbox(state, create_apps=True, clock=clock)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        clock.advance(3599.9)
        assert (await client.push(event())).status == 200
        clock.advance(0.1)
        answer = await client.push(event())
        assert (answer.status, answer.json["error"]) == (401, "invalid_token")


async def test_tokens_can_be_forgotten(client: Client, sandbox: Sandbox) -> None:
    sandbox.forget_tokens()
    assert (await client.push(event())).status == 401
    await client.authorize()
    assert (await client.push(event())).status == 200


# -- setupApplication --------------------------------------------------------------------------------------------------


async def test_an_app_that_was_set_up_takes_events(client: Client) -> None:
    answer = await client.post(
        SETUP_APPLICATION.path, b'{"appName":"Example","appUrl":"https://www.example.com","more":1}'
    )
    assert answer.status == 200
    assert answer.json["appName"] == "Example"
    assert (await client.push(event(), app_id=answer.json["appId"])).status == 200


async def test_two_apps_of_one_name_are_two(client: Client) -> None:
    answers = [await client.post(SETUP_APPLICATION.path, b'{"appName":"Example"}') for _ in range(2)]
    assert len({answer.json["appId"] for answer in answers}) == 2


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"appName":7}', b'{"appName":null}', b"\xff", b"[" * 9999])
async def test_an_app_without_a_name_is_refused_with_400(client: Client, body: bytes) -> None:
    assert (await client.post(SETUP_APPLICATION.path, body)).status == 400
    assert list((await client.stats())["apps"]) == [APP]


# -- publishUsageEvents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, MAX_EVENTS_PER_REQUEST])
async def test_up_to_1000_events_are_taken(client: Client, count: int) -> None:
    answer = await client.push(*map(event, range(count)))
    assert (answer.status, answer.json) == (200, {"success": True})
    stats = await client.stats()
    assert (stats["requests"], stats["received"], stats["distinct"]) == (1, count, count)


async def test_a_whole_number_is_an_integer_however_it_is_written(client: Client, state: State) -> None:
    body = b'{"events":[{"timestamp":1767225600000.0,"email":"a@example.com","eventName":"login"}]}'
    assert (await client.post(PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP), body)).status == 200
    assert (await client.push(event(1767225600000, email="a@example.com"))).status == 200
    assert (await state.stats()).distinct == 1


async def test_any_text_is_an_address(client: Client) -> None:
    assert (await client.push(event(email="nobody"), event(email=""))).status == 200
    assert (await client.stats())["distinct"] == 2


async def test_more_than_1000_events_are_refused_with_400_and_none_is_kept(client: Client) -> None:
    answer = await client.push(*map(event, range(MAX_EVENTS_PER_REQUEST + 1)))
    assert answer.status == 400
    assert "1001" in answer.json["message"]
    assert (await client.stats())["received"] == 0


@pytest.mark.parametrize(
    ("bad", "about"),
    [
        ({"email": "user@example.com", "eventName": "login"}, "timestamp"),
        ({"timestamp": 1, "eventName": "login"}, "email"),
        ({"timestamp": 1, "email": "user@example.com"}, "eventName"),
        (event(timestamp="1"), "timestamp"),
        (event(timestamp=1.5), "timestamp"),
        (event(timestamp=1e300), "timestamp"),
        (event(timestamp=True), "timestamp"),
        (event(timestamp=None), "timestamp"),
        (event(timestamp=2**63), "timestamp"),
        (event(timestamp=-(2**63) - 1), "timestamp"),
        (event(email=7), "email"),
        (event(eventName=None), "eventName"),
        (7, "object"),
        (None, "object"),
        ([], "object"),
    ],
)
@pytest.mark.parametrize("index", [0, 2])
async def test_one_bad_event_has_all_refused_with_its_index(
    client: Client, bad: object, about: str, index: int
) -> None:
    events: list[object] = [event(1), event(2), event(3)]
    events[index] = bad
    answer = await client.push(*events)
    assert answer.status == 400
    assert answer.json["message"].startswith(f"events[{index}]")
    assert about in answer.json["message"]
    assert (await client.stats())["received"] == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"{}", b'{"Events":[]}', b'{"events":{}}', b'{"events":null}', b"\xff", b"[" * 9999],
    ids=lambda body: repr(body[:20]),
)
async def test_a_body_that_is_no_envelope_is_refused_with_400(client: Client, body: bytes) -> None:
    assert (await client.post(PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP), body)).status == 400


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson", "application/octet-stream"])
async def test_only_json_is_taken(client: Client, content_type: str) -> None:
    path = PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP)
    assert (await client.post(path, b'{"events":[]}', content_type)).status == 400
    assert (await client.post(path, b'{"events":[]}', "application/json; charset=utf-8")).status == 200


async def test_an_unknown_app_is_refused_with_400_and_its_requests_are_counted(client: Client) -> None:
    for _ in range(2):
        answer = await client.push(event(), app_id="nobodys")
        assert (answer.status, answer.json["error"]) == (400, "unknown_app")
    await client.push(event())
    stats = await client.stats()
    assert (stats["requests"], stats["received"]) == (3, 1)
    assert stats["apps"] == {
        "nobodys": {"requests": 2, "received": 0, "distinct": 0},
        APP: {"requests": 1, "received": 1, "distinct": 1},
    }
    assert (await client.push(event(), app_id="nobodys")).status == 400, "to be counted is not to be known"


async def test_requests_from_before_an_app_was_made_stay_counted(client: Client, state: State) -> None:
    await client.push(event(), app_id="late")
    await state.add_app("late", "late")
    await client.push(event(), app_id="late")
    assert (await client.stats())["apps"]["late"] == {"requests": 2, "received": 1, "distinct": 1}


async def test_apps_can_be_made_when_they_are_first_used(session: aiohttp.ClientSession, state: State) -> None:
    async with serving(Sandbox(state, create_apps=True)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        assert [(await client.push(event(), app_id=app_id)).status for app_id in ("a", "b", "a", "a%2Fb")] == [200] * 4
        assert {app: counts.requests for app, counts in (await sandbox.stats()).apps.items()} == {
            "a": 2,
            "b": 1,
            "a/b": 1,
        }


@pytest.mark.parametrize("scope", [None, SCOPE_READ])
async def test_no_app_is_made_for_one_without_a_token_that_may_write(
    session: aiohttp.ClientSession, state: State, scope: str | None
) -> None:
    async with serving(Sandbox(state, create_apps=True)) as sandbox:
        client = Client(session, sandbox)
        if scope is not None:
            await client.authorize(scope=scope)
        assert (await client.push(event())).status == 401
        assert not await state.has_app(APP)
        assert (await sandbox.stats()).apps == {APP: AppCounts(requests=1)}


# -- the books ---------------------------------------------------------------------------------------------------------


async def test_what_is_received_and_what_of_it_is_distinct_are_counted_apart(client: Client, state: State) -> None:
    await state.add_app("b", "b")
    await client.push(event(1), event(2), event(1))
    await client.push(event(2), event(3))
    await client.push(event(1, eventName="Login"), event(1, email="User@example.com"), event(1, more="fields"))
    await client.push(event(1), app_id="b")
    await client.push(event(1), 7)
    stats = await client.stats()
    assert (stats["requests"], stats["received"], stats["distinct"]) == (5, 9, 6)
    assert stats["apps"] == {
        "b": {"requests": 1, "received": 1, "distinct": 1},
        APP: {"requests": 4, "received": 8, "distinct": 5},
    }
    assert (stats["tokens"], stats["unexpected"]) == (1, 0)


async def test_requests_at_one_time_do_not_disturb_the_books(client: Client) -> None:
    answers = await asyncio.gather(*(client.push(*map(event, range(start, start + 50))) for start in range(20)))
    assert {answer.status for answer in answers} == {200}
    stats = await client.stats()
    assert (stats["requests"], stats["received"], stats["distinct"]) == (20, 1000, 69)


async def test_every_distinct_event_can_be_had_back_byte_for_byte(client: Client) -> None:
    written = b'{ "eventName":"log\\u0069n", "timestamp":2,"team":1.50, "email":"user@example.com"}'
    await client.post(PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP), b'{"events":[' + written + b"]}")
    await client.push(event(1), event(2))
    answer = await client.request("GET", "/_sandbox/events")
    first, second = answer.body.splitlines()
    assert json.loads(first) == {"appId": APP, "event": event(1)}
    assert second == b'{"appId":"the-app","event":' + written + b"}"


async def test_a_reset_forgets_everything_but_tokens(client: Client, sandbox: Sandbox) -> None:
    await client.push(event())
    await client.request("GET", "/nowhere")
    sandbox.set_faults(Fault(operation="*", status=500))
    nothing = {"requests": 0, "received": 0, "distinct": 0, "apps": {}, "tokens": 0, "unexpected": 0}
    assert (await client.request("POST", "/_sandbox/reset")).json == nothing
    assert await client.stats() == nothing
    assert (await client.request("GET", "/_sandbox/events")).body == b""
    assert (await client.push(event())).json["error"] == "unknown_app"
    assert (await client.post(SETUP_APPLICATION.path, b'{"appName":"x"}')).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/favicon.ico", 404),
        ("GET", "/services/export/v1/customer/app-summaries/", 404),
        ("POST", f"{SETUP_APPLICATION.path}/", 404),
        ("POST", PUBLISH_USAGE_EVENTS.path.replace("{appId}", "a/b"), 404),
        ("GET", GET_ACCESS_TOKEN.path, 405),
        ("PUT", PUBLISH_USAGE_EVENTS.path.replace("{appId}", APP), 405),
    ],
)
async def test_what_no_operation_expects_is_refused_and_counted(
    client: Client, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert (answer.status, answer.json["error"]) == (status, "unexpected")
    assert (await client.stats())["unexpected"] == 1
    await client.request("POST", "/_sandbox/reset")


# -- life and death ----------------------------------------------------------------------------------------------------


async def test_what_was_received_survives_in_its_directory(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    place = tmp_path / "made" / "if need be"

    async def one_life(*numbers: int, create_apps: bool) -> Mapping[str, AppCounts]:
        async with opened(place) as state, serving(Sandbox(state, create_apps=create_apps)) as sandbox:
            client = Client(session, sandbox)
            await client.authorize()
            assert (await client.push(*map(event, numbers))).status == 200
            return (await sandbox.stats()).apps

    assert await one_life(1, 2, create_apps=True) == {APP: AppCounts(requests=1, received=2, distinct=2)}
    assert await one_life(2, 3, create_apps=False) == {APP: AppCounts(requests=2, received=4, distinct=3)}
    assert await one_life(create_apps=False) == {APP: AppCounts(requests=3, received=4, distinct=3)}


async def test_without_a_directory_each_state_starts_empty() -> None:
    for _ in range(2):
        async with opened() as state:
            assert (await state.stats()).apps == {}
            await state.add_app(APP, APP)


async def test_a_lifetime_can_be_chosen(session: aiohttp.ClientSession, state: State, clock: FakeClock) -> None:
    async with serving(Sandbox(state, create_apps=True, token_lifetime_seconds=5, clock=clock)) as sandbox:
        client = Client(session, sandbox)
        assert (await client.ask_token()).json["expires_in"] == 5
        await client.authorize()
        clock.advance(4.9)
        assert (await client.push(event())).status == 200
        clock.advance(0.1)
        assert (await client.push(event())).status == 401


async def test_an_address_that_is_taken_is_an_error_and_a_stopped_sandbox_is_gone(
    client: Client, sandbox: Sandbox, state: State
) -> None:
    port = int(sandbox.url.rpartition(":")[2])
    other = Sandbox(state)
    with pytest.raises(OSError, match="address already in use"):
        await other.start("127.0.0.1", port)
    await other.stop()
    await sandbox.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.stats()


async def test_a_sandbox_has_no_url_before_it_is_started_and_keeps_its_last_after_it_was_stopped(state: State) -> None:
    sandbox = Sandbox(state)
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = sandbox.url
    async with serving(sandbox):
        url = sandbox.url
    assert sandbox.url == url


async def test_the_url_of_an_ipv6_address_has_brackets(session: aiohttp.ClientSession, state: State) -> None:
    sandbox = Sandbox(state)
    try:
        await sandbox.start("::1", 0)
    except OSError:
        await sandbox.stop()
        pytest.skip("this machine has no IPv6")
    try:
        assert sandbox.url.startswith("http://[::1]:")
        assert (await Client(session, sandbox).ask_token()).status == 200
    finally:
        await sandbox.stop()
