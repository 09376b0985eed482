"""A role on a queue directory has one holder at a time, over all processes, and dies with it."""

import errno
from pathlib import Path

import pytest

from collector.errors import QueueBroken, QueueInUse
from collector.queue.sqlite.lock import RoleLock, is_there
from tests.queue.samples import child, hear, tell

HOLD = """
import pathlib, sys
from collector.queue.sqlite.lock import RoleLock
lock = RoleLock(pathlib.Path(sys.argv[1]), "flusher")
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""

TRY = """
import pathlib, sys
from collector.errors import QueueInUse
from collector.queue.sqlite.lock import RoleLock
try:
    RoleLock(pathlib.Path(sys.argv[1]), "flusher").acquire()
except QueueInUse as refusal:
    print(refusal, flush=True)
else:
    print("taken", flush=True)
"""


@pytest.fixture
def lock(tmp_path: Path) -> RoleLock:
    return RoleLock(tmp_path, "flusher")


def test_a_second_holder_is_refused_with_the_number_of_the_process_that_holds(tmp_path: Path, lock: RoleLock) -> None:
    with child(HOLD, tmp_path) as holder:
        assert hear(holder) == "held"
        with pytest.raises(QueueInUse, match=rf"process {holder.pid} is its flusher") as refusal:
            lock.acquire()
        assert str(tmp_path) in str(refusal.value)
        with child(TRY, tmp_path) as other:
            assert hear(other) == str(refusal.value)


def test_a_refusal_takes_nothing_from_the_holder(tmp_path: Path, lock: RoleLock) -> None:
    with child(HOLD, tmp_path) as holder:
        assert hear(holder) == "held"
        for _ in range(2):
            with pytest.raises(QueueInUse, match=rf"process {holder.pid} "):
                lock.acquire()


def test_the_number_is_that_of_the_holder_alone_whatever_an_earlier_one_left(tmp_path: Path, lock: RoleLock) -> None:
    (tmp_path / "flusher.lock").write_text("9999999999\n")
    with child(HOLD, tmp_path) as holder:
        assert hear(holder) == "held"
        with pytest.raises(QueueInUse, match=rf"process {holder.pid} is its flusher"):
            lock.acquire()


def test_kill_9_of_the_holder_frees_the_role(tmp_path: Path, lock: RoleLock) -> None:
    with child(HOLD, tmp_path) as holder:
        assert hear(holder) == "held"
        holder.kill()
        holder.wait()
        lock.acquire()
    with child(TRY, tmp_path) as other:
        assert f"process {holder.pid} " not in hear(other)  # the dead one's number is gone from the file
    lock.release()


def test_release_frees_the_role_while_its_process_lives_on(tmp_path: Path, lock: RoleLock) -> None:
    with child(HOLD, tmp_path) as holder:
        assert hear(holder) == "held"
        tell(holder)
        assert hear(holder) == "released"
        lock.acquire()
        with child(TRY, tmp_path) as other:
            assert "is in use" in hear(other)
        lock.release()
        with child(TRY, tmp_path) as other:
            assert hear(other) == "taken"


def test_another_lock_of_the_same_process_is_refused_too(tmp_path: Path, lock: RoleLock) -> None:
    lock.acquire()
    with pytest.raises(QueueInUse):
        RoleLock(tmp_path, "flusher").acquire()
    lock.release()


def test_roles_and_directories_are_held_apart(tmp_path: Path, lock: RoleLock) -> None:
    others = [RoleLock(tmp_path, "janitor"), RoleLock(tmp_path / "other", "flusher")]
    for each in (lock, *others):
        each.acquire()
    for each in (lock, *others):
        each.release()


def test_releasing_what_is_not_held_is_harmless(tmp_path: Path, lock: RoleLock) -> None:
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()
    with child(TRY, tmp_path) as other:
        assert hear(other) == "taken"


def test_a_directory_that_nobody_may_look_into_is_named_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)
    with pytest.raises(QueueBroken, match=f"^{tmp_path} cannot be read and written by"):
        is_there(tmp_path / "queue.sqlite3")


@pytest.mark.parametrize("name", ["taken", "taken/queue"])
def test_a_directory_that_cannot_be_made_is_for_a_person_to_mend(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("by a file")
    with pytest.raises(QueueBroken, match=rf"^queue\.path: {tmp_path / name} is not a directory$"):
        RoleLock(tmp_path / name, "flusher").acquire()
