"""From bodies to batches and back to an answer, with a queue that only remembers."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import itemgetter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.bodies import BYTE_ORDER_MARK, BodyFormat, BodyParser, Parsed, Rejection
from collector.contract.models import MAX_EVENTS_PER_REQUEST, Event
from collector.errors import MalformedBody, QueueFull, Retryable, TooLarge
from collector.events import APP_ID_MAX_CHARS, INT64_MAX, INT64_MIN, event_key, split_keys
from collector.intake import (
    LARGE_BODY_BYTES,
    MAX_ERRORS_SAID,
    SORTED_EVENTS,
    STREAM_PIECE_BYTES,
    STREAM_PIECE_LINES,
    Intake,
    Report,
)
from collector.observe.metrics import Metrics
from collector.queue.base import Backlog, Batch, Burial, Lease, Verdict
from tests.patience import PATIENCE_SECONDS

JSON, NDJSON = BodyFormat.JSON, BodyFormat.NDJSON


class RememberingQueue:
    """Takes everything and knows the keys it has seen; nothing is ever delivered from it."""

    def __init__(self) -> None:
        self.arrivals = asyncio.Event()
        self.puts: list[Sequence[Batch]] = []
        self.refusal: Retryable | None = None
        self.takes = 10**6
        """So many puts it takes, where there is a refusal for the next."""
        self._keys: set[bytes] = set()

    @property
    def batches(self) -> list[Batch]:
        return [batch for put in self.puts for batch in put]

    async def put(self, batches: Sequence[Batch]) -> list[Verdict]:
        if self.refusal is not None and len(self.puts) >= self.takes:
            raise self.refusal
        self.puts.append(batches)
        return [self._verdict(batch) for batch in batches]

    def _verdict(self, batch: Batch) -> Verdict:
        duplicates = []
        for position, key in enumerate(split_keys(batch.keys)):
            if key in self._keys:
                duplicates.append(position)
            self._keys.add(key)
        return Verdict(batch.events - len(duplicates), tuple(duplicates))

    def backlog(self) -> Iterable[Backlog]:
        raise AssertionError("the intake looks into the queue")

    def waiting_events_of(self, app_id: str) -> int:
        raise AssertionError(f"the intake asks what waits of {app_id}")

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
    max_events: int = 100_000,
    max_event_bytes: int = 2**16,
    metrics: Metrics | None = None,
    parser: BodyParser | None = None,
) -> Intake:
    return Intake(
        queue,
        default_app=default_app,
        parser=parser or BodyParser(keep_fields=keep_fields, max_events=max_events),
        batch_events=batch_events,
        max_event_bytes=max_event_bytes,
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
    assert list(split_keys(batch.keys)) == [event_key(batch.app_id, e.timestamp, e.email, e.event_name) for e in events]
    return [json.loads(line) for line in lines]


def by_app(queue: RememberingQueue) -> dict[str, list[dict[str, Any]]]:
    """All that was put, in its order."""
    events: dict[str, list[dict[str, Any]]] = {}
    for batch in queue.batches:
        events.setdefault(batch.app_id, []).extend(stored(batch))
    return events


# -- grouping ----------------------------------------------------------------------------------------------------------


async def test_events_are_grouped_by_app_in_the_order_they_came(queue: RememberingQueue) -> None:
    apps = ["b", "a", "b", "c", "a", "b"]
    report = await intake(queue).take(body(*(event(number, appId=app) for number, app in enumerate(apps))), JSON)
    assert report == Report(accepted=6)
    assert {app_id: [e["timestamp"] for e in events] for app_id, events in by_app(queue).items()} == {
        "b": [0, 2, 5],
        "a": [1, 4],
        "c": [3],
    }


@pytest.mark.parametrize("size", [SORTED_EVENTS, SORTED_EVENTS + 1, 1000])
async def test_large_batches_are_in_order_of_time_and_else_as_they_came(queue: RememberingQueue, size: int) -> None:
    chance = random.Random(size)
    sent = [event(chance.randrange(100), email=f"user-{number}@example.com") for number in range(size - 1)]
    report = await intake(queue).take(body(*sent, sent[0] | {"note": "comes twice"}), JSON)
    assert report == Report(accepted=size - 1, duplicates=1)
    assert by_app(queue)["default-app"] == sorted([*sent, sent[0]], key=itemgetter("timestamp"))


@pytest.mark.parametrize(("size", "in_one_turn"), [(LARGE_BODY_BYTES - 1, 3), (LARGE_BODY_BYTES, 1)])
async def test_of_large_bodies_that_come_at_once_one_is_read_in_a_turn_of_the_loop(size: int, in_one_turn: int) -> None:
    turn = 0
    turns: list[int] = []

    class Watched(BodyParser):
        def parse(self, body: bytes, body_format: BodyFormat) -> Parsed:
            turns.append(turn)
            return super().parse(body, body_format)

    intake_ = intake(RememberingQueue(), parser=Watched(max_events=10))
    takes = [asyncio.create_task(intake_.take(body(event(number)).ljust(size), JSON)) for number in range(3)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not all(take.done() for take in takes):
            await asyncio.sleep(0)
            turn += 1
    assert [take.result() for take in takes] == [Report(accepted=1)] * 3
    assert max(turns.count(each) for each in turns) == in_one_turn


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
    assert [batch.events for batch in queue.batches] == sizes
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


@pytest.mark.parametrize("app_id", [".", "..", "x" * (APP_ID_MAX_CHARS + 1)])
async def test_events_of_an_app_that_cannot_be_are_rejected_wherever_its_name_comes_from(
    queue: RememberingQueue, app_id: str
) -> None:
    sent = body(event(0), event(1, appId=app_id), event(2, appId="sound"), event(3))
    of_event = [1]
    for report, refused in (
        (await intake(queue).take(sent, JSON), of_event),
        (await intake(queue).take(sent, JSON, app_id), [0, 1, 3]),
        (await intake(queue, default_app=app_id).take(sent, JSON), [0, 1, 3]),
    ):
        assert [error.index for error in report.errors] == refused
        assert {error.reason.partition(": ")[0] for error in report.errors} == {"appId"}
    assert {batch.app_id for batch in queue.batches} == {"default-app", "sound"}


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


@pytest.mark.parametrize(
    ("sent", "error"), [(body(event())[:-1], MalformedBody), (body(*map(event, range(6))), TooLarge)]
)
async def test_nothing_is_put_of_a_body_that_is_malformed_or_too_large(
    queue: RememberingQueue, sent: bytes, error: type[Exception]
) -> None:
    report = Report()
    with pytest.raises(error):
        await intake(queue, max_events=5).take(sent, JSON, report=report)
    assert queue.puts == []
    assert report == Report()


async def test_what_became_of_a_body_is_added_to_the_report_that_was_given(queue: RememberingQueue) -> None:
    report = Report(accepted=1, duplicates=2, rejected=1, errors=[Rejection("before")])
    assert await intake(queue).take(body(event(), event(), 7), JSON, report=report) is report
    assert (report.accepted, report.duplicates, report.rejected) == (2, 3, 2)
    assert [error.index for error in report.errors] == [None, 2]


async def test_a_queue_that_cannot_take_it_is_heard_of_as_it_said_it(queue: RememberingQueue) -> None:
    queue.refusal, queue.takes = QueueFull("full", retry_after_seconds=5), 0
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
    assert all(batch.events <= batch_events for batch in queue.batches)


# -- streams -----------------------------------------------------------------------------------------------------------


class Broke(Exception):
    """What a stream may end with in place of its end."""


async def stream(pieces: Iterable[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


@pytest.fixture
def stored_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come of a stream is stored with each of its pieces."""
    monkeypatch.setattr("collector.intake.STREAM_PIECE_BYTES", 1)
    monkeypatch.setattr("collector.intake.LARGE_BODY_BYTES", 1)


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in events)


