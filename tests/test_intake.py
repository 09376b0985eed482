"""From bodies to batches and back to an answer, with a queue that only remembers."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.bodies import BodyFormat
from collector.errors import MalformedBody, QueueFull, Retryable
from collector.events import INT64_MAX, INT64_MIN, event_key
from collector.intake import Intake, Report
from collector.observe.metrics import Metrics
from collector.queue.base import Backlog, Batch, Burial, Lease, Verdict
from collector.upstream.models import MAX_EVENTS_PER_REQUEST, Event

JSON, NDJSON = BodyFormat.JSON, BodyFormat.NDJSON


class RememberingQueue:
    """Takes everything and knows the keys it has seen; nothing is ever delivered from it."""

    def __init__(self) -> None:
        self.arrivals = asyncio.Event()
        self.puts: list[Sequence[Batch]] = []
        self.refusal: Retryable | None = None
        self._keys: set[bytes] = set()

    @property
    def batches(self) -> list[Batch]:
        return [batch for put in self.puts for batch in put]

    async def put(self, batches: Sequence[Batch]) -> list[Verdict]:
        if self.refusal is not None:
            raise self.refusal
        self.puts.append(batches)
        return [self._verdict(batch) for batch in batches]

    def _verdict(self, batch: Batch) -> Verdict:
        duplicates = []
        for position, key in enumerate(batch.keys):
            if key in self._keys:
                duplicates.append(position)
            self._keys.add(key)
        return Verdict(len(batch.keys) - len(duplicates), tuple(duplicates))

    def backlog(self) -> Iterable[Backlog]:
        raise AssertionError("the intake looks into the queue")

    async def lease(self, app_id: str, max_events: int) -> Lease | None:
        raise AssertionError(f"the intake takes {max_events} events of {app_id} out")

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        raise AssertionError(f"the intake settles {lease}, {buried}, {returned}")


@pytest.fixture
def queue() -> RememberingQueue:
    return RememberingQueue()


def intake(
    queue: RememberingQueue,
    *,
    default_app: str | None = "default-app",
    keep_fields: Sequence[str] = (),
    batch_events: int = 1000,
    metrics: Metrics | None = None,
) -> Intake:
    return Intake(
        queue,
        default_app=default_app,
        keep_fields=keep_fields,
        batch_events=batch_events,
        metrics=metrics or Metrics(),
    )


def event(number: int = 0, **fields: object) -> dict[str, object]:
    return {"timestamp": number, "email": f"user-{number}@example.com", "eventName": "login"} | fields


def body(*events: object) -> bytes:
    return json.dumps(events).encode()


def stored(batch: Batch) -> list[dict[str, Any]]:
    """The events of a batch, after a look at whether upstream would take each line of it."""
    lines = batch.lines.split(b"\n")
    events = [msgspec.json.decode(line, type=Event) for line in lines]
    assert list(batch.keys) == [event_key(batch.app_id, e.timestamp, e.email, e.event_name) for e in events]
    return [json.loads(line) for line in lines]


# -- grouping ----------------------------------------------------------------------------------------------------------


async def test_events_are_grouped_by_app_in_the_order_they_came(queue: RememberingQueue) -> None:
    apps = ["b", "a", "b", "c", "a", "b"]
    report = await intake(queue).take(body(*(event(number, appId=app) for number, app in enumerate(apps))), JSON)
    assert report == Report(accepted=6)
    assert {batch.app_id: [e["timestamp"] for e in stored(batch)] for batch in queue.batches} == {
        "b": [0, 2, 5],
        "a": [1, 4],
        "c": [3],
    }


async def test_all_batches_of_a_request_go_into_the_queue_together(queue: RememberingQueue) -> None:
    await intake(queue, batch_events=2).take(
        body(*(event(number, appId=f"app-{number % 2}") for number in range(9))), JSON
    )
    assert len(queue.puts) == 1


@pytest.mark.parametrize(
    ("events", "batch_events", "sizes"),
    [
        (1, 3, [1]),
        (3, 3, [3]),
        (4, 3, [3, 1]),
        (7, 3, [3, 3, 1]),
        (3, 1, [1, 1, 1]),
        (2001, MAX_EVENTS_PER_REQUEST, [1000, 1000, 1]),
    ],
)
async def test_batches_are_cut_at_the_configured_size(
    queue: RememberingQueue, events: int, batch_events: int, sizes: list[int]
) -> None:
    report = await intake(queue, batch_events=batch_events).take(body(*map(event, range(events))), JSON)
    assert report == Report(accepted=events)
    assert [len(batch.keys) for batch in queue.batches] == sizes
    assert [e for batch in queue.batches for e in stored(batch)] == [event(number) for number in range(events)]


@pytest.mark.parametrize(
    ("default_app", "of_request", "of_event", "app_id"),
    [
        ("configured", None, None, "configured"),
        ("configured", "request", None, "request"),
        ("configured", "request", "event", "event"),
        ("configured", None, "event", "event"),
        (None, "request", None, "request"),
        (None, None, "event", "event"),
    ],
)
async def test_the_nearest_app_wins_event_before_request_before_configuration(
    queue: RememberingQueue, default_app: str | None, of_request: str | None, of_event: str | None, app_id: str
) -> None:
    sent = event() if of_event is None else event(appId=of_event)
    report = await intake(queue, default_app=default_app).take(body(sent), JSON, of_request)
    assert report == Report(accepted=1)
    assert [batch.app_id for batch in queue.batches] == [app_id]


async def test_an_event_of_no_app_is_rejected_with_what_to_do_and_its_neighbours_are_taken(
    queue: RememberingQueue,
) -> None:
    report = await intake(queue, default_app=None).take(body(event(0, appId="a"), event(1), event(2, appId="b")), JSON)
    assert (report.accepted, report.rejected) == (2, 1)
    [error] = report.errors
    assert error.index == 1
    assert error.reason == "appId: missing, and no default app is configured (apps.default)"
    assert [batch.app_id for batch in queue.batches] == ["a", "b"]


# -- lines -------------------------------------------------------------------------------------------------------------


async def test_lines_hold_what_upstream_wants_and_no_app(queue: RememberingQueue) -> None:
    sent = event(5, appId="a", unknown={"a": 1}, team=[1, 2])
    await intake(queue, keep_fields=["team"]).take(body(sent, event(6)), JSON)
    assert [stored(batch) for batch in queue.batches] == [[event(5, team=[1, 2])], [event(6)]]
    assert b"appId" not in b"".join(batch.lines for batch in queue.batches)


async def test_an_event_stays_one_line_however_its_sender_laid_it_out(queue: RememberingQueue) -> None:
    events = [event(number, team={"name": "a\nb", "tags": [1, 2]}, appId="a") for number in range(3)]
    pretty = json.dumps(events, indent=2).replace("\n", "\r\n").encode()
    report = await intake(queue, keep_fields=["team"]).take(pretty, JSON)
    assert report == Report(accepted=3)
    [batch] = queue.batches
    assert batch.lines.count(b"\n") == 2
    assert b"\r" not in batch.lines
    assert [e["team"] for e in stored(batch)] == [e["team"] for e in events]


async def test_unknown_fields_are_counted_once_each(queue: RememberingQueue) -> None:
    metrics = Metrics()
    taker = intake(queue, keep_fields=["team"], metrics=metrics)
    for _ in range(2):
        await taker.take(body(event(0, team=1, one=1), event(1, one=1, two=2)), JSON)
    assert metrics.registry.get_sample_value("collector_unknown_fields_total") == 6


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_what_the_queue_knew_already_is_answered_as_duplicate(queue: RememberingQueue) -> None:
    taker = intake(queue, batch_events=2)
    first = await taker.take(body(event(1), event(2), event(1)), JSON)
    assert first == Report(accepted=2, duplicates=1)
    second = await taker.take(body(event(2), event(1), event(2), event(3), event(1, appId="other")), JSON)
    assert second == Report(accepted=2, duplicates=3)


async def test_each_rejection_names_the_place_of_its_event_in_the_request(queue: RememberingQueue) -> None:
    lines = [event(0, appId="a"), {}, event(2), "", event(4, appId="a", email="nobody"), event(5, appId="a"), event(6)]
    sent = b"\n".join(b"rubbish" if line == "" else json.dumps(line).encode() for line in lines)
    report = await intake(queue, default_app=None).take(sent, NDJSON)
    assert (report.accepted, report.duplicates, report.rejected) == (2, 0, 5)
    reasons = ["timestamp: missing", "appId: missing", "not JSON", 'email: "nobody"; expected', "appId: missing"]
    assert [error.index for error in report.errors] == [1, 2, 3, 4, 6]
    assert [said.reason.startswith(start) for said, start in zip(report.errors, reasons, strict=True)] == [True] * 5
    [batch] = queue.batches
    assert [e["timestamp"] for e in stored(batch)] == [0, 5]


@pytest.mark.parametrize("email", ["nobody", "@example.com", "user@", "@@", "@@@", "   "])
async def test_an_address_without_an_at_inside_is_rejected(queue: RememberingQueue, email: str) -> None:
    report = await intake(queue).take(body(event(email=email)), JSON)
    assert (report.accepted, report.rejected) == (0, 1)
    assert report.errors[0].reason.startswith("email: ")
    assert queue.puts == []


@pytest.mark.parametrize("email", ["a@b", "a@@", "a@b@c", '"a b"@example.com', "\U0001f600@example.com", " a@b "])
async def test_no_more_is_asked_of_an_address_than_an_at_inside(queue: RememberingQueue, email: str) -> None:
    assert await intake(queue).take(body(event(email=email)), JSON) == Report(accepted=1)
    assert stored(queue.batches[0])[0]["email"] == email


@pytest.mark.parametrize(("bad", "left_out"), [(1000, None), (1001, 1), (1500, 500)])
async def test_at_most_1000_errors_are_listed_and_the_rest_is_counted(
    queue: RememberingQueue, bad: int, left_out: int | None
) -> None:
    report = await intake(queue).take(body(event(), *[7] * bad), JSON)
    assert (report.accepted, report.rejected) == (1, bad)
    listed = report.errors[:1000]
    assert [error.index for error in listed] == list(range(1, 1001))
    rest = [(error.index, error.reason) for error in report.errors[1000:]]
    assert rest == ([] if left_out is None else [(None, f"{left_out} more events were rejected and are not listed")])


@pytest.mark.parametrize("sent", [b"[]", b"[7,{}]", b'{"events":[]}'])
async def test_nothing_is_put_where_nothing_is_left_to_put(queue: RememberingQueue, sent: bytes) -> None:
    report = await intake(queue).take(sent, JSON)
    assert report.accepted == 0
    assert queue.puts == []


async def test_nothing_is_put_of_a_malformed_body(queue: RememberingQueue) -> None:
    with pytest.raises(MalformedBody):
        await intake(queue).take(body(event())[:-1], JSON)
    assert queue.puts == []


async def test_a_queue_that_cannot_take_it_is_heard_of_as_it_said_it(queue: RememberingQueue) -> None:
    queue.refusal = QueueFull("full", retry_after_seconds=5)
    with pytest.raises(QueueFull) as caught:
        await intake(queue).take(body(event()), JSON)
    assert caught.value is queue.refusal


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


EVENTS = st.fixed_dictionaries(
    {
        "timestamp": st.integers(INT64_MIN - 1, INT64_MAX + 1) | st.just(1),
        "email": st.sampled_from(["a@example.com", "b@example.com", "nobody"]),
        "eventName": st.sampled_from(["login", "\x00", "\u2028", "\n", ""]),
    },
    optional={"appId": st.sampled_from(["a", "b", ""]), "team": st.just({"a": [1, 2]}), "other": st.just(1)},
)


@given(st.lists(EVENTS, max_size=30), st.integers(1, 5), st.sampled_from([None, "default-app"]))
async def test_the_books_balance_every_event_is_stored_known_or_rejected(
    events: list[dict[str, object]], batch_events: int, default_app: str | None
) -> None:
    queue = RememberingQueue()
    taker = intake(queue, default_app=default_app, batch_events=batch_events, keep_fields=["team"])
    report = await taker.take(json.dumps(events, indent=1).encode(), JSON)
    assert report.accepted + report.duplicates + report.rejected == len(events)
    refused = {error.index for error in report.errors}
    assert len(refused) == report.rejected
    sent = [
        (e.get("appId") or default_app, {name: e[name] for name in e if name not in {"appId", "other"}})
        for index, e in enumerate(events)
        if index not in refused
    ]
    kept = [(batch.app_id, e) for batch in queue.batches for e in stored(batch)]
    assert sorted(map(canonical, kept)) == sorted(map(canonical, sent))
    assert all(len(batch.keys) <= batch_events for batch in queue.batches)
