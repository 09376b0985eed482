"""How puts become segments, each event once, and settlements take them away: inside a transaction of the store.

The hot path is one statement a segment (`fresh` in writer.sql), all else is several: each gives the interpreter lock
away twice, and getting it back beside a busy thread, as in a host program, costs more than the inserts of a small put
(measured: commits of eight events took 2.3 ms with seven statements, 0.8 ms with one). A large segment takes another,
for its number: that saves whoever delivers it from reading it.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence

from collector.clock import Clock, WallTime
from collector.events import KEY_BYTES, by_time, split_keys
from collector.queue.base import Batch, Verdict
from collector.queue.sqlite.database import SQL
from collector.queue.sqlite.drafts import Draft, Fates, tell_apart
from collector.queue.sqlite.operations import Done, Settle
from collector.queue.sqlite.recent_keys import RecentKeys, SortedKeys
from collector.queue.sqlite.soundness import letter_crc, lines_crc

NUMBERED_SHARE = 8
"""Who has put a segment is told its number where it is at least this part of what a segment can be: that takes up to
three statements more in its commit."""


class Segments:
    """Those of one writing connection."""

    def __init__(
        self,
        execute: Callable[..., sqlite3.Cursor],
        recent: RecentKeys,
        clock: Clock,
        wall: WallTime,
        segment_events: int,
    ) -> None:
        self._execute = execute
        self._recent = recent
        self._clock = clock
        self._wall = wall
        self._numbered_events = segment_events / NUMBERED_SHARE
        self._apps: dict[str, int] = {}

    def add_alone(self, draft: Draft, batches: Sequence[Batch]) -> bool:
        """Whether a small draft could be stored by one statement, which is a transaction by itself."""
        members = [batches[position] for position in draft.positions]
        if draft.events < self._numbered_events and not self._recent.is_open and members[0].app_id in self._apps:
            with contextlib.suppress(sqlite3.IntegrityError):  # some event is or may be known; nothing has changed
                self._add(members, self._in_order(members))
                return True
        return False

    def add(self, draft: Draft, batches: Sequence[Batch], fates: Fates) -> None:
        """Stores some of the batches, those of one app, as one segment, or what is new of them."""
        members = [batches[position] for position in draft.positions]
        keys = self._in_order(members)
        self._recent.watch(keys, draft.events)
        try:
            self._add(members, keys)
        except sqlite3.IntegrityError:  # undoes this one statement
            for position, (verdict, size) in zip(draft.positions, self._add_some(members), strict=True):
                fates.verdicts[position], fates.bytes[position] = verdict, size
        if sum([fates.verdicts[position].accepted for position in draft.positions]) >= self._numbered_events:
            (number,) = self._execute(SQL["last_segment"], (self._app(members[0].app_id),)).fetchone()
            fates.segments = fates.segments or [0] * len(batches)
            for position in draft.positions:
                fates.segments[position] = number

    def settle(self, settle: Settle) -> Done:
        """Takes a range away: keeps what was delivered, buries what was refused, puts the rest back in its place."""
        app = self._app(settle.app_id)
        _, size = self._execute(SQL["range_totals"], (settle.first, settle.last)).fetchone()
        kept = settle.first if settle.rest_events else settle.first - 1
        if kept < settle.last:
            self._execute(SQL["drop_range"], (kept + 1, settle.last))
        if settle.rest_events:
            crc = lines_crc(settle.app_id, settle.rest_lines)
            self._execute(SQL["cut_segment"], (settle.first, settle.rest_events, settle.rest_lines, crc))
        for burial, line in settle.dead:
            crc = letter_crc(settle.app_id, burial.reason, line)
            self._execute(SQL["bury"], (app, self._clock.now_ms(), burial.reason, line, crc))
        if settle.kept_events:
            crc = lines_crc(settle.app_id, settle.kept_lines)
            self._execute(SQL["keep"], (app, self._clock.now_ms(), settle.kept_events, crc, settle.kept_lines))
        return Done((), (len(settle.rest_lines) + 1 if settle.rest_events else 0) - size)

    def forget(self) -> None:
        """Apps that a transaction has added are gone where it failed; so none is known by its number."""
        self._apps.clear()

    def _in_order(self, batches: Sequence[Batch]) -> SortedKeys:
        keys = _keys_of(batches)
        return sorted(split_keys(keys)) if self._recent.is_open else by_time(keys)

    def _add(self, batches: Sequence[Batch], keys: SortedKeys) -> None:
        """Adds batches of one app as one segment; these are their keys.

        Raises IntegrityError, with nothing added, where some event was known already or comes twice.
        """
        self._put(batches[0].app_id, keys, [batch.lines for batch in batches])

    def _add_some(self, batches: Sequence[Batch]) -> list[tuple[Verdict, int]]:
        """The same where some are known: adds the others. Each batch's verdict, and the bytes of its new lines."""
        distinct = sorted(set(split_keys(_keys_of(batches))))
        known = self._recent.known(distinct)
        new = [key for key in distinct if key not in known]
        told = [tell_apart(batch, known) for batch in batches]
        if new:
            keys = new if self._recent.is_open else b"".join(new)
            self._put(batches[0].app_id, keys, [lines for verdict, lines in told if verdict.accepted])
        return [(verdict, len(lines) + 1 if verdict.accepted else 0) for verdict, lines in told]

    def _put(self, app_id: str, keys: SortedKeys, lines: Sequence[bytes]) -> None:
        app, text = self._app(app_id), b"\n".join(lines)
        stamp, crc = self._wall.latest_us(), lines_crc(app_id, text)
        if isinstance(keys, list):
            self._recent.put(keys, stamp // 1_000_000)
            self._execute(SQL["add_segment"], (app, stamp, len(keys), text, crc))
        else:
            self._execute(SQL["put_fresh"], (keys, stamp, app, len(keys) // KEY_BYTES, text, crc))

    def _app(self, app_id: str) -> int:
        app = self._apps.get(app_id)
        if app is None:
            row = self._execute(SQL["find_app"], (app_id,)).fetchone()
            app = self._apps[app_id] = row[0] if row else self._execute(SQL["add_app"], (app_id,)).lastrowid or 0
        return app


def _keys_of(batches: Sequence[Batch]) -> bytes:
    return b"".join([batch.keys for batch in batches])
