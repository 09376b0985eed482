"""However the queue's files are broken, a start ends with a sound queue and true numbers, or with a clear refusal."""

import logging
import os
import random
from pathlib import Path

import pytest

from collector.errors import QueueBroken
from collector.queue.database import FILE_NAME
from collector.queue.store import Store
from tests.fake_clock import FakeClock
from tests.queue.broken import (
    BATCH_EVENTS,
    PARTS,
    Contents,
    contents,
    copied,
    fill,
    left_behind,
)

Files = tuple[Path, Contents]
SEED = 20_260_101
MAX_FLIPS = 30


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
@pytest.mark.parametrize("twentieth", range(20))
def test_files_that_are_cut_off_anywhere(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture, part: str, twentieth: int
) -> None:
    left, before = files
    directory = copied(left, tmp_path / "queue")
    broken = directory / (FILE_NAME + part)
    size = broken.stat().st_size
    jitter = random.Random(twentieth).randrange(100)
    os.truncate(broken, min(size, size * twentieth // 20 + (jitter if twentieth else 0)))
    ended = hold_to_account(directory, before, caplog) if part != "-wal" else shortened_log(directory, before)
    if part == "" and twentieth <= 10:  # behind that, the log has all pages
        assert ended == "salvaged"


def shortened_log(directory: Path, before: Contents) -> str:
    """A log without its end is a log as it was earlier: nobody can tell. What is there is sound, and was put."""
    start(directory)
    assert contents(directory).events <= before.events | contents(directory).events
    return "earlier"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("number", range(40))
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
