"""However the queue's files are broken, a start ends with a sound queue and true numbers, or with a clear refusal."""

import errno
import logging
import os
import random
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from collector.errors import DiskFull, QueueBroken, QueueDamaged, QueueInUse, QueueUnavailable
from collector.events import split_keys
from collector.queue.sqlite.by_hand import FileByHand
from collector.queue.sqlite.database import APPLICATION_ID, FILE_NAME, MIGRATIONS, make_file, migrate, open_reader
from collector.queue.sqlite.operations import Put
from collector.queue.sqlite.rescue.bare_file import leaves_of, roots_of
from collector.queue.sqlite.rescue.recover import examine, recover
from collector.queue.sqlite.rescue.salvage import COMPLETE
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.view import View
from collector.queue.sqlite.write_ahead_log import PAGE_BYTES, read_log
from tests.fake_clock import FakeClock
from tests.queue.broken import (
    BATCH_EVENTS,
    PARTS,
    Contents,
    batch,
    contents,
    copied,
    done,
    fill,
    left_behind,
    line,
)
from tests.queue.samples import remembered

Files = tuple[Path, Contents]
SEED = 20_260_101
MAX_FLIPS = 30
NOBODY = 65_534


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a process that died left, and what is in it."""
    folder = tmp_path_factory.mktemp("queue")
    left_behind(folder / "live", folder / "left", fill)
    start(copied(folder / "left", folder / "sound"))
    return folder / "left", contents(folder / "sound")


def start(directory: Path) -> None:
    """Opens the queue as a daemon does, and closes it."""
    Store(directory, batch_events=BATCH_EVENTS, clock=FakeClock()).close()


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == event]


def hold_to_account(directory: Path, before: Contents, caplog: pytest.LogCaptureFixture) -> str:
    """Starts on broken files: how it ended. Fails unless that is one of the ways in which it may."""
    parts = {path.name: path.read_bytes() for path in directory.iterdir()}
    refusal = ""
    try:
        start(directory)
    except QueueBroken as error:
        refusal = str(error)
    if refusal:
        assert str(directory / FILE_NAME) in refusal
        assert "set queue.path to another directory" in refusal
        assert parts[FILE_NAME] == (directory / FILE_NAME).read_bytes()
        return "refused"
    after = contents(directory)
    assert after.waiting <= before.waiting | before.delivered | before.dead
    assert after.events <= before.events, "nothing is invented"
    assert not after.waiting & after.dead
    salvaged = logged(caplog, "queue.file_salvaged")
    if not salvaged:
        if logged(caplog, "queue.log_ends_torn"):
            return "torn"
        assert after.events == before.events
        # Nothing tells a flipped bit in a key: that one event would not be known if it came again.
        assert len(before.keys - after.keys) <= MAX_FLIPS
        return "sound"
    (said,) = map(vars, salvaged)
    assert said["levelname"] == "ERROR"
    assert (said["waiting_events"], said["dead_letters"], said["delivered_events"]) == after.counts
    assert sum(after.counts) - len(after.events) <= MAX_FLIPS
    assert said["keys_read"] + said["keys_rebuilt"] == len(after.keys)
    aside = Path(said["set_aside"])
    assert aside.name.startswith(f"{FILE_NAME}.broken-2")
    for part in ("", "-wal"):
        if FILE_NAME + part in parts:
            assert aside.with_name(aside.name + part).read_bytes() == parts[FILE_NAME + part]
    if before.waiting - after.waiting and not logged(caplog, "queue.log_ends_torn"):
        assert said["segments_unreadable"] or said["waiting_events_before"] != after.counts[0]
    caplog.clear()
    start(directory)
    assert not logged(caplog, "queue.file_damaged"), "the next start finds a sound file"
    assert contents(directory) == after
    return "salvaged"


def test_what_a_process_that_died_left_is_taken_as_it_is(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    left, before = files
    assert min(before.counts) >= 15
    assert hold_to_account(copied(left, tmp_path / "queue"), before, caplog) == "sound"
    assert logged(caplog, "queue.log_ends_torn") == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("tenth", range(10))
def test_files_that_are_cut_off_anywhere(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, part: str, tenth: int
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    broken = directory / (FILE_NAME + part)
    size = broken.stat().st_size
    jitter = random.Random(tenth).randrange(100)
    os.truncate(broken, min(size, size * tenth // 10 + (jitter if tenth else 0)))
    ended = hold_to_account(directory, before, caplog) if part != "-wal" else shortened_log(directory, before)
    if part == "" and tenth <= 5:  # behind that, the log has all pages
        assert ended == "salvaged"


def shortened_log(directory: Path, before: Contents) -> str:
    """A log without its end is a log as it was earlier: nobody can tell. What is there is sound, and was put."""
    start(directory)
    assert contents(directory).events <= before.events | contents(directory).events
    return "earlier"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("number", range(25))
def test_flipped_bits_anywhere(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, part: str, number: int
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    broken = directory / (FILE_NAME + part)
    chance = random.Random(f"{SEED} {part} {number}")
    flip(broken, chance, bits=chance.choice((1, 1, 3, MAX_FLIPS)))
    ended = hold_to_account(directory, before, caplog)
    if part == "-shm":
        assert ended == "sound"


def flip(file: Path, chance: random.Random, *, bits: int, below: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(bits):
        content[chance.randrange(below or len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def test_bits_flipped_in_early_pages_of_a_log_cost_no_later_transaction(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    flip(directory / f"{FILE_NAME}-wal", random.Random(1), bits=1, below=4000)
    assert hold_to_account(directory, before, caplog) == "salvaged"
    after = contents(directory)
    assert len(after.events) > 0.9 * len(before.events)
    assert len(after.keys) > 0.9 * len(before.keys)


@pytest.mark.parametrize("pages", [[1], [1, 2], [1, 2, 3], [5], [3, 5, 6], [1, 4, 5, 6]], ids=str)
def test_the_first_pages_of_file_and_tables_cost_no_event(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, pages: list[int]
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    start(directory)  # folds the log in
    with (directory / FILE_NAME).open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * 4096)
            file.write(bytes(4096))
    caplog.clear()
    assert hold_to_account(directory, before, caplog) == "salvaged"
    after = contents(directory)
    assert after.waiting == before.waiting
    assert after.counts == before.counts
    assert len(before.keys - after.keys) < 30


def test_a_page_that_is_lost_amid_what_waits_leaves_the_next_puts_their_place(tmp_path: Path) -> None:
    """What is behind it is found in no certain order, and the numbers of new segments are above all that there are."""
    with closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=FakeClock())) as store:
        for number in range(0, 8000, 20):
            done(store, Put.of([batch("wiki", range(number, number + 20))]))
        root = roots_of(store._connection)["segment"]
    file = tmp_path / FILE_NAME
    leaves = list(leaves_of(file, root))
    assert len(leaves) > 8
    with file.open("r+b") as pages:
        pages.seek((leaves[len(leaves) // 2] - 1) * PAGE_BYTES)
        pages.write(b"\x55" * PAGE_BYTES)
    with closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=FakeClock())) as store:
        (left,) = store._execute("SELECT count(*) FROM segment").fetchone()
        assert 0 < left < 400
        for number in range(8000, 8020):
            done(store, Put.of([batch("wiki", [number])]))
        lines = [
            text for (text,) in store._execute("SELECT lines FROM segment ORDER BY segment LIMIT -1 OFFSET ?", (left,))
        ]
    assert lines == [line("wiki", number) for number in range(8000, 8020)]
    assert examine(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", bytes(5000)], ids=["empty", "cut off", "zeros"])
def test_what_is_left_of_a_file_that_lost_its_content_is_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    start(tmp_path)
    assert len(logged(caplog, "queue.file_salvaged")) == 1
    (aside,) = tmp_path.glob(f"{FILE_NAME}.broken-*")
    assert aside.read_bytes() == content
    assert contents(tmp_path).counts == (0, 0, 0)


def test_a_log_without_its_file_gives_what_it_holds(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    (directory / FILE_NAME).unlink()
    assert hold_to_account(directory, before, caplog) == "salvaged"
    assert contents(directory).waiting


# Files that are not touched


def foreign(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE theirs (n)")


def newer(file: Path) -> None:
    start(file.parent)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(foreign, "is a database of another program", id="foreign"),
        pytest.param(newer, "newer than this collector's", id="newer"),
        pytest.param(lambda file: file.write_text("notes"), "is not a database", id="short text"),
        pytest.param(lambda file: file.write_text("notes" * 100), "is not a database", id="text"),
        pytest.param(lambda file: file.mkdir(), "is not a file", id="directory"),
    ],
)
def test_what_is_not_ours_is_refused_by_all_and_not_touched(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    file = tmp_path / FILE_NAME
    make(file)
    before = file.read_bytes() if file.is_file() else b""
    for attempt in (start, examine, lambda directory: recover(directory, always=True)):
        with pytest.raises(QueueBroken, match=said) as refusal:
            attempt(tmp_path)
        assert str(file) in str(refusal.value)
        assert "set queue.path to another directory" in str(refusal.value)
    assert (file.read_bytes() if file.is_file() else b"") == before
    assert list(tmp_path.glob("*broken*")) == []


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A directory of somebody who is not root, as whom the test runs; root becomes nobody for a while."""
    with tempfile.TemporaryDirectory() as folder:
        was = os.geteuid()
        if was == 0:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        yield Path(folder)
        os.seteuid(was)


