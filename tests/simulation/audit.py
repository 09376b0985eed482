"""What must be true of the queue's file, whenever it is looked at and at the end."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec

from tests.queue.samples import all_keys, opened
from tests.simulation.books import Books, Identity
from tests.simulation.disk import real_connect
from tests.simulation.upstream import Upstream


@contextlib.contextmanager
def open_file(directory: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the world's own, which never fails."""
    with mock.patch.object(sqlite3, "connect", real_connect), opened(directory) as connection:
        yield connection


def check_counts(directory: Path, waiting_events: int, waiting_bytes: int) -> None:
    """What memory says waits, what the file says, and what is there."""
    with open_file(directory) as connection:
        (counted,) = connection.execute(
            "SELECT json_array(coalesce(sum(waiting_events), 0), coalesce(sum(waiting_bytes), 0),"
            " coalesce(sum(dead_events), 0), coalesce(sum(stored_events), 0) - (SELECT keys FROM pruned)) FROM app"
        ).fetchone()
        (real,) = connection.execute(
            "SELECT json_array(coalesce(sum(events), 0), coalesce(sum(length(lines) + 1), 0),"
            " (SELECT count(*) FROM dead), ?) FROM segment",
            (len(all_keys(connection)),),
        ).fetchone()
        assert counted == real, f"the file counts {counted}, but holds {real} (events, bytes, dead, keys)"
        wrong = connection.execute(
            "SELECT count(*) FROM segment WHERE events <> length(CAST(lines AS TEXT))"
            " - length(replace(CAST(lines AS TEXT), char(10), '')) + 1"
        ).fetchone()
        assert wrong == (0,), "a segment does not hold as many lines as it says"
        (stored,) = connection.execute(
            "SELECT json_array(coalesce(sum(waiting_events), 0), coalesce(sum(waiting_bytes), 0)) FROM app"
        ).fetchone()
        memory = f"[{waiting_events},{waiting_bytes}]"
        assert stored == memory, f"memory counts {memory}, the file {stored} (events, bytes)"


def check_delivered(directory: Path, books: Books, upstream: Upstream) -> None:
    """Every acknowledged event is at upstream, or buried after upstream has refused it alone."""
    buried: set[Identity] = set()
    with open_file(directory) as connection:
        for app_id, line, reason in connection.execute("SELECT name, line, reason FROM dead JOIN app USING (app)"):
            [identity] = books.check_delivery(app_id, [msgspec.json.decode(line)])
            assert reason
            buried.add(identity)
    innocent = buried - upstream.refused_alone
    assert not innocent, f"buried, but never refused alone: {books.name(innocent)}"
    lost = [
        identity
        for identity, sent in books.sent.items()
        if sent.acknowledged and identity not in buried and identity not in upstream.taken
    ]
    assert not lost, f"LOST: {books.name(lost)} acknowledged, but neither at upstream nor buried"
