"""The trail of audit events: none missed, none twice, whatever ends a run."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from collector.cli.api.cursor import BATCH, OVERLAP, WINDOW, Cursor, CursorFile, Trail
from collector.config.kinds import Secret
from collector.config.model import Upstream
from collector.contract.models import AuditEvent
from collector.errors import Unusable
from collector.sandbox.faults import Fault
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from collector.sandbox.state import State
from collector.upstream.client import Client
from tests.fake_clock import FakeClock

SECOND = timedelta(seconds=1)


class Paper:
    """Where events are written, and what the cursor says behind them."""

    def __init__(self, since: datetime) -> None:
        self.ids: list[str] = []
        self.cursor = Cursor(since)
        self.saves = 0

    def write(self, events: Sequence[AuditEvent]) -> None:
        self.ids += [event.event_id for event in events]

    def save(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.saves += 1


def now(clock: FakeClock) -> datetime:
    return datetime.fromtimestamp(clock.now_ms() / 1000, UTC)


async def happen(state: State, time: datetime, *ids: str) -> None:
    for event_id in ids:
        await state.records.add_audit_event(AuditEvent(event_id, timestamp=time), round(time.timestamp() * 1e6))


@pytest.fixture
async def client(sandbox: Sandbox, clock: FakeClock) -> AsyncIterator[Client]:
    settings = Upstream(
        base_url=sandbox.url,
        token_url=f"{sandbox.url}/oauth2/token",
        client_id=CLIENT_ID,
        client_secret=Secret(CLIENT_SECRET),
    )
    async with Client(settings, clock=clock) as client:
        yield client


def trail(client: Client, paper: Paper, clock: FakeClock) -> Trail:
    return Trail(client, paper.cursor, clock=clock, write=paper.write, save=paper.save)


@pytest.mark.parametrize("restarts", [False, True], ids=["one run", "a run each time"])
async def test_late_events_are_found_and_none_is_written_twice(
    client: Client, state: State, clock: FakeClock, restarts: bool
) -> None:
    start = now(clock)
    paper = Paper(start - 10 * SECOND)
    one = trail(client, paper, clock)
    written: list[str] = []
    for number in range(8):
        clock.advance(70)
        moment = now(clock)
        late = moment - OVERLAP + 2 * SECOND  # as late as may be
        await happen(state, moment - SECOND, f"live-{number}")
        if late > start:
            await happen(state, late, f"late-{number}")
        if restarts:
            one = trail(client, paper, clock)
        await one.follow()
        written += [f"live-{number}"] + [f"late-{number}"] * (late > start)
        assert sorted(paper.ids) == sorted(written)
    assert len(paper.cursor.written) < len(written)


async def test_a_long_range_is_asked_for_in_parts_and_the_cursor_keeps_only_the_last_ids(
    client: Client, state: State, clock: FakeClock
) -> None:
    end = now(clock)
    days = [end - number * WINDOW for number in range(3, 0, -1)]
    for number, day in enumerate(days):
        await happen(state, day, f"start-{number}")
        await happen(state, day + WINDOW - timedelta(microseconds=1), f"end-{number}")
    paper = Paper(days[0])
    await trail(client, paper, clock).follow()
    assert paper.ids == ["start-0", "end-0", "start-1", "end-1", "start-2", "end-2"]
    assert paper.cursor == Cursor((end - OVERLAP).replace(microsecond=0), paper.cursor.written)
    assert list(paper.cursor.written) == ["end-2"]
    assert paper.saves == 3


async def test_up_to_a_time_in_the_past_the_cursor_stands_there(client: Client, state: State, clock: FakeClock) -> None:
    until = now(clock) - timedelta(hours=1)
    await happen(state, until - SECOND, "before")
    await happen(state, until, "after")
    paper = Paper(until - timedelta(hours=2))
    await trail(client, paper, clock).follow(until)
    assert (paper.ids, paper.cursor.since) == (["before"], until.replace(microsecond=0))
    await trail(client, paper, clock).follow(until)
    await trail(client, paper, clock).follow()
    assert paper.ids == ["before", "after"]


async def test_where_our_clock_is_ahead_of_upstreams_nothing_is_missed(
    client: Client, state: State, clock: FakeClock, sandbox: Sandbox
) -> None:
    upstreams_now = now(clock) - timedelta(minutes=20)
    date = format_datetime(upstreams_now, usegmt=True)
    sandbox.set_faults(
        Fault(operation="getAuditEvents", status=200, headers={"Date": date}, body='{"events": []}', times=1)
    )
    paper = Paper(now(clock) - timedelta(hours=1))
    await trail(client, paper, clock).follow()
    await happen(state, upstreams_now + SECOND, "after that")
    await trail(client, paper, clock).follow()
    assert paper.ids == ["after that"]


@pytest.mark.parametrize(
    ("date", "has_moved"),
    [
        ("Thu, 01 Jan 1970 00:00:00 GMT", False),
        ("Mon, 01 Jan 0100 00:00:00 GMT", False),
        ("soon", True),
        ("Fri, 31 Dec 9999 23:59:59 GMT", True),
    ],
)
async def test_whatever_upstreams_date_is_the_cursor_moves_neither_back_nor_into_the_future(
    client: Client, clock: FakeClock, sandbox: Sandbox, date: str, has_moved: bool
) -> None:
    sandbox.set_faults(Fault(operation="getAuditEvents", status=200, headers={"Date": date}, body='{"events": []}'))
    start = now(clock) - timedelta(days=3)
    paper = Paper(start)
    await trail(client, paper, clock).follow()
    assert paper.cursor.since == ((now(clock) - OVERLAP).replace(microsecond=0) if has_moved else start)


async def test_a_cursor_of_a_clock_that_was_far_ahead_is_an_error_and_not_silence(
    client: Client, clock: FakeClock
) -> None:
    paper = Paper(now(clock) + 2 * WINDOW)
    with pytest.raises(Unusable, match="yet to come; is this machine's clock right"):
        await trail(client, paper, clock).follow()
    await trail(client, Paper(now(clock) + SECOND), clock).follow()


async def test_an_end_at_the_end_of_all_time_is_as_good_as_now(client: Client, state: State, clock: FakeClock) -> None:
    await happen(state, now(clock) + SECOND, "of a clock that is ahead")
    paper = Paper(now(clock) - SECOND)
    await trail(client, paper, clock).follow(now(clock) + 40 * WINDOW)
    assert (paper.ids, paper.saves) == (["of a clock that is ahead"], 2)


async def test_what_was_before_the_start_stays_unasked_for(client: Client, state: State, clock: FakeClock) -> None:
    await happen(state, now(clock) - 90 * SECOND, "before")
    await happen(state, now(clock) - 30 * SECOND, "after")
    paper = Paper(now(clock) - 60 * SECOND)
    for _ in range(2):
        await trail(client, paper, clock).follow()
    assert paper.ids == ["after"]


async def test_a_failure_between_pages_keeps_what_was_written_before_it(
    client: Client, state: State, clock: FakeClock, sandbox: Sandbox
) -> None:
    await happen(state, now(clock) - SECOND, *(f"{number:04}" for number in range(BATCH + 100)))
    paper = Paper(now(clock) - timedelta(hours=1))

    def write_and_break(events: Sequence[AuditEvent]) -> None:
        paper.write(events)
        sandbox.set_faults(Fault(operation="getAuditEvents", status=403))

    with pytest.raises(Unusable):
        await Trail(client, paper.cursor, clock=clock, write=write_and_break, save=paper.save).follow()
    assert len(paper.cursor.written) == BATCH == len(paper.ids)
    assert paper.cursor.since == now(clock) - timedelta(hours=1)
    sandbox.set_faults()
    await trail(client, paper, clock).follow()
    assert paper.ids == [f"{number:04}" for number in range(BATCH + 100)]


async def test_what_was_written_before_a_cursor_that_never_came_to_disk_is_written_again(
    client: Client, state: State, clock: FakeClock
) -> None:
    await happen(state, now(clock) - SECOND, "one")
    paper = Paper(now(clock) - timedelta(hours=1))

    def no_disk(_cursor: Cursor) -> None:
        raise Unusable("no room")

    with pytest.raises(Unusable, match="no room"):
        await Trail(client, paper.cursor, clock=clock, write=paper.write, save=no_disk).follow()
    await trail(client, paper, clock).follow()
    assert paper.ids == ["one", "one"]


async def test_an_event_without_a_time_or_without_a_zone_is_written_once(
    client: Client, state: State, clock: FakeClock
) -> None:
    for event in (AuditEvent("timeless"), AuditEvent("zoneless", timestamp=now(clock).replace(tzinfo=None))):
        await state.records.add_audit_event(event, clock.now_us() - 1000)
    paper = Paper(now(clock) - timedelta(hours=1))
    await trail(client, paper, clock).follow()
    clock.advance(60)
    await trail(client, paper, clock).follow()
    assert sorted(paper.ids) == ["timeless", "zoneless"]


def test_a_cursor_is_what_was_saved_last(tmp_path: Path) -> None:
    file = CursorFile(tmp_path / "cursor")
    assert file.load() is None
    time = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
    for cursor in (Cursor(time, {"a": time}), Cursor(time + SECOND)):
        file.save(cursor)
        assert file.load() == cursor
    assert [entry.name for entry in tmp_path.iterdir()] == ["cursor"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"\xff", b'{"since": "now"}', b'{"since": "2026-01-15T10:30:00Z", "x": 1}'),
        b'{"since": "2026-01-15T10:30:00"}',
        b'{"since": "0001-01-01T00:00:00+14:00"}',
        b'{"since": "2026-01-15T10:30:00Z", "written": {"a": "2026-01-15T10:30:00"}}',
    ],
)
def test_a_file_that_is_no_cursor_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cursor").write_bytes(content)
    with pytest.raises(Unusable, match=r"cursor is no cursor: .*; remove it to begin anew"):
        CursorFile(tmp_path / "cursor").load()


def test_one_process_at_a_time_goes_by_a_cursor(tmp_path: Path) -> None:
    file = CursorFile(tmp_path / "cursor")
    with file.held(), pytest.raises(Unusable, match="another process"), file.held():
        pass
    with file.held():
        pass


def test_a_cursor_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    file = CursorFile(tmp_path / "nowhere" / "cursor")
    with pytest.raises(Unusable, match="No such file"):
        file.save(Cursor(datetime(2026, 1, 15, tzinfo=UTC)))
    with pytest.raises(Unusable, match="No such file"), file.held():
        pass
