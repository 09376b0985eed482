"""An edge and its central collector in one loop: what the central says of each event, and what comes of it."""

from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.agent import Collector
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import dead_letters, settled
from tests.embedded import embedded, metric
from tests.patience import until

APP = "wiki"
KEPT = {"events__keep_fields": "note"}


async def post(collector: Collector, names: list[str], app_id: str = APP) -> None:
    events = [
        {"timestamp": number, "email": "person@example.com", "eventName": name, "note": f"note {number}"}
        for number, name in enumerate(names)
    ]
    path = f"/services/push/v1/customer/apps/{app_id}/usage-events"
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{collector.http_address}{path}", json={"events": events}) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def until_nothing_waits(edge: Collector) -> None:
    await until(lambda: not metric(edge, "waiting_events") and not metric(edge, "in_flight_leases"))


async def until_held(edge: Collector) -> str:
    """Why the app is held, once it is."""
    await until(lambda: edge._flusher.held)
    return edge._flusher.held[APP]


def address(collector: Collector) -> str:
    return f"http://{collector.http_address}"


async def test_events_that_the_central_refuses_are_buried_with_its_reason_and_their_neighbours_delivered_at_once(
    tmp_path: Path, upstream: Sandbox, state: State
) -> None:
    strict = {**KEPT, "events__max_event_name_chars": "10"}
    async with embedded(tmp_path / "central", upstream.url, **strict) as central:
        async with embedded(tmp_path / "edge", upstream.url, forward__url=address(central), **KEPT) as edge:
            await post(edge, ["name of more than ten" if number in {0, 7, 999} else "saved" for number in range(1000)])
            await until_nothing_waits(edge)
            assert metric(edge, "deliveries_total", outcome="delivered") == 1  # nobody had to look for the guilty ones
            assert (metric(edge, "delivered_events_total"), metric(edge, "buried_events_total")) == (997, 3)
            status = await edge.status()
            assert status.upstream.url == address(central)
        await settled(state, 997)
    letters = dead_letters(tmp_path / "edge" / "queue")
    assert [msgspec.json.decode(line)["timestamp"] for _, line, _ in letters] == [0, 7, 999]
    for _, _, reason in letters:
        assert reason.startswith(f"central collector {address(central)}: eventName: ")
        assert "1 to 10" in reason
    assert dead_letters(tmp_path / "central" / "queue") == []
    assert {msgspec.json.decode(line)["note"] for _, line in await state.events()} == {
        f"note {number}" for number in set(range(1000)) - {0, 7, 999}
    }


async def test_the_verdict_on_a_batch_of_which_nearly_all_is_refused_at_length_is_heard_whole(
    tmp_path: Path, upstream: Sandbox, state: State
) -> None:
    names = ["saved" if number % 20 == 0 else "\N{GRINNING FACE}" * 70 for number in range(1000)]
    async with embedded(tmp_path / "central", upstream.url, events__max_event_name_chars="10") as central:
        async with embedded(tmp_path / "edge", upstream.url, forward__url=address(central)) as edge:
            await post(edge, names)
            await until_nothing_waits(edge)
            assert (metric(edge, "delivered_events_total"), metric(edge, "buried_events_total")) == (50, 950)
        await settled(state, 50)


async def test_a_central_that_does_not_keep_a_field_counts_it(tmp_path: Path, upstream: Sandbox, state: State) -> None:
    async with (
        embedded(tmp_path / "central", upstream.url) as central,
        embedded(tmp_path / "edge", upstream.url, forward__url=address(central), **KEPT) as edge,
    ):
        await post(edge, ["saved"] * 5)
        await settled(state, 5)
        assert metric(central, "unknown_fields_total") == 5
        assert metric(edge, "unknown_fields_total") == 0


async def test_a_central_that_refuses_everything_is_not_believed_and_the_app_is_held(
    tmp_path: Path, upstream: Sandbox
) -> None:
    async with (
        embedded(tmp_path / "central", upstream.url, events__max_event_name_chars="4") as central,
        embedded(tmp_path / "edge", upstream.url, forward__url=address(central), stop__deadline="0s") as edge,
    ):
        await post(edge, ["saved"] * 60)
        assert "every one of 60 events that were tried was refused" in await until_held(edge)
        assert metric(edge, "waiting_events") == 60


@pytest.mark.parametrize("token", ["sesame-of-16-letters", None, "another-of-16-letters"])
async def test_a_central_that_asks_for_a_token_takes_events_with_it_and_holds_them_without(
    tmp_path: Path, upstream: Sandbox, state: State, token: str | None
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("sesame-of-16-letters\n", encoding="utf-8")
    tokens.chmod(0o600)
    given = {} if token is None else {"forward__token": token}
    async with (
        embedded(tmp_path / "central", upstream.url, access__tokens_file=str(tokens)) as central,
        embedded(tmp_path / "edge", upstream.url, forward__url=address(central), stop__deadline="0s", **given) as edge,
    ):
        await post(edge, ["saved"])
        if token == "sesame-of-16-letters":
            await settled(state, 1)
        else:
            reason = await until_held(edge)
            assert reason.startswith(f"central collector {address(central)}: 401: Authorization: missing or unknown")
            assert "another" not in reason


async def test_a_central_on_this_machine_can_be_reached_over_a_unix_socket(
    tmp_path: Path, upstream: Sandbox, state: State
) -> None:
    listens_on = tmp_path / "central.sock"
    async with (
        embedded(tmp_path / "central", upstream.url, unix__stream=str(listens_on)),
        embedded(tmp_path / "edge", upstream.url, forward__url=f"unix:{listens_on}") as edge,
    ):
        await post(edge, ["saved"] * 5)
        await settled(state, 5)
        assert (await edge.status()).upstream.url == f"unix:{listens_on}"


async def test_what_an_edge_forwards_needs_no_credentials_of_upstream(tmp_path: Path, upstream: Sandbox) -> None:
    async with (
        embedded(tmp_path / "central", upstream.url) as central,
        embedded(tmp_path / "edge", "http://127.0.0.1:1", forward__url=address(central)) as edge,
    ):
        await post(edge, ["saved"] * 5)
        await until_nothing_waits(edge)
        assert metric(edge, "token_requests_total", outcome="granted") == 0
        assert metric(central, "events_total", source="http", verdict="accepted") == 5