def timestamps(queue: RememberingQueue) -> list[int]:
    return [e["timestamp"] for batch in queue.batches for e in stored(batch)]


LINES = st.one_of(
    st.integers(0, 20).map(lambda number: json.dumps(event(number), ensure_ascii=False).encode()),
    st.integers(0, 20).map(lambda number: json.dumps(event(number, appId="other", unknown=1)).encode()),
    st.sampled_from([b"", b" ", b"7", b"{}", b"{", b"rubbish", b"\xff", b'"\xc3\xa9"', b"7 7", b"7,7", b"\t{}{}"]),
)


@given(st.lists(LINES, max_size=12), st.booleans(), st.data(), st.integers(1, 200))
async def test_a_stream_gives_the_same_books_whatever_the_size_of_its_pieces(
    texts: list[bytes], has_last_line_end: bool, data: st.DataObject, stored_together: int
) -> None:
    sent = b"\n".join([*texts, b""] if has_last_line_end else texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=12)))
    pieces = [sent[start:end] for start, end in pairwise([0, *cuts, len(sent)])]
    in_pieces, whole, report = RememberingQueue(), RememberingQueue(), Report()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collector.intake.STREAM_PIECE_BYTES", stored_together)
        await intake(in_pieces).take_lines(stream(pieces), None, report)
    assert report == await intake(whole).take(sent, NDJSON)
    assert by_app(in_pieces) == by_app(whole)


