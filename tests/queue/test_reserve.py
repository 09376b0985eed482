"""The room that is kept for delivery, and a store whose disk is in its way."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from collector.clock import Clock
from collector.errors import DiskFull
from collector.forks import Connection
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.operations import Put
from collector.queue.sqlite.reserve import FILE_NAME as RESERVE_NAME
from collector.queue.sqlite.reserve import RESERVE_BYTES, Reserve, with_reserve
from collector.queue.sqlite.store import Store
from tests.queue.samples import batch, waiting_numbers


def held_bytes(directory: Path) -> int:
    return (directory / RESERVE_NAME).stat().st_blocks * 512


def open_store(directory: Path) -> Store:
    return Store(directory, batch_events=10, clock=Clock())


def test_the_reserve_holds_blocks_of_the_disk_until_it_is_given_up_and_can_be_had_again(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    reserve.give()  # where there is none, it does no harm
    for _ in range(2):
        reserve.take()
        reserve.take()
        assert RESERVE_BYTES <= held_bytes(tmp_path) < RESERVE_BYTES + 2**20
        reserve.give()
        assert held_bytes(tmp_path) == 0


def test_a_step_that_finds_the_disk_full_is_done_with_the_reserves_room_which_is_held_again(tmp_path: Path) -> None:
    @with_reserve
    def opened(directory: Path) -> str:
        if not (directory / RESERVE_NAME).exists() or held_bytes(directory):
            raise DiskFull("no room")
        return "open"

    with pytest.raises(DiskFull):
        opened(tmp_path)
    assert not (tmp_path / RESERVE_NAME).exists(), "where there is none, none is made"
    Reserve(tmp_path).take()
    assert opened(tmp_path) == "open"
    assert held_bytes(tmp_path) >= RESERVE_BYTES


def test_a_store_has_its_reserve_and_leaves_it_to_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(open_store(tmp_path)) as store:
            assert store.trouble is None
            assert held_bytes(tmp_path) >= RESERVE_BYTES
    assert held_bytes(tmp_path) >= RESERVE_BYTES


def test_a_store_that_cannot_have_a_reserve_says_so_and_takes_events(tmp_path: Path) -> None:
    (tmp_path / RESERVE_NAME).mkdir()
    with closing(open_store(tmp_path)) as store:
        assert "directory" in str(store.trouble)
        store.recover()
        assert "directory" in str(store.trouble)
        store.transact([Put.of([batch("wiki", [1])])])
        assert store.trouble is None


def close_as_a_fork_does(store: Store) -> None:
    store._connection.close()
    store._connection.was_closed_by_fork = True


def test_the_reserve_that_a_fork_amid_a_full_disk_found_given_up_is_taken_back(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        store._reserve.give()
        close_as_a_fork_does(store)
        store.reconnect()
        assert held_bytes(tmp_path) >= RESERVE_BYTES
        assert store.trouble is None


def test_a_file_that_cannot_be_opened_again_after_a_fork_is_trouble_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> Connection:
        raise DiskFull("no room")

    with closing(open_store(tmp_path)) as store:
        close_as_a_fork_does(store)
        with monkeypatch.context() as full:
            full.setattr("collector.queue.sqlite.store.open_writer", refuse)
            with pytest.raises(DiskFull):
                store.reconnect()
        assert isinstance(store.trouble, DiskFull)
        store.reconnect()
        assert held_bytes(tmp_path) >= RESERVE_BYTES
        store.recover()
        assert store.trouble is None
        store.transact([Put.of([batch("wiki", [1])])])
    assert waiting_numbers(tmp_path, "wiki") == [1]


def test_what_a_dead_process_left_in_the_log_is_in_the_database_before_anything_is_acknowledged(tmp_path: Path) -> None:
    died, found, alone = (tmp_path / name for name in ("died", "found", "alone"))
    with closing(open_store(died)) as store:
        store.transact([Put.of([batch("wiki", [1, 2])])])
        shutil.copytree(died, found)  # as it is on disk now, without an orderly end
    with closing(open_store(found)):
        alone.mkdir()
        shutil.copy(found / FILE_NAME, alone)
        assert waiting_numbers(alone, "wiki") == [1, 2]


def test_the_trouble_stays_as_long_as_no_commit_goes_through(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        store._execute("PRAGMA query_only = ON")  # every write fails from now on
        (failure,) = store.transact([Put.of([batch("wiki", [1])])])
        assert store.trouble is failure
        store.recover()
        assert store.trouble is not None
        store._execute("PRAGMA query_only = OFF")
        store.recover()
        assert store.trouble is None


@pytest.mark.parametrize("times", [1, 3])
def test_recovering_leaves_nothing_behind(tmp_path: Path, times: int) -> None:
    with closing(open_store(tmp_path)) as store:
        store.transact([Put.of([batch("wiki", [1])])])
        for _ in range(times):
            store._execute("PRAGMA query_only = ON")
            store.transact([Put.of([batch("wiki", [2])])])
            store._execute("PRAGMA query_only = OFF")
            store.recover()
        assert store._execute("SELECT count(*) FROM segment").fetchone() == (1,)
        assert waiting_numbers(tmp_path, "wiki") == [1]