def test_who_may_not_write_is_told_how_to_read_a_queue_that_nobody_has_open(unprivileged_folder: Path) -> None:
    directory = unprivileged_folder / "queue"
    start(directory)
    directory.chmod(0o500)
    with pytest.raises(QueueUnavailable, match="copy the directory to where you may write") as no:
        open_reader(directory)
    assert str(directory / FILE_NAME) in str(no.value)
    directory.chmod(0o700)
    open_reader(directory).close()


@pytest.mark.parametrize("name", ["", FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", "open.lock"])
def test_what_may_not_be_used_is_refused_with_whose_it_is_and_a_remedy(unprivileged_folder: Path, name: str) -> None:
    directory = unprivileged_folder / "queue"
    start(directory)
    for part in PARTS:
        (directory / (FILE_NAME + part)).touch()
    before = (directory / FILE_NAME).read_bytes()
    (directory / name).chmod(0o500 if not name else 0o400)
    with pytest.raises(QueueBroken, match=r"cannot be read and written by .* mode 0[45]00; .*chmod") as no:
        start(directory)
    (directory / name).chmod(0o700)
    assert str(directory / name) in str(no.value)
    assert (directory / FILE_NAME).read_bytes() == before
    start(directory)


@pytest.mark.parametrize("missing", ["", FILE_NAME])
def test_what_root_salvages_belongs_to_whom_it_belonged(files: Files, tmp_path: Path, missing: str) -> None:
    """Else the daemon, which seldom is root, could not use it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    left, _ = files
    directory = copied(left, tmp_path / "queue")
    for each in (directory, *directory.iterdir()):
        os.chown(each, NOBODY, NOBODY)
    (directory / FILE_NAME).chmod(0o660)
    if missing:
        (directory / missing).unlink()
    assert recover(directory, always=True)
    new = (directory / FILE_NAME).stat()
    assert (new.st_uid, new.st_gid) == (NOBODY, NOBODY)
    assert missing or stat.S_IMODE(new.st_mode) == 0o660


# Version 1


def version_1(directory: Path, made_by: int = 1) -> Contents:
    """A file as version 1 left it, or 2, with events that wait and are dead, none with a checksum; what is in it."""
    directory.mkdir()
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        migrate(connection, directory / FILE_NAME, MIGRATIONS[:made_by])
        connection.execute("INSERT INTO app (app, name, next_segment) VALUES (1, 'wiki', (1 << 40) + 1)")
        for begin in range(0, 2000, 100):
            one = batch("wiki", range(begin, begin + 100))
            put = (one.keys, 7, 1, 100, one.lines)
            connection.execute("INSERT INTO fresh (keys, stamp, app, events, lines) VALUES (?, ?, ?, ?, ?)", put)
        connection.execute("DELETE FROM segment WHERE segment = (1 << 40) + 1")
        connection.execute("INSERT INTO dead (app, buried_ms, reason, line) VALUES (1, 9, 'no', ?)", (line("wiki", 0),))
    waiting = {("wiki", line("wiki", number)) for number in range(100, 2000)}
    keys = set(split_keys(batch("wiki", range(2000)).keys))
    return Contents(waiting, {("wiki", line("wiki", 0))}, set(), keys, (1900, 1, 0))


def test_a_file_of_version_1_is_taken_over_with_all_that_is_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = version_1(tmp_path / "queue")
    assert hold_to_account(tmp_path / "queue", before, caplog) == "sound"
    assert contents(tmp_path / "queue") == before
    with closing(sqlite3.connect(tmp_path / "queue" / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("SELECT dead_bytes FROM app").fetchone() == (len(line("wiki", 0)) + 1 + 2,)


@pytest.mark.parametrize("version", [2, 3])
def test_a_broken_file_of_a_version_between_is_salvaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    before = version_1(tmp_path / "queue", made_by=2)
    with closing(sqlite3.connect(tmp_path / "queue" / FILE_NAME, isolation_level=None)) as connection:
        migrate(connection, tmp_path / "queue" / FILE_NAME, MIGRATIONS[:version])
    with (tmp_path / "queue" / FILE_NAME).open("r+b") as file:
        file.seek(4 * 4096)
        file.write(b"\xa5" * 4096)
    assert hold_to_account(tmp_path / "queue", before, caplog) == "salvaged"


def test_keys_in_a_row_that_is_cut_off_are_salvaged_up_to_there(tmp_path: Path) -> None:
    start(tmp_path)
    keys = batch("wiki", range(3)).keys
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("INSERT INTO recent_keys (run, stamp, keys) VALUES (1, 7, ?)", (keys[:-5],))
    salvaged = recover(tmp_path, always=True)
    assert salvaged is not None
    assert salvaged.keys_read == 2
    assert remembered(tmp_path) == dict.fromkeys(split_keys(keys)[:2], 7)


@pytest.mark.parametrize("taken_over", [False, True])
@pytest.mark.parametrize("page", [1, 3, 5, 20, 60])
def test_a_broken_file_of_version_1_is_salvaged_before_and_after_it_was_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, page: int, taken_over: bool
) -> None:
    before = version_1(tmp_path / "queue")
    if taken_over:
        start(tmp_path / "queue")
    with (tmp_path / "queue" / FILE_NAME).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
        if page == 1:
            file.seek(68)
            file.write(APPLICATION_ID.to_bytes(4))
            file.seek(60)
            file.write((1).to_bytes(4))
    assert hold_to_account(tmp_path / "queue", before, caplog) == "salvaged"
    if page in {1, 3}:
        assert contents(tmp_path / "queue") == before


# Crashes amid it, and several processes


@pytest.mark.parametrize("survived", range(7))
def test_a_crash_amid_salvaging_is_made_up_for_by_the_next_start(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    directory = copied(files[0], tmp_path / "queue")
    os.truncate(directory / FILE_NAME, 60_000)
    whole = copied(directory, tmp_path / "whole")
    start(whole)
    moves = iter(range(100))
    really_rename, really_replace = Path.rename, Path.replace

    def crash(really: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def move(self: Path, target: Path) -> Path:
            if next(moves) >= survived:
                raise OSError(5, "the power is gone")
            return really(self, target)

        return move

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash(really_rename))
        patched.setattr(Path, "replace", crash(really_replace))
        if survived < 5:  # complete, log, shm, file, and in place
            with pytest.raises(QueueUnavailable, match="the power is gone"):
                start(directory)
            assert survived == 0 or (directory / COMPLETE).exists()
    start(directory)
    assert contents(directory) == contents(whole)
    assert len(list(directory.glob("*.broken-*Z"))) == 1
    assert not (directory / COMPLETE).exists()
    assert logged(caplog, "queue.file_damaged")


def test_a_death_while_a_new_file_got_its_log_is_made_up_for_by_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then a file has a journal, and what is half done can only be undone by who may write."""
    live, left = tmp_path / "live", tmp_path / "left"
    live.mkdir()
    make_file(live / FILE_NAME)
    with closing(sqlite3.connect(live / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages are written long before the commit
        connection.execute("BEGIN")
        connection.execute("UPDATE pruned SET keys = 1000")
        connection.executemany("INSERT INTO segment VALUES (?, 0, 1, zeroblob(4000), 0)", [(n,) for n in range(20)])
        shutil.copytree(live, left)
    assert (left / f"{FILE_NAME}-journal").stat().st_size
    assert (left / FILE_NAME).read_bytes() != (live / FILE_NAME).read_bytes()
    start(left)
    assert contents(left).counts == (0, 0, 0)
    assert not logged(caplog, "queue.file_damaged")
    assert examine(left) == []


def test_a_file_that_others_have_open_is_not_replaced(tmp_path: Path) -> None:
    with closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=FakeClock())) as store:
        fill(store, puts=9)
        with pytest.raises(QueueInUse, match="is open in another process"):
            recover(tmp_path, always=True)
        assert examine(tmp_path) == []
    assert recover(tmp_path, always=False) is None
    before = contents(tmp_path)
    salvaged = recover(tmp_path, always=True)
    assert salvaged is not None
    assert (salvaged.waiting_events, salvaged.keys_read) == (len(before.waiting), len(before.keys))
    assert contents(tmp_path) == before


# The log, as SQLite sees it


def full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), full()], ids=["system", "sqlite"]
)
@pytest.mark.parametrize(
    ("step", "attempt"), [("damage", examine), ("salvage", lambda directory: recover(directory, always=True))]
)
def test_a_disk_that_gets_in_the_way_by_hand_is_said_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, step: str, attempt: Callable[[Path], object]
) -> None:
    start(tmp_path)

    def fail(_: Path) -> None:
        raise failure

    monkeypatch.setattr(f"collector.queue.sqlite.rescue.recover.{step}", fail)
    with pytest.raises(DiskFull) as refusal:
        attempt(tmp_path)
    assert str(refusal.value) == f"{tmp_path / FILE_NAME}: no room on the disk"


