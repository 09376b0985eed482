"""`collector queue …` and `collector replay`, beside a running daemon and without one."""

import os
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from collector.queue.sqlite.database import FILE_NAME
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.cli.child import Ended, finish, run, started
from tests.e2e.books import Books, Event, settled
from tests.e2e.daemon import Daemon, environment, running
from tests.patience import until

NOWHERE = "http://127.0.0.1:1"
POISONED = [0, 500, 999]


def events(count: int, app_id: str = "wiki") -> list[Event]:
    return [
        Event(app_id, number, "person@example.com", "poison" if number in POISONED else "fine")
        for number in range(count)
    ]


def keys(ndjson: str) -> set[tuple[str, int]]:
    """What is in an export; everything is there once."""
    rows = [msgspec.json.decode(line) for line in ndjson.splitlines()]
    found = {(row["appId"], row["timestamp"]) for row in rows}
    assert len(found) == len(rows)
    return found


class Desk:
    """A person's commands on one queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = environment(folder, NOWHERE)

    async def ask(self, *words: str, status: int = 0, stdin: bytes = b"") -> str:
        """What a command said on standard output; on standard error where it failed."""
        ended: Ended = await run(*words, stdin=stdin, env=self.env)
        assert ended.status == status, ended
        assert "Traceback" not in ended.err
        return ended.err if status else ended.out

    async def answer(self, *words: str) -> Any:
        return msgspec.json.decode(await self.ask(*words, "--json"))

    async def has_dead(self, count: int) -> bool:
        return bool((await self.answer("queue", "stats"))["deadEvents"] == count)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def upstream(upstream: Sandbox) -> Sandbox:
    upstream.set_faults(Fault(status=400, body="person@example.com: no such action", event_name="poison"))
    return upstream


async def post(daemon: Daemon, sent: list[Event]) -> None:
    async with aiohttp.ClientSession() as session:
        await Books().post(session, daemon.url, sent)


async def set_three_aside(daemon: Daemon, state: State, app_id: str = "wiki") -> None:
    """Of a thousand events three are dead letters, and the others delivered."""
    await post(daemon, events(1000, app_id))
    await settled(state, 997)
    await daemon.logs("flusher.events_buried")


async def test_dead_letters_are_listed_shown_exported_retried_and_purged_beside_a_running_daemon(
    tmp_path: Path, desk: Desk, upstream: Sandbox, state: State
) -> None:
    async with running(tmp_path, upstream.url, queue__keep_delivered="1h") as daemon:
        await set_three_aside(daemon, state)

        listed = await desk.ask("queue", "dead", "list", "--reason", "no such action", "--since", "-1h")
        assert listed.count("wiki  ") == 3
        assert "3 dead letters" in listed
        assert "person@example.com" not in listed + await desk.ask("queue", "dead", "list", "--json")
        assert "0 dead letters" in await desk.ask("queue", "dead", "list", "--until", "-1h")
        shown = msgspec.json.decode(await desk.ask("queue", "dead", "show", "2"))
        assert shown["event"] == {"timestamp": 500, "email": "person@example.com", "eventName": "poison"}
        assert "no such action" in shown["reason"]
        for missing in ("99", "9" * 30):
            assert f"there is no dead letter {missing}" in await desk.ask("queue", "dead", "show", missing, status=1)
            assert await desk.answer("queue", "dead", "retry", "--number", missing) == {"retried": 0}

        exported = await desk.ask("queue", "dead", "export", "--app", "wiki")
        assert keys(exported) == {("wiki", number) for number in POISONED}
        assert all({"reason", "buriedAt"} <= msgspec.json.decode(row).keys() for row in exported.splitlines())

        assert await desk.answer("queue", "dead", "purge", "--number", "1", "--yes") == {"purged": 1}
        upstream.set_faults()
        assert await desk.answer("queue", "dead", "retry", "--reason", "no such action") == {"retried": 2}
        await settled(state, 999)
        assert await desk.answer("queue", "dead", "retry") == {"retried": 0}
        assert await desk.ask("queue", "check") == "the queue is sound\n"
        stats = await desk.answer("queue", "stats")
        assert (stats["deadEvents"], stats["rememberedKeys"]) == (0, 1000)
        assert await daemon.stop() == 0


async def test_an_app_whose_name_would_move_the_cursor_takes_one_line(
    tmp_path: Path, desk: Desk, upstream: Sandbox, state: State
) -> None:
    app_id, shown = "wi\nki\x1b[2J", "wi\N{REPLACEMENT CHARACTER}ki\N{REPLACEMENT CHARACTER}[2J"
    async with running(tmp_path, upstream.url) as daemon:
        await set_three_aside(daemon, state, app_id)
    assert f"\n{shown} " in await desk.ask("queue", "stats")
    assert (await desk.ask("queue", "dead", "list")).count(f"  {shown}  ") == 3
    await desk.ask("queue", "dead", "retry")
    bury = ("queue", "bury", "--app", app_id, "--reason", "the app was deleted")
    assert f"Make 3 events of {shown} dead letters?" in await desk.ask(*bury, stdin=b"n\n", status=1)
    assert f"3 events of {shown} are dead letters" in await desk.ask(*bury, stdin=b"y\n")
    assert f"no event of {shown} waits" in await desk.ask(*bury)


async def test_purging_asks_first_and_a_no_deletes_nothing(
    tmp_path: Path, desk: Desk, upstream: Sandbox, state: State
) -> None:
    async with running(tmp_path, upstream.url) as daemon:
        await set_three_aside(daemon, state)
    asked = await desk.ask("queue", "dead", "purge", status=1, stdin=b"n\n")
    assert "Delete 3 dead letters for good?" in asked
    assert "3 dead letters are deleted" in await desk.ask("queue", "dead", "purge", stdin=b"y\n")
    assert "0 dead letters are deleted" in await desk.ask("queue", "dead", "purge")
    assert "needs --yes" in await desk.ask("queue", "dead", "purge", "--json", status=2)


async def test_what_is_buried_while_the_question_stands_is_not_purged(
    tmp_path: Path, desk: Desk, upstream: Sandbox, state: State
) -> None:
    async with running(tmp_path, upstream.url) as daemon:
        await set_three_aside(daemon, state)
        async with started("queue", "dead", "purge", env=desk.env) as purging:
            assert purging.stderr is not None
            await purging.stderr.readuntil(b"for good?")
            await post(daemon, [Event("wiki", 5000, "person@example.com", "poison")])
            await until(lambda: desk.has_dead(4))
            assert "3 dead letters are deleted" in (await finish(purging, stdin=b"y\n")).out
        assert await desk.has_dead(1)


async def test_what_waits_of_a_lost_app_is_buried_while_nobody_delivers(
    tmp_path: Path, desk: Desk, upstream: Sandbox
) -> None:
    upstream.set_faults(Fault(status=404))
    bury = ("queue", "bury", "--app", "wiki", "--reason", "the app was deleted")
    async with running(tmp_path, upstream.url) as daemon:
        await post(daemon, [*events(1500), *events(10, "crm")])
        await daemon.logs("flusher.app_held")
        assert "is its flusher; stop that one" in await desk.ask(*bury, "--yes", status=1)
        assert await daemon.stop() == 0
    assert "needs --yes" in await desk.ask(*bury, "--json", status=2)
    await desk.ask(*bury, stdin=b"n\n", status=1)
    assert await desk.answer("queue", "bury", "--app", "else", "--reason", "none", "--yes") == {"buried": 0}
    assert await desk.answer(*bury, "--yes") == {"buried": 1500}
    assert await desk.ask(*bury) == "no event of wiki waits\n"
    stats = await desk.answer("queue", "stats")
    assert (stats["waitingEvents"], stats["deadEvents"]) == (10, 1500)
    assert await desk.answer("queue", "dead", "retry", "--reason", "deleted") == {"retried": 1500}
    assert keys(await desk.ask("queue", "export", "--app", "wiki")) == {("wiki", number) for number in range(1500)}


async def test_names_and_reasons_of_strangers_do_nothing_to_the_terminal(tmp_path: Path, desk: Desk) -> None:
    name, reason = "\x1b[2Jwiki\r\n\u202e", "\x1b]0;owned\x07"
    async with running(tmp_path, NOWHERE, stop__deadline="0s") as daemon:
        await post(daemon, events(3, name))
        assert await daemon.stop() == 0
    for words in (("stats",), ("bury", "--app", name, "--reason", reason, "--yes"), ("dead", "list"), ("stats",)):
        said = await desk.ask("queue", *words)
        assert "wiki" in said
        assert all(character.isprintable() for character in said.replace("\n", "")), said
        assert "wiki\n" not in said
    assert {
        letter["appId"]
        for letter in map(msgspec.json.decode, (await desk.ask("queue", "dead", "list", "--json")).splitlines())
    } == {name}


async def test_without_room_for_dead_letters_what_is_left_waits_on(tmp_path: Path, desk: Desk) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        await post(daemon, events(1000))
        await post(daemon, [Event("wiki", number, "person@example.com", "late") for number in range(1000)])
        assert await daemon.stop() == 0
    desk.env = environment(tmp_path, NOWHERE, queue__max_dead_bytes="110kB")
    said = await desk.ask("queue", "bury", "--app", "wiki", "--reason", "gone", "--yes", status=1)
    assert "queue.max_dead_bytes" in said
    stats = await desk.answer("queue", "stats")
    assert (stats["waitingEvents"], stats["deadEvents"]) == (1000, 1000)


async def test_delivered_events_are_replayed_and_what_is_exported_can_be_pushed(
    tmp_path: Path, desk: Desk, upstream: Sandbox, state: State
) -> None:
    async with running(tmp_path, upstream.url, queue__keep_delivered="1h", flush__linger="0s") as daemon:
        await post(daemon, [*events(1000), *events(10, "crm")])
        await settled(state, 1005)
        await daemon.logs("flusher.events_buried")
        assert await daemon.stop() == 0
    everything = {("wiki", number) for number in range(1000)} | {("crm", number) for number in range(10)}
    whole = await desk.ask("queue", "export", "--what", "all")
    assert keys(whole) == everything
    assert keys(await desk.ask("queue", "export", "--what", "delivered", "--app", "crm")) == {
        ("crm", number) for number in range(1, 10)
    }
    assert await desk.ask("queue", "export") == ""

    again = ("replay", "--since", "-1h", "--app", "wiki")
    assert await desk.answer(*again, "--dry-run") == {"events": 997, "dryRun": True}
    assert await desk.answer(*again, "--until", "-30m") == {"events": 0, "dryRun": False}
    assert await desk.ask(*again) == "997 events waiting again\n"
    output = tmp_path / "waiting.ndjson"
    await desk.ask("queue", "export", "--output", str(output))
    assert len(keys(output.read_text())) == 997

    other = tmp_path / "other"
    async with running(other, upstream.url) as daemon:
        pushed = await Desk(other).ask("push", "-", "--to", daemon.url, stdin=whole.encode())
        assert pushed == "sent 1,010  accepted 1,010  duplicates 0  rejected 0\n"
    async with running(tmp_path, upstream.url) as daemon:
        assert await daemon.stop() == 0
    assert (await desk.answer("queue", "stats"))["waitingEvents"] == 0


async def test_where_nothing_that_was_delivered_is_kept_a_replay_says_why_it_finds_none(
    tmp_path: Path, desk: Desk, upstream: Sandbox
) -> None:
    async with running(tmp_path, upstream.url):
        said = await desk.ask("replay", "--since", "-1h")
    assert said == "0 events waiting again; queue.keep_delivered is off, so none is kept\n"


@pytest.mark.parametrize("time", ["yesterday", "7d", "-7", "-7w", "2026-13-01", ""])
async def test_a_time_that_is_none_is_wrong_usage_and_says_what_is_allowed(desk: Desk, time: str) -> None:
    said = await desk.ask("replay", "--since", time, status=2)
    assert f"{time!r} is no time" in said.replace("\n", " ")
    assert "-7d" in said


@pytest.mark.parametrize(
    "words",
    [
        ["queue", "dead", "list"],
        ["queue", "dead", "retry"],
        ["queue", "export"],
        ["queue", "check"],
        ["queue", "recover"],
        ["replay", "--since", "-1d"],
    ],
    ids=" ".join,
)
async def test_without_a_queue_a_command_says_what_is_missing_and_makes_none(
    tmp_path: Path, desk: Desk, words: list[str]
) -> None:
    assert f"{FILE_NAME} does not exist" in await desk.ask(*words, status=1)
    assert not (tmp_path / "queue" / FILE_NAME).exists()


async def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path, desk: Desk) -> None:
    async with running(tmp_path, NOWHERE, stop__deadline="0s"):
        pass
    (tmp_path / "taken").write_text("by a file")
    no_folder = f"{tmp_path}/taken/new"
    for words in (("queue", "export", "--output"), ("queue", "dead", "export", "--output")):
        assert await desk.ask(*words, no_folder, status=1) == f"collector: {no_folder}: Not a directory\n"
    said = await desk.ask("queue", "backup", no_folder, status=1)
    assert said == f"collector: {no_folder}: Not a directory; name a directory that can be written\n"
    full = os.open("/dev/full", os.O_WRONLY)
    async with started("queue", "stats", env=desk.env, stdout=full) as process:
        os.close(full)
        ended = await finish(process)
    assert (ended.status, ended.err) == (1, "collector: No space left on device\n")


async def test_a_broken_file_is_told_by_check_and_mended_by_recover(tmp_path: Path, desk: Desk) -> None:
    async with running(tmp_path, NOWHERE, stop__deadline="0s") as daemon:
        await post(daemon, events(5_000))
        assert "process" in await desk.ask("queue", "recover", status=1)
        assert await daemon.stop() == 0
    file = tmp_path / "queue" / FILE_NAME
    assert await desk.answer("queue", "recover") is None
    os.truncate(file, file.stat().st_size - 40_000)
    assert "the queue is damaged" in (await run("queue", "check", env=desk.env)).out
    await desk.ask("queue", "check", status=1)
    assert "collector queue recover" in await desk.ask("queue", "export", "--what", "all", status=1)
    salvaged = await desk.answer("queue", "recover")
    assert salvaged["waitingEventsBefore"] == 5_000
    waiting = keys(await desk.ask("queue", "export"))
    assert 0 < len(waiting) == salvaged["waitingEvents"] < 5_000
    assert waiting < {("wiki", number) for number in range(5_000)}
    assert Path(salvaged["setAside"]).exists()
    assert await desk.ask("queue", "check") == "the queue is sound\n"


async def test_a_daemon_on_a_broken_file_runs_and_says_the_numbers_at_error(
    tmp_path: Path, desk: Desk, upstream: Sandbox, state: State
) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        await post(daemon, events(5_000))
    file = tmp_path / "queue" / FILE_NAME
    with file.open("r+b") as content:
        content.write(bytes(4096))
    async with running(tmp_path, upstream.url) as daemon:
        salvaged = await daemon.logs("queue.file_salvaged")
        assert salvaged["level"] == "error"
        assert salvaged["waiting_events"] == salvaged["keys_read"] == 5_000
        await settled(state, 4_997)
        await post(daemon, events(5_000))
        assert await daemon.stop() == 0
    assert (await state.stats()).received == 4_997
    assert (await desk.answer("queue", "stats"))["deadEvents"] == 3


# -- backup ------------------------------------------------------------------------------------------------------------


async def test_a_copy_made_beside_the_daemon_is_a_queue_that_another_one_goes_on_with(
    desk: Desk, state: State, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / "queue"
    async with running(desk.folder, NOWHERE) as daemon, aiohttp.ClientSession() as session:
        await Books().post(session, daemon.url, events(50))
        assert f"bytes are in {copy}" in await desk.ask("queue", "backup", str(copy))
        assert "is there already" in await desk.ask("queue", "backup", str(copy), status=1)
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    async with running(copy.parent, sandbox.url):
        await settled(state, 50)
    await sandbox.stop()