@pytest.mark.parametrize("piece_bytes", [1000, STREAM_PIECE_BYTES - 1, STREAM_PIECE_BYTES, STREAM_PIECE_BYTES + 1])
async def test_when_a_source_is_asked_for_more_no_more_than_a_piece_and_a_line_is_held(
    queue: RememberingQueue, piece_bytes: int
) -> None:
    numbers = range(10_000, 30_000)  # their lines are equally long
    sent = lines(*map(event, numbers))
    line_bytes = len(sent) // len(numbers)
    held: list[int] = []

    async def watched() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), piece_bytes):
            held.append(start - line_bytes * sum(batch.events for batch in queue.batches))
            yield sent[start : start + piece_bytes]

    report = Report()
    await intake(queue).take_lines(watched(), None, report)
    assert report == Report(accepted=len(numbers))
    assert timestamps(queue) == list(numbers)
    assert max(held) < STREAM_PIECE_BYTES + line_bytes


@contextmanager
def others_turns() -> Iterator[list[None]]:
    """One entry for each turn that others have had of the loop so far."""
    turns: list[None] = []

    async def other() -> None:
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    yield turns
    running.cancel()


@pytest.mark.usefixtures("stored_piece_by_piece")
@pytest.mark.parametrize("piece", [b"\n", b"7\n", lines(event())])
async def test_a_stream_that_never_waits_lets_others_run_between_its_pieces(
    queue: RememberingQueue, piece: bytes
) -> None:
    with others_turns() as turns:
        await intake(queue).take_lines(stream([piece] * 10), None, Report())
    assert len(turns) >= 10


@pytest.mark.usefixtures("stored_piece_by_piece")
@pytest.mark.parametrize(
    ("pieces", "refused"),
    [
        ([lines(event(0), 7), lines(7, event(3)), lines(event(4)), lines(7)], [1, 2, 5]),
        ([lines(7)[:1], b"\n", b"7", b"7\n7", b"\n"], [0, 1, 2]),
        ([b"\n\n7\n", b"\n \n", b"7 7\n", b"rubbish\n7"], [0, 1, 2, 3, 4]),
        ([lines(event(0), event(1, email="nobody")), lines(event(2, email="nobody"))], [1, 2]),
    ],
)
async def test_a_rejected_event_is_named_by_its_place_in_the_whole_stream(
    queue: RememberingQueue, pieces: list[bytes], refused: list[int]
) -> None:
    report = Report()
    await intake(queue).take_lines(stream(pieces), None, report)
    assert [error.index for error in report.errors] == refused
    assert report.rejected == len(refused)