def test_a_sound_log_is_read_as_sqlite_reads_it(tmp_path: Path, files: Files) -> None:
    directory = copied(files[0], tmp_path / "queue")
    log = read_log(directory / f"{FILE_NAME}-wal")
    assert not log.is_damaged
    assert log.torn_frames == 0
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA page_count").fetchone() == (log.pages,)
        assert connection.execute("PRAGMA wal_checkpoint").fetchone()[1] == len(log.frames)


@pytest.mark.parametrize(("has_index", "ends"), [(True, "salvaged"), (False, "torn")], ids=["killed", "power cut"])
def test_a_last_transaction_that_is_not_whole_is_damaged_where_the_index_knows_that_it_was_finished(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, has_index: bool, ends: str
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    wal = directory / f"{FILE_NAME}-wal"
    last = read_log(wal).frames[-1]
    with wal.open("r+b") as file:
        file.seek(last.offset + 100)
        file.write(b"\xff" * 512)
    if not has_index:
        (directory / f"{FILE_NAME}-shm").unlink()
    log = read_log(wal)
    assert (log.is_damaged, log.torn_frames > 0) == (has_index, not has_index)
    assert hold_to_account(directory, before, caplog) == ends


@pytest.mark.parametrize("for_writing", [False, True])
def test_a_command_that_comes_before_the_next_start_does_not_open_what_has_a_damaged_log(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, for_writing: bool
) -> None:
    """SQLite would note in the index that the log ends before the damage: what stands behind it would be lost."""
    left, before = files
    directory = copied(left, tmp_path / "queue")
    wal = directory / f"{FILE_NAME}-wal"
    frames = read_log(wal).frames
    with wal.open("r+b") as file:
        file.seek(frames[len(frames) // 2].offset + 200)
        file.write(b"\xff" * 16)
    with pytest.raises(QueueDamaged, match="bad pages amid finished commits"):
        FileByHand(directory, for_writing=for_writing)
    with pytest.raises(QueueDamaged, match="collector queue recover"):
        View(directory)
    assert read_log(wal).is_damaged
    assert hold_to_account(directory, before, caplog) == "salvaged"
    assert len(contents(directory).waiting) > len(before.waiting) * 0.9


def test_what_a_commit_that_failed_has_left_in_the_log_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was written and undone, and the next one, which is shorter, was written over its beginning."""
    live, short, left = (tmp_path / name for name in ("live", "short", "left"))
    store = Store(live, batch_events=BATCH_EVENTS, clock=FakeClock())
    done(store, Put.of([batch("wiki", range(10))]))
    shutil.copytree(live, short)
    done(store, Put.of([batch("wiki", range(10, 10 + BATCH_EVENTS))]))
    long_log = (live / f"{FILE_NAME}-wal").read_bytes()
    store.close()
    with closing(sqlite3.connect(short / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("UPDATE pruned SET keys = keys + 1")
        connection.execute("UPDATE pruned SET keys = keys - 1")
        shutil.copytree(short, left)
    short_log = (left / f"{FILE_NAME}-wal").read_bytes()
    (left / f"{FILE_NAME}-wal").write_bytes(short_log + long_log[len(short_log) :])
    log = read_log(left / f"{FILE_NAME}-wal")
    assert (log.is_damaged, log.torn_frames > 0) == (False, True)
    start(left)
    assert not logged(caplog, "queue.file_salvaged")
    assert len(contents(left).waiting) == 10
