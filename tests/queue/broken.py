"""A queue's files as a process that died leaves them, with all that a queue can hold; and ways to break them."""

import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from collector.errors import CollectorError
from collector.events import event_key
from collector.queue.base import Batch, Burial
from collector.queue.sqlite import recent_keys
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.operations import Put, Settle
from collector.queue.sqlite.store import Store
from tests.fake_clock import FakeClock
from tests.queue.samples import EAGER, EMAIL, all_keys, opened

PARTS = ("", "-wal", "-shm")
BATCH_EVENTS = 100
APPS = ("wiki", "crm", "chat")


class Contents(NamedTuple):
    """What a queue holds: (app, line) of each event."""

    waiting: set[tuple[str, bytes]]
    dead: set[tuple[str, bytes]]
    delivered: set[tuple[str, bytes]]
    keys: set[bytes]
    counts: tuple[int, int, int]
    """Events of each kind; more than there are in the sets where a flipped digit made one line of another."""

    @property
    def events(self) -> set[tuple[str, bytes]]:
        return self.waiting | self.dead | self.delivered


def line(app_id: str, number: int) -> bytes:
    """An event's JSON; those of one app have a kept field, which its key does not cover."""
    kept = f',"team":"team {number}"' if app_id == "crm" else ""
    return f'{{"timestamp":{number},"email":"{EMAIL}","eventName":"opened"{kept}}}'.encode()


def batch(app_id: str, numbers: Sequence[int]) -> Batch:
    keys = [event_key(app_id, number, EMAIL, "opened") for number in numbers]
    return Batch(app_id, b"".join(keys), b"\n".join(line(app_id, number) for number in numbers))


def fill(store: Store, *, checkpoint_after: int = 30, puts: int = 60) -> None:
    """Puts events of several apps in pieces of several sizes; buries, keeps and returns some of them."""
    chance = random.Random(7)
    row = sorted(range(puts * BATCH_EVENTS), key=lambda number: number + chance.uniform(0, 300))  # they stray
    begin = 0
    for number in range(puts):
        app_id = APPS[number % 3]
        size = chance.choice((1, 7, 40, BATCH_EVENTS))
        done(store, Put.of([batch(app_id, row[begin : begin + size])]))
        begin += size
        if number % 4 == 0:
            settle_first(store, app_id)
        if store.is_crowded:
            store.make_room()
        if number == checkpoint_after:
            store._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def done(store: Store, operation: Put | Settle) -> None:
    (result,) = store.transact([operation])
    assert not isinstance(result, CollectorError)


def settle_first(store: Store, app_id: str) -> None:
    """Of an app's first segment one event is buried, one waits on, the others are delivered and kept."""
    segment, events, text = store._execute(
        "SELECT segment, events, lines FROM segment JOIN app ON segment >> 40 = app WHERE name = ? ORDER BY segment",
        (app_id,),
    ).fetchone()
    lines = text.split(b"\n")
    rest = lines[-1:] if events > 2 else []
    settle = Settle(
        app_id,
        segment,
        segment,
        events,
        dead=[(Burial(0, "no such day"), lines[0])],
        rest_events=len(rest),
        rest_lines=b"\n".join(rest),
    )
    others = {0, *([events - 1] if rest else [])}
    done(store, settle.keeping(text, others) if len(others) < events else settle)


def contents(directory: Path) -> Contents:
    """What a sound file holds, with its counts held against it."""
    with opened(directory) as connection:
        found = [
            [(name, each) for name, text in connection.execute(select) for each in text.split(b"\n")]
            for select in (
                "SELECT name, lines FROM segment JOIN app ON app = segment >> 40",
                "SELECT name, line FROM dead JOIN app USING (app)",
                "SELECT name, lines FROM delivered JOIN app USING (app)",
            )
        ]
        keys = set(all_keys(connection))
        assert connection.execute(
            "SELECT coalesce(sum(waiting_events), 0), coalesce(sum(dead_events), 0), coalesce(sum(kept_events), 0),"
            " coalesce(sum(stored_events), 0) - (SELECT keys FROM pruned) FROM app"
        ).fetchone() == (*map(len, found), len(keys))
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    waiting, dead, delivered = found
    return Contents(set(waiting), set(dead), set(delivered), keys, (len(waiting), len(dead), len(delivered)))


def left_behind(directory: Path, into: Path, fill: Callable[[Store], None]) -> None:
    """The files of a queue whose process died, in `into`."""
    into.mkdir()
    with (
        mock.patch.multiple(recent_keys, **EAGER | {"CAPACITY": 500}),
        closing(Store(directory, batch_events=BATCH_EVENTS, clock=FakeClock())) as store,
    ):
        fill(store)
        assert store._execute("SELECT count(*) FROM recent_keys").fetchone()[0] > 3, "some keys are not in the tree"
        for part in PARTS:
            shutil.copy(directory / (FILE_NAME + part), into)


def copied(files: Path, into: Path) -> Path:
    """A copy to break."""
    shutil.copytree(files, into)
    return into