@pytest.mark.parametrize(
    "pieces", [[], [b""], [b"", b""], [b"\n"], [b" \r\n\n", b"\t\n"], [b"\n" * STREAM_PIECE_BYTES] * 2]
)
async def test_a_stream_may_hold_no_events(queue: RememberingQueue, pieces: list[bytes]) -> None:
    report = Report()
    await intake(queue).take_lines(stream(pieces), None, report)
    assert report == Report()
    assert queue.puts == []


@pytest.mark.usefixtures("stored_piece_by_piece")
@pytest.mark.parametrize("last", [lines(event(2)), lines(event(2))[:-1], b"\r\n" + lines(event(2))[:-1] + b" "])
async def test_a_last_line_needs_no_line_end_where_the_stream_has_ended_by_itself(
    queue: RememberingQueue, last: bytes
) -> None:
    report = Report()
    await intake(queue).take_lines(stream([lines(event(1)), last]), "a", report)
    assert report == Report(accepted=2)
    assert [batch.app_id for batch in queue.batches] == ["a", "a"]
    assert timestamps(queue) == [1, 2]


@pytest.mark.usefixtures("stored_piece_by_piece")
@pytest.mark.parametrize("rest", [b"", b'{"timestamp":', lines(event(9))[:-1]], ids=["none", "part", "whole"])
async def test_a_source_that_fails_leaves_what_was_stored_and_nothing_of_the_line_it_was_in(
    queue: RememberingQueue, rest: bytes
) -> None:
    report, error = Report(), Broke()
    pieces = [lines(event(1), event(1)), lines(7, event(2)), rest]
    with pytest.raises(Broke) as caught:
        await intake(queue).take_lines(stream(pieces, error), None, report)
    assert caught.value is error
    assert (report.accepted, report.duplicates, report.rejected) == (2, 1, 1)
    assert [error.index for error in report.errors] == [2]
    assert timestamps(queue) == [1, 1, 2]


@pytest.mark.usefixtures("stored_piece_by_piece")
async def test_a_queue_that_refuses_midway_leaves_what_was_stored_before(queue: RememberingQueue) -> None:
    queue.refusal, queue.takes = QueueFull("full"), 2
    report = Report()
    pieces = [lines(event(1), 7), lines(event(2), event(2)), lines(7, event(3)), lines(event(4))]
    with pytest.raises(QueueFull) as caught:
        await intake(queue).take_lines(stream(pieces), None, report)
    assert caught.value is queue.refusal
    assert (report.accepted, report.duplicates, report.rejected) == (2, 1, 1)
    assert [error.index for error in report.errors] == [1]
    assert len(queue.puts) == 2


@pytest.mark.usefixtures("stored_piece_by_piece")
async def test_a_line_that_grows_longer_than_allowed_is_too_large_and_what_came_before_stays(
    queue: RememberingQueue,
) -> None:
    pieces = [lines(event(1), 7), b"\n" * 500, b"x" * 60, b"x" * 60, b"x" * 60, lines(event(2))]
    report, left = Report(), iter(pieces)
    with pytest.raises(TooLarge, match=r"event 2: its line is longer than events\.max_event_bytes = 100 bytes"):
        await intake(queue, max_event_bytes=100).take_lines(stream(left), None, report)
    assert len(list(left)) == 2  # it is not read to its end
    assert (report.accepted, report.rejected) == (1, 1)
    assert timestamps(queue) == [1]


@pytest.mark.usefixtures("stored_piece_by_piece")
async def test_a_line_may_come_in_many_pieces_as_long_as_it_is_no_longer_than_allowed(queue: RememberingQueue) -> None:
    sent = lines(event(1), event(2), event(3))
    report = Report()
    await intake(queue, max_event_bytes=len(lines(event(1))) - 1).take_lines(
        stream(sent[place : place + 1] for place in range(len(sent))), None, report
    )
    assert report == Report(accepted=3)


