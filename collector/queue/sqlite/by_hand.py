"""Dead letters and delivered events by hand: listed, exported, deleted, put back to wait; also while a daemon runs.

What is put back goes into segments of its own, past the keys, which know it already. Everything is done in steps of one
transaction each, so that the daemon waits for milliseconds. It notices within a second, by `PRAGMA data_version`, which
its maintenance looks at anyway and which reads no page.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from collector.clock import Clock
from collector.queue.by_hand import Choice, Entry
from collector.queue.sqlite.database import (
    BUSY_TIMEOUT_MS,
    FILE_NAME,
    SQL,
    damaged,
    open_reader,
    open_writer,
    translated,
)
from collector.queue.sqlite.lock import Presence
from collector.queue.sqlite.reserve import Reserve
from collector.queue.sqlite.soundness import letter_crc, lines_crc

STEP_ROWS = 1000
"""Dead letters put back or deleted in one transaction: a batch, some milliseconds."""
PAGE_ROWS = 8
"""Segments read at one time for an export: at most some megabytes in memory, and no reader that holds up the log."""
SEGMENT_EVENTS = 1000


class _Kind(NamedTuple):
    """Rows that can be taken away: the statements for that, and how many go in one transaction."""

    newest: str
    drop: str
    step_rows: int


DEAD = _Kind(SQL["newest_letter"], SQL["drop_letter"], STEP_ROWS)
DELIVERED = _Kind(SQL["newest_kept"], SQL["drop_delivered"], PAGE_ROWS)


class FileByHand:
    """A connection to the queue's file for one command. Raises what opening the file raises."""

    def __init__(self, directory: Path, *, for_writing: bool = False) -> None:
        self._file = directory / FILE_NAME
        self._presence = Presence(directory)
        self._reserve = Reserve(directory)
        self._clock = Clock()
        reader = open_reader(directory)  # refuses what is missing, not ours, or not of our version
        if not for_writing:
            self._connection = reader
            return
        reader.close()
        self._presence.enter(alone=lambda: None, patience_seconds=BUSY_TIMEOUT_MS / 1000)
        try:
            self._connection = open_writer(directory)
        except BaseException:
            self._presence.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._presence.release()

    def newest_dead(self) -> int:
        """See `ByHand.newest_dead`."""
        (number,) = self._one(DEAD.newest, ())
        return int(number)

    def count_dead(self, choice: Choice) -> int:
        """See `ByHand.count_dead`."""
        row = self._one(SQL["count_letters"], (0, *choice))
        return int(row[0])

    def count_delivered(self, choice: Choice) -> int:
        """See `ByHand.count_delivered`."""
        row = self._one(SQL["count_kept"], (choice.app_id, choice.since_ms, choice.until_ms))
        return int(row[0])

    def dead(self, choice: Choice) -> Iterator[Entry]:
        """See `ByHand.dead`."""
        return self._paged(lambda after: (SQL["letters"], (after, *choice, STEP_ROWS)))

    def waiting(self, choice: Choice) -> Iterator[Entry]:
        """See `ByHand.waiting`: segments, by app."""
        return self._paged(lambda after: (SQL["waiting_after"], (after, choice.app_id, PAGE_ROWS)))

    def delivered(self, choice: Choice) -> Iterator[Entry]:
        """See `ByHand.delivered`."""
        span = (choice.since_ms, choice.until_ms)
        return self._paged(lambda after: (SQL["kept_after"], (after, choice.app_id, PAGE_ROWS, *span)))

    def retry(self, choice: Choice) -> int:
        """See `ByHand.retry`."""
        return self._take(DEAD, self.dead(choice), puts_back=True)

    def purge(self, choice: Choice) -> int:
        """See `ByHand.purge`. On a full disk, which this may mend, the reserve makes room for it."""
        return self._take(DEAD, self.dead(choice), puts_back=False)

    def replay(self, choice: Choice) -> int:
        """See `ByHand.replay`."""
        return self._take(DELIVERED, self.delivered(choice), puts_back=True)

    def _take(self, kind: _Kind, entries: Iterator[Entry], *, puts_back: bool) -> int:
        """Takes rows away, in the transaction that puts their events back where that is asked for; how many events."""
        (last,) = self._one(kind.newest, ())  # what comes meanwhile, perhaps of what was put back, is not meant
        events = 0
        while step := list(itertools.islice(entries, kind.step_rows)):
            meant = [entry for entry in step if entry.number <= last]
            take = partial(self._take_at_once, kind, meant, puts_back=puts_back)
            events += take() if puts_back else self._reserve.lend(take, self._connection)
        return events

    def _take_at_once(self, kind: _Kind, entries: Sequence[Entry], *, puts_back: bool) -> int:
        with self._transaction():
            # Another command may have taken some of them since they were read.
            mine = [entry for entry in entries if self._drop(kind, entry)]
            if puts_back:
                self._put_back(mine)
        return sum(entry.events for entry in mine)

    def _drop(self, kind: _Kind, entry: Entry) -> bool:
        return self._connection.execute(kind.drop, (entry.number, entry.when_ms)).rowcount == 1

    def _put_back(self, entries: Sequence[Entry]) -> None:
        """New segments for their apps."""
        for app_id in dict.fromkeys(entry.app_id for entry in entries):
            (app,) = self._connection.execute(SQL["find_app"], (app_id,)).fetchone()
            for events, lines in _filled(entry for entry in entries if entry.app_id == app_id):
                row = (app, self._clock.now_us(), events, lines, lines_crc(app_id, lines))
                self._connection.execute(SQL["add_segment"], row)
                # Their keys are there already: what is stored again must not count as keys that are remembered.
                self._connection.execute(SQL["count_pruned"], (events,))

    def _one(self, statement: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        with translated(self._file):
            row: tuple[Any, ...] = self._connection.execute(statement, values).fetchone()
            return row

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with translated(self._file):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _paged(self, query: Callable[[int], tuple[str, tuple[Any, ...]]]) -> Iterator[Entry]:
        """Rows after number 0, then after the last one; nothing stays open in between."""
        after = 0
        while True:
            with translated(self._file):
                page = list(self._sound(self._connection.execute(*query(after))))
            if not page:
                return
            yield from page
            after = page[-1].number

    def _sound(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[Entry]:
        for number, app_id, when_ms, reason, lines, crc in rows:
            due = lines_crc(app_id, lines) if reason is None else letter_crc(app_id, reason, lines)
            if crc not in {None, due}:
                raise damaged(self._file, f"row {number} does not match its checksum")
            yield Entry(number, app_id, when_ms, reason, lines)


def _filled(entries: Iterable[Entry]) -> Iterator[tuple[int, bytes]]:
    """The events and lines of segments that entries of one app make: at most SEGMENT_EVENTS, or those of one entry."""
    events, parts = 0, list[bytes]()
    for entry in entries:
        if parts and events + entry.events > SEGMENT_EVENTS:
            yield events, b"\n".join(parts)
            events, parts = 0, []
        events += entry.events
        parts.append(entry.lines)
    if parts:
        yield events, b"\n".join(parts)
