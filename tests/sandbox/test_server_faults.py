"""The sandbox fails as it is told; spoken to by plain HTTP."""

import asyncio

import aiohttp
import pytest

from collector.contract.operations import (
    GET_ACCESS_TOKEN,
    GET_PROVISIONED_USERS,
    OPERATIONS,
    PUBLISH_PROVISIONED_USERS,
    Operation,
)
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.fake_clock import FakeClock
from tests.sandbox.client import APP, BODIES, Client, event, given, serving


async def test_faults_are_set_and_read_over_http(client: Client) -> None:
    script: dict[str, list[dict[str, object]]]
    script = {"faults": [{"status": 503, "times": 2}, {"operation": "getAccessToken", "cut": True}]}
    assert (await client.request("POST", "/_sandbox/faults", json=script)).json == script
    assert (await client.push(event())).status == 503
    script["faults"][0]["times"] = 1
    assert (await client.request("GET", "/_sandbox/faults")).json == script
    assert [(await client.push(event())).status for _ in range(2)] == [503, 200]
    assert (await client.request("GET", "/_sandbox/faults")).json == {"faults": script["faults"][1:]}


async def test_a_wrong_script_is_refused_with_400_and_changes_nothing(client: Client, sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(status=503))
    answer = await client.request("POST", "/_sandbox/faults", json={"faults": [{"Status": 500}]})
    assert answer.status == 400
    assert "Status" in answer.json["message"]
    assert (await client.push(event())).status == 503


@pytest.mark.parametrize(("after", "kept"), [(False, 0), (True, 1)])
async def test_a_fault_answers_as_it_is_told_instead_of_acting_or_after_it(
    client: Client, sandbox: Sandbox, after: bool, kept: int
) -> None:
    headers = {"Retry-After": "7", "Content-Type": "text/html"}
    sandbox.set_faults(Fault(status=429, headers=headers, body="<p>\u00e9", after=after))
    answer = await client.push(event())
    assert (answer.status, answer.body) == (429, "<p>\u00e9".encode())
    assert (answer.headers["Retry-After"], answer.headers["Content-Type"]) == ("7", "text/html")
    assert (await client.stats())["received"] == kept


@pytest.mark.parametrize(("after", "kept"), [(False, 0), (True, 1)])
async def test_a_cut_ends_the_connection_without_an_answer_before_or_after_the_commit(
    client: Client, sandbox: Sandbox, after: bool, kept: int
) -> None:
    sandbox.set_faults(Fault(cut=True, after=after, times=1))
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.push(event())
    assert (await client.stats())["received"] == kept
    assert (await client.push(event())).status == 200
    stats = await client.stats()
    assert (stats["received"], stats["distinct"]) == (kept + 1, 1)


@pytest.mark.parametrize(
    ("fault", "kept_meanwhile", "status"),
    [
        (Fault(delay_seconds=3600), 1, 200),
        (Fault(delay_seconds=3600, status=503), 0, 503),
        (Fault(delay_seconds=3600, status=503, after=True), 1, 503),
    ],
    ids=["late but true", "late and false", "late and false after acting"],
)
async def test_a_delay_holds_the_answer_back(
    session: aiohttp.ClientSession, state: State, fault: Fault, kept_meanwhile: int, status: int
) -> None:
    class Sleeper(FakeClock):
        asleep = asyncio.Event()

        async def sleep(self, seconds: float) -> None:
            self.asleep.set()
            await super().sleep(seconds)

    clock = Sleeper()
    async with serving(Sandbox(state, create_apps=True, faults=[fault], clock=clock)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        pushing = asyncio.create_task(client.push(event()))
        await clock.asleep.wait()
        clock.advance(3599.9)
        assert (await client.stats())["received"] == kept_meanwhile
        assert not pushing.done()
        clock.advance(0.1)
        assert (await pushing).status == status


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
async def test_a_fault_hits_its_operation_and_no_other(client: Client, sandbox: Sandbox, operation: Operation) -> None:
    sandbox.set_faults(Fault(operation=operation.id, status=599))
    hit = []
    for other in OPERATIONS:
        if other is GET_ACCESS_TOKEN:
            answer = await client.ask_token()
        else:
            answer = await client.call(other, BODIES.get(other.id), **given(other))
        if answer.status == 599:
            hit.append(other.id)
    assert hit == [operation.id]


@pytest.mark.parametrize(("after", "kept"), [(False, 0), (True, 1)])
async def test_every_operation_can_be_carried_out_before_it_fails(
    client: Client, sandbox: Sandbox, after: bool, kept: int
) -> None:
    sandbox.set_faults(Fault(operation="*", app_id=APP, cut=True, after=after, times=1))
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.call(PUBLISH_PROVISIONED_USERS, BODIES[PUBLISH_PROVISIONED_USERS.id], appId=APP)
    assert len((await client.call(GET_PROVISIONED_USERS, appId=APP)).json["users"]) == kept


async def test_a_fault_sees_what_is_in_a_request(client: Client, sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(event_name="poison", status=400), Fault(more_than=2, status=413))
    sizes = [await client.push(*map(event, range(count))) for count in (2, 3)]
    assert [answer.status for answer in sizes] == [200, 413]
    assert (await client.push(event(7), event(8, eventName="poison"))).status == 400
    assert (await client.stats())["received"] == 2


async def test_faults_given_at_the_start_are_in_force_from_the_start(
    session: aiohttp.ClientSession, state: State
) -> None:
    fault = Fault(operation="getAccessToken", status=500, times=1)
    async with serving(Sandbox(state, faults=[fault])) as sandbox:
        client = Client(session, sandbox)
        assert [(await client.ask_token()).status for _ in range(2)] == [500, 200]