@pytest.mark.usefixtures("stored_piece_by_piece")
@pytest.mark.parametrize(("bad", "left_out"), [(MAX_ERRORS_SAID, 0), (MAX_ERRORS_SAID + 1, 1), (3500, 2500)])
async def test_errors_are_listed_up_to_a_limit_over_all_pieces_and_the_rest_is_counted_once(
    queue: RememberingQueue, bad: int, left_out: int
) -> None:
    report = Report()
    rejected = [lines(*[7] * len(range(start, min(start + 600, bad)))) for start in range(0, bad, 600)]
    await intake(queue).take_lines(stream([*rejected, lines(event(1))]), None, report)
    assert (report.accepted, report.rejected) == (1, bad)
    assert [error.index for error in report.errors[:MAX_ERRORS_SAID]] == list(range(MAX_ERRORS_SAID))
    said = [(error.index, error.reason) for error in report.errors[MAX_ERRORS_SAID:]]
    assert said == [(None, f"{left_out} more events were rejected and are not listed")] * bool(left_out)


# -- datagrams ---------------------------------------------------------------------------------------------------------

DATAGRAMS = st.one_of(
    st.integers(0, 20).map(lambda number: json.dumps(event(number)).encode()),
    st.lists(st.integers(0, 20).map(event), max_size=3).map(lambda events: lines(*events)),
    st.sampled_from([b"", b"7", b"{", b"\xff", b"[]", b"{}{}", b"[7,7]", body(event(1), event(2, unknown=1), {})]),
)


async def test_datagrams_are_put_into_the_queue_together_in_their_order(queue: RememberingQueue) -> None:
    report = Report()
    sent = [lines(event(1)), lines(event(2), event(3)), body(event(4), event(1)), lines(event(5))[:-1]]
    await intake(queue).take_datagrams(sent, report)
    assert report == Report(accepted=5, duplicates=1)
    assert timestamps(queue) == [1, 2, 3, 4, 1, 5]
    assert len(queue.puts) == 1


async def test_a_datagram_that_is_malformed_or_too_large_counts_as_one_rejected_event(queue: RememberingQueue) -> None:
    report = Report()
    sent = [lines(event(1)), b"", body(event(2), 7), b"{", body(*map(event, range(10, 16))), lines(event(3))]
    await intake(queue, max_events=5).take_datagrams(sent, report)
    assert (report.accepted, report.duplicates, report.rejected) == (3, 0, 4)
    assert [error.index for error in report.errors] == [1, 3, 4, 5]
    reasons = ["the body is not JSON", "7; expected an object", "the body is not JSON", "the body has 6 events"]
    assert [said.reason.startswith(start) for said, start in zip(report.errors, reasons, strict=True)] == [True] * 4
    assert timestamps(queue) == [1, 2, 3]


@given(st.lists(DATAGRAMS, max_size=8))
async def test_datagrams_give_the_same_books_together_and_one_by_one(datagrams: list[bytes]) -> None:
    together, one_by_one = RememberingQueue(), RememberingQueue()
    report, each = Report(), Report()
    await intake(together).take_datagrams(datagrams, report)
    for datagram in datagrams:
        await intake(one_by_one).take_datagrams([datagram], each)
    assert (report.accepted, report.duplicates, report.rejected) == (each.accepted, each.duplicates, each.rejected)
    assert timestamps(together) == timestamps(one_by_one)


async def test_a_queue_that_refuses_datagrams_leaves_their_report_empty(queue: RememberingQueue) -> None:
    queue.refusal, queue.takes = QueueFull("full"), 0
    report = Report()
    with pytest.raises(QueueFull):
        await intake(queue).take_datagrams([lines(event(1)), b"7"], report)
    assert report == Report()


