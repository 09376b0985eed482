"""`collector api audit-events` as a process that is stopped and killed."""

import asyncio
import csv
import fcntl
import io
import os
import signal
import sys
import termios
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from collector.cli.api import output
from collector.cli.api.audit import for_ever
from collector.cli.api.cursor import BATCH
from collector.cli.api.output import end_torn_line, to_csv
from collector.cli.loop import SAME_STOP_SECONDS
from collector.contract.models import AuditEvent
from collector.errors import CredentialsRefused, Retryable
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.cli.api.conftest import Api, environment, rows
from tests.cli.child import SECONDS, finish, run, started
from tests.fake_clock import FakeClock
from tests.patience import until

DETAILS = {"note": "x" * 500}
"""So that a thousand events are more than a pipe and its reader hold: who writes them waits."""


async def happen(state: State, *ids: str, ago: timedelta = timedelta(seconds=10)) -> None:
    time = datetime.now(UTC) - ago
    for event_id in ids:
        event = AuditEvent(event_id, timestamp=time, details=DETAILS)
        await state.records.add_audit_event(event, round(time.timestamp() * 1e6))


def pending_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


async def read_ids(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    lines = [await asyncio.wait_for(process.stdout.readline(), SECONDS) for _ in range(count)]
    return [msgspec.json.decode(line, type=AuditEvent).event_id for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_follows_until_a_signal_and_the_next_run_goes_on_there(
    sandbox: Sandbox, api: Api, state: State, tmp_path: Path, number: signal.Signals
) -> None:
    cursor = str(tmp_path / "cursor")
    words = ("api", "audit-events", "--follow", "--interval", "100ms", "--cursor", cursor)
    await happen(state, "a", "b")
    async with started(*words, env=environment(sandbox)) as process:
        assert await read_ids(process, 2) == ["a", "b"]
        await happen(state, "late", ago=timedelta(minutes=4))
        assert await read_ids(process, 1) == ["late"]
        process.send_signal(number)
        assert await finish(process) == (0, "", "")
    await happen(state, "c")
    assert [row["eventId"] for row in rows(await api("audit-events", "--cursor", cursor))] == ["c"]


@pytest.mark.parametrize("words", [(), ("--follow",)])
async def test_a_reader_that_stands_still_is_left_at_a_second_ctrl_c(
    sandbox: Sandbox, state: State, words: Sequence[str]
) -> None:
    await happen(state, *map(str, range(BATCH)))
    reading, writing = os.pipe()
    async with started("api", "audit-events", *words, env=environment(sandbox), stdout=writing) as process:
        assert process.stderr is not None
        os.close(writing)
        await until(lambda: pending_bytes(reading) > 2**15)  # more does not go in: it waits amid the write
        while process.returncode is None:  # two that come together, as on a busy machine, count as one
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(2 * SAME_STOP_SECONDS)
        assert await finish(process) == (130, "", "stopped at once by a second signal\n")
    os.close(reading)


async def test_beside_a_shell_that_has_it_ignore_ctrl_c_it_goes_on(sandbox: Sandbox, state: State) -> None:
    await happen(state, *map(str, range(BATCH)))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        reading, writing = os.pipe()
        async with started("api", "audit-events", env=environment(sandbox), stdout=writing) as process:
            os.close(writing)
            await until(lambda: pending_bytes(reading) > 2**15)
            process.send_signal(signal.SIGINT)
            while await asyncio.to_thread(os.read, reading, 2**20):
                pass
            assert await finish(process) == (0, "", "")
        os.close(reading)
    finally:
        signal.signal(signal.SIGINT, before)


async def test_killed_in_the_midst_it_misses_nothing_and_repeats_one_write_at_most(
    sandbox: Sandbox, state: State, tmp_path: Path
) -> None:
    words = ("api", "audit-events", "--cursor", str(tmp_path / "cursor"))
    expected = [f"{number:05}" for number in range(4 * BATCH)]
    await happen(state, *expected)
    async with started(*words, env=environment(sandbox)) as process:
        written = await read_ids(process, BATCH + 1)
        process.kill()
        # What is in the pipe has left the process, but for a line that the kill has torn.
        rest = (await finish(process)).out
    written += [msgspec.json.decode(line, type=AuditEvent).event_id for line in rest.split("\n")[:-1]]
    ended = await run(*words, env=environment(sandbox))
    again = [str(row["eventId"]) for row in rows(ended)]
    assert sorted({*written, *again}) == expected
    assert len(written) + len(again) <= len(expected) + BATCH


async def test_a_line_that_a_kill_has_torn_does_not_spoil_the_next(
    sandbox: Sandbox, api: Api, state: State, tmp_path: Path
) -> None:
    words = ("audit-events", "--cursor", str(tmp_path / "cursor"))
    await happen(state, "a")
    assert (await api(*words)).out.count("\n") == 1
    await happen(state, "b")
    file = tmp_path / "events.ndjson"
    file.write_bytes(b'{"eventId":"a"}\n{"event')
    with file.open("ab") as out:
        async with started("api", *words, env=environment(sandbox), stdout=out.fileno()) as process:
            assert (await finish(process)).status == 0
    lines = file.read_text().splitlines()
    assert lines[:2] == ['{"eventId":"a"}', '{"event']
    assert [msgspec.json.decode(line)["eventId"] for line in lines[2:]] == ["b"]


async def test_in_csv_neither_and_the_header_comes_once_though_there_was_nothing_at_first(
    sandbox: Sandbox, state: State, tmp_path: Path
) -> None:
    file, cursor, saved = tmp_path / "events.csv", tmp_path / "cursor", tmp_path / "saved"

    async def first_cells() -> list[str]:
        words = ("api", "audit-events", "--format", "csv", "--cursor", str(cursor))
        with file.open("ab") as out:
            async with started(*words, env=environment(sandbox), stdout=out.fileno()) as process:
                assert (await finish(process)).status == 0
        with file.open(newline="") as text:
            return [row[0] for row in csv.reader(text)]

    assert await first_cells() == ["eventId"]
    cursor.rename(saved)
    await happen(state, "a")
    assert await first_cells() == ["eventId", "a"]
    os.truncate(file, file.stat().st_size - len(DETAILS["note"]))  # killed within the write, and no cursor was saved
    saved.rename(cursor)
    assert await first_cells() == ["eventId", "a", "a"]


def test_wherever_a_csv_row_is_torn_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = to_csv([AuditEvent("a", 'b,"c"\n\n"', details={"d": "e"})], AuditEvent, with_header=False)
    whole = list(csv.reader(io.StringIO(row.decode(), newline="")))
    for length in range(len(row) + 1):
        file = tmp_path / f"{length}.csv"
        file.write_bytes(row + row[:length])
        with file.open("ab") as out:
            monkeypatch.setattr(output, "STDOUT", out.fileno())
            end_torn_line(is_csv=True)
            output.write(row)
        rows_now = list(csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))
        assert [rows_now[0], rows_now[-1]] == whole * 2, row[:length]
        assert len(rows_now) == (3 if length else 2)


@pytest.mark.parametrize("text", ["a\rb", "\r", "a\r\nb", "a\nb", 'a"b', "a,b", "\x1b[1m\t é", " ", ""])
def test_every_text_comes_back_from_its_csv_cell(text: str) -> None:
    content = to_csv([AuditEvent("1", text), AuditEvent("2", "x")], AuditEvent, with_header=True)
    read = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert [row[:2] for row in read] == [["eventId", "eventType"], ["1", text], ["2", "x"]]
    assert content.endswith(b"2,x,,,\n")


@pytest.mark.parametrize(("retry_after_seconds", "wait_seconds"), [(None, 60), (7.0, 60), (3600.0, 3600)])
async def test_what_passes_by_itself_is_said_and_the_following_goes_on(
    clock: FakeClock, capsys: pytest.CaptureFixture[str], retry_after_seconds: float | None, wait_seconds: int
) -> None:
    failures = [Retryable("getAuditEvents: 503", retry_after_seconds=retry_after_seconds)]
    succeeded = asyncio.Event()

    async def follow() -> None:
        if failures:
            raise failures.pop()
        succeeded.set()

    following = asyncio.create_task(for_ever(follow, 60, clock))
    await until(lambda: clock.next_due_seconds() == wait_seconds)
    clock.advance(wait_seconds)
    await asyncio.wait_for(succeeded.wait(), SECONDS)
    following.cancel()
    await asyncio.wait([following])
    assert capsys.readouterr().err == f"getAuditEvents: 503; next try in {wait_seconds} s\n"


async def test_what_does_not_pass_ends_the_following(clock: FakeClock) -> None:
    async def follow() -> None:
        raise CredentialsRefused("no")

    with pytest.raises(CredentialsRefused):
        await for_ever(follow, 60, clock)


async def test_without_a_cursor_it_asks_for_as_much_at_once_as_may_be(api: Api, sandbox: Sandbox) -> None:
    page = Fault(operation="getAuditEvents", status=200, body='{"events": [{"eventId": "a"}]}', times=2)
    sandbox.set_faults(page, Fault(operation="getAuditEvents", status=400, body="one request too many"))
    ended = await api("audit-events", "--since", "-45d")
    assert ended == (0, '{"eventId":"a"}\n', "")


async def test_csv_has_its_header_once_and_a_table_all_at_once(api: Api, state: State, tmp_path: Path) -> None:
    words = ("audit-events", "--format", "csv", "--cursor", str(tmp_path / "cursor"))
    await happen(state, "a")
    first = (await api(*words)).out.splitlines()
    assert first[0] == "eventId,eventType,timestamp,userEmail,details"
    assert [line.split(",")[0] for line in first[1:]] == ["a"]
    await happen(state, "b")
    assert [line.split(",")[0] for line in (await api(*words)).out.splitlines()] == ["b"]
    table = await api("audit-events", "--format", "table", "--since", "-1h")
    assert [line.split()[0] for line in table.out.splitlines()] == ["eventId", "a", "b"]
