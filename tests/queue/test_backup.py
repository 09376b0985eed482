"""A copy of the queue while others write to it: sound, whole, and with all that was acknowledged before."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from collector.errors import DiskFull, QueueBroken, QueueInUse
from collector.queue.sqlite import backup
from collector.queue.sqlite.backup import back_up
from collector.queue.sqlite.database import FILE_NAME, sync
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.rescue.ready import damage
from tests.patience import until
from tests.queue.samples import batch, remembered, sqlite_queue, stored


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[SqliteQueue]:
    queue = sqlite_queue(tmp_path / "queue", batch_events=100, max_bytes=10**9, max_uncommitted_bytes=10**9)
    await queue.open()
    yield queue
    await queue.close()


async def test_a_copy_made_amid_puts_has_all_that_was_acknowledged_before_it_began(
    queue: SqliteQueue, tmp_path: Path
) -> None:
    acknowledged = 0
    is_over = False

    async def put() -> None:
        nonlocal acknowledged
        while not is_over:
            await queue.put([batch("wiki", range(acknowledged, acknowledged + 100))])
            acknowledged += 100

    putting = asyncio.create_task(put())
    for copy in range(5):

        def is_due(goal: int = (copy + 1) * 1000) -> bool:
            return acknowledged >= goal

        await until(is_due)
        before = acknowledged
        to = tmp_path / f"copy{copy}"
        size = await asyncio.to_thread(back_up, tmp_path / "queue", to)
        assert [file.name for file in to.iterdir()] == [FILE_NAME]
        assert size == (to / FILE_NAME).stat().st_size
        assert damage(to / FILE_NAME) == []
        found = stored(to)["wiki"]
        assert found.numbers == list(range(len(found.numbers))), "a commit is in it whole or not at all"
        assert before <= len(found.numbers) == found.counted_events == len(remembered(to)) <= acknowledged + 100
    is_over = True
    await putting


async def test_a_copy_goes_nowhere_where_a_queue_is(queue: SqliteQueue, tmp_path: Path) -> None:
    await queue.put([batch("wiki", range(3))])
    back_up(tmp_path / "queue", tmp_path / "copy")
    before = (tmp_path / "copy" / FILE_NAME).read_bytes()
    for to in ("copy", "queue"):
        with pytest.raises(QueueBroken, match="is there already; name a directory without a queue"):
            back_up(tmp_path / "queue", tmp_path / to)
    assert (tmp_path / "copy" / FILE_NAME).read_bytes() == before
    assert stored(tmp_path / "queue")["wiki"].events == 3


def test_without_a_queue_there_is_nothing_to_copy(tmp_path: Path) -> None:
    with pytest.raises(QueueBroken, match="does not exist"):
        back_up(tmp_path / "queue", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


async def test_a_copy_that_fails_leaves_nothing(
    queue: SqliteQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.put([batch("wiki", range(3))])

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup, "sync", full)
    with pytest.raises(DiskFull):
        back_up(tmp_path / "queue", tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


async def test_a_copy_goes_nowhere_where_the_log_of_a_queue_was_left(queue: SqliteQueue, tmp_path: Path) -> None:
    await queue.put([batch("wiki", range(3))])
    log = tmp_path / "copy" / (FILE_NAME + "-wal")
    log.parent.mkdir()
    log.write_bytes((tmp_path / "queue" / (FILE_NAME + "-wal")).read_bytes())
    with pytest.raises(QueueBroken, match=f"{FILE_NAME}-wal is there already; name a directory without a queue"):
        back_up(tmp_path / "queue", tmp_path / "copy")
    assert list(log.parent.iterdir()) == [log]


async def test_of_two_copies_to_one_place_at_once_the_second_is_refused(
    queue: SqliteQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.put([batch("wiki", range(3))])

    def another(path: Path) -> None:
        with pytest.raises(QueueInUse, match="another backup"):
            back_up(tmp_path / "queue", tmp_path / "copy")
        sync(path)

    monkeypatch.setattr(backup, "sync", another)
    back_up(tmp_path / "queue", tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == [FILE_NAME]
    assert damage(tmp_path / "copy" / FILE_NAME) == []
    assert stored(tmp_path / "copy")["wiki"].events == 3


async def test_what_a_copy_that_was_killed_has_left_is_no_part_of_the_next(queue: SqliteQueue, tmp_path: Path) -> None:
    await queue.put([batch("wiki", range(3))])
    (tmp_path / "copy").mkdir()
    for name in (".backup", ".backup-journal"):
        (tmp_path / "copy" / (FILE_NAME + name)).write_bytes(b"half" * 10_000)
    back_up(tmp_path / "queue", tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == [FILE_NAME]
    assert damage(tmp_path / "copy" / FILE_NAME) == []


async def test_a_copy_that_cannot_be_made_there_says_so(queue: SqliteQueue, tmp_path: Path) -> None:
    await queue.put([batch("wiki", range(3))])
    (tmp_path / "file").touch()
    with pytest.raises(QueueBroken, match="file"):
        back_up(tmp_path / "queue", tmp_path / "file")