@pytest.mark.usefixtures("stored_piece_by_piece")
async def test_the_lines_before_a_too_long_one_are_stored(queue: RememberingQueue) -> None:
    report = Report()
    with pytest.raises(TooLarge, match="event 2: "):
        await intake(queue, max_event_bytes=100).take_lines(stream([lines(event(1), 7) + b"x" * 101]), None, report)
    assert (report.accepted, report.rejected) == (1, 1)


@pytest.mark.parametrize("line_end", [b"\n", b""])
async def test_a_too_long_line_is_refused_however_it_comes(queue: RememberingQueue, line_end: bytes) -> None:
    sent = lines(event(1, unknown="x" * 200))[:-1] + line_end
    with pytest.raises(TooLarge):
        await intake(queue, max_event_bytes=100).take_lines(stream([sent]), None, Report())


@pytest.mark.usefixtures("stored_piece_by_piece")
async def test_a_byte_order_mark_counts_alike_wherever_a_piece_begins(queue: RememberingQueue) -> None:
    sent = [lines(event(1)), BYTE_ORDER_MARK + lines(event(2))]
    a, b = Report(), Report()
    await intake(queue).take_lines(stream(sent), None, a)
    await intake(RememberingQueue()).take_lines(stream([b"".join(sent)]), None, b)
    assert a == b


async def test_the_limit_of_a_request_is_not_one_of_many_datagrams(queue: RememberingQueue) -> None:
    report = Report()
    await intake(queue, max_events=5).take_datagrams([lines(event(n)) for n in range(6)], report)
    assert report == Report(accepted=6)


@pytest.mark.parametrize("others", [0, 3])
async def test_the_limit_of_a_request_is_one_of_each_datagram(queue: RememberingQueue, others: int) -> None:
    report = Report()
    datagrams = [lines(*map(event, range(6))), *(lines(event(10 + n)) for n in range(others))]
    await intake(queue, max_events=5).take_datagrams(datagrams, report)
    assert (report.accepted, report.rejected) == (others, 1)
    assert "the body has 6 events" in report.errors[0].reason


async def test_lines_that_are_no_events_are_looked_at_a_few_thousand_at_a_time(
    queue: RememberingQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    taker = intake(queue)
    begin = taker.begin

    def counting(body: bytes, *rest: Any) -> Any:
        looked_at.append(body.count(b"\n"))
        return begin(body, *rest)

    monkeypatch.setattr(taker, "begin", counting)
    report = Report()
    sent = lines(event(1)) + b"x\n" * 200_000 + lines(event(2)) + b"\n" * 200_000
    with others_turns() as turns:
        await taker.take_lines(stream([sent]), None, report)
    assert (report.accepted, report.rejected) == (2, 200_000)
    assert sum(looked_at) == 400_002
    assert max(looked_at) <= 2 * STREAM_PIECE_LINES
    assert len(turns) >= len(looked_at) > 20


async def test_unknown_fields_count_once_however_often_their_events_are_offered(queue: RememberingQueue) -> None:
    metrics = Metrics()
    taker = intake(queue, metrics=metrics)
    queue.refusal, queue.takes = QueueFull("full"), 0
    with pytest.raises(QueueFull):
        await taker.take_datagrams([lines(event(1, unknown=1))], Report())
    queue.refusal = None
    await taker.take_datagrams([lines(event(1, unknown=1))], Report())
    assert metrics.registry.get_sample_value("collector_unknown_fields_total") == 1


@pytest.mark.usefixtures("stored_piece_by_piece")
async def test_a_stream_that_breaks_off_says_how_many_rejections_are_not_listed(
    queue: RememberingQueue,
) -> None:
    report = Report()
    with pytest.raises(Broke):
        await intake(queue).take_lines(stream([b"7\n" * 1500], Broke()), None, report)
    assert report.errors[-1].reason == "500 more events were rejected and are not listed"
