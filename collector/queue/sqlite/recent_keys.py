"""Keys that come in disorder, on their way into the tree of all keys.

A key's place in the tree is that of its timestamp, and a commit writes each page that it touched as a whole. A thousand
keys that come in order meet in twenty pages; where they stray over a minute of busy traffic they touch hundreds, and
cost five times as much. So those are kept here for a while: on disk as they came, a row of `recent_keys` a put, and in
memory, where the next ones are looked for. The oldest of them enter the tree together, in order of time, before they
are too many. That is what a log-structured merge tree does with its memtable, for traffic that needs it: while puts
come in order nothing is kept here, for they cost a fifth less without.

Invariants:

1. A key is known if it is in `seen` or in a row of `recent_keys`; whatever becomes of memory, these two say all.
2. While this is open, every known key between `low` and `high` is in memory: for those the tree is not asked.
3. What is in memory holds as long as no other connection commits (`PRAGMA data_version`) and no transaction of this one
   fails. From then on the rows count alone: whoever puts next enters them all before anything else.
"""

import heapq
import sqlite3
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable

from collector.clock import WallTime
from collector.events import KEY_BYTES, TIMESTAMP_BYTES
from collector.queue.sqlite.database import MAX_FRESH_KEYS, SQL

CAPACITY = 100_000
"""Keys in memory at most, but for those of the latest commit: 20 MiB. More made nothing faster that was measured."""

ROW_FACTOR = 4
"""Rows hold so many times CAPACITY at most. A row stays until its last key has entered the tree, and a key of a clock
that is ahead keeps its neighbours' row for long; all rows enter at once where another connection has committed."""

LARGE_PUT_KEYS = 256
"""Smaller puts touch too few pages to tell anything of disorder: their fsync costs more than their keys."""

FAR_PUTS = 8
"""A put strays that meets the time of the large one so many before. Nearer ones meet in pages touched anyway."""

OPENS_AFTER = 16
"""By so many more puts must have strayed than came in order."""

OPENS_AFTER_OTHERS = 1000
"""The same once another connection has committed: each time that one does, all that is here enters the tree."""

CLOSES_AFTER = 256
"""So many puts in a row of which no key was kept are traffic of another time."""

AHEAD_MS = 3_600_000
"""Keys of so much later than the latest traffic are taken for a part of it: of a clock that is ahead."""

BUCKET_MS = 2048
"""Keys of so many milliseconds are sorted together when they leave."""

STEP_KEYS = 2048
"""So many leave at a time, or a bucket, or MAX_BUCKET_KEYS of a large one: at most some ten milliseconds."""
MAX_BUCKET_KEYS = 16_384

ABOVE_ALL = b"\xff" * (KEY_BYTES + 1)
LAST_TIMESTAMP = 2 ** (8 * TIMESTAMP_BYTES) - 1  # as keys are compared, in which those before 1970 come last

SortedKeys = bytes | list[bytes]
"""Keys in order of time: one behind the other, as statements take them, or each by itself, as they are kept here."""


class RecentKeys:
    """Those of one writing connection. All that reads or writes the file is called inside that one's transactions."""

    def __init__(self, execute: Callable[..., sqlite3.Cursor], wall: WallTime) -> None:
        self._execute = execute
        self._wall = wall
        self.is_open = False
        self._is_closing = False  # what is here is still looked for, but new keys enter the tree at once
        self._strayed = 0  # large puts that did, less those that came in order
        self._is_resting = True  # no large put has come since that was last asked
        self._has_left = True  # there may be rows that nobody enters: of who died, or of a transaction that failed
        self._times = deque([(b"", b"")], maxlen=FAR_PUTS)  # first and last timestamp of large puts
        self._in_vain = 0  # puts in a row of which no key was kept here
        self._foreign_commits = 0
        self._low, self._high = b"", ABOVE_ALL  # neither is itself between them
        self._keys: set[bytes] = set()
        self._buckets: dict[int, list[bytes]] = {}  # those of them that are not in the tree, by time
        self._in_tree: list[bytes] = []  # the others, sorted
        self._rows: list[tuple[bytes, int, int]] = []  # a heap: the last key of each row, its number, how many keys
        self._row_keys = 0  # in all rows

    def begin(self) -> None:
        """The first act of a transaction that puts or enters keys: rows that others left go in; it opens or closes."""
        if self.is_open and self._count_foreign() != self._foreign_commits:
            self.forget()
            self._strayed = -OPENS_AFTER_OTHERS
        if self.is_open:
            has_become_useless = self._strayed <= 0 or self._in_vain >= CLOSES_AFTER
            is_full = self._row_keys > ROW_FACTOR * CAPACITY
            self._is_closing = self._is_closing or has_become_useless or is_full
            return
        self._has_left = self._execute(SQL["has_recent"]).fetchone() is not None
        if self._has_left:  # also once they are entered, until that is seen to be committed
            for stamp, keys in self._execute(SQL["recent"]):
                self._execute(SQL["enter"], (keys, stamp))
            self._execute(SQL["drop_all_recent"])
        if self._strayed >= OPENS_AFTER:
            self._open()

    def watch(self, keys: SortedKeys, count: int) -> None:
        """Notes when the keys of a put are of: whether it strays."""
        if count < LARGE_PUT_KEYS:
            return
        first, last = (keys[0], keys[-1]) if isinstance(keys, list) else (keys, keys[-KEY_BYTES:])
        first, last = sorted((first[:TIMESTAMP_BYTES], last[:TIMESTAMP_BYTES]))  # around 1970 they are not
        first_then, last_then = self._times[0]
        if first < last_then and first_then < last:
            self._strayed = min(self._strayed + 1, OPENS_AFTER)
        elif self._strayed > 0:
            self._strayed -= 1
        self._times.append((first, last))
        self._is_resting = False

    def put(self, keys: list[bytes], stamp: int) -> None:
        """Stores sorted keys of one put; `stamp` is as in `seen`. Only while this is open.

        Raises IntegrityError, with nothing changed, where some key is known or comes twice.
        """
        inside, outside = self._parted(keys)
        if not self._keys.isdisjoint(inside):
            raise sqlite3.IntegrityError("a key is known")
        if self._is_closing:
            inside, outside = [], keys
        size = len(self._keys) + len(inside)
        self._keys.update(inside)
        try:
            if len(self._keys) < size:
                raise sqlite3.IntegrityError("a key comes twice")  # noqa: TRY301 - undone as the other is
            if outside:  # last, for only this statement is undone where it fails
                self._execute(SQL["enter_new"], (b"".join(outside), stamp))
        except sqlite3.IntegrityError:
            self._keys.difference_update(inside)
            raise
        self._in_vain += 1
        if inside:
            self._in_vain = 0
            row = self._execute(SQL["add_recent"], (stamp, b"".join(inside))).lastrowid or 0
            heapq.heappush(self._rows, (inside[-1], row, len(inside)))
            self._row_keys += len(inside)
            self._share_out(inside)

    def known(self, keys: list[bytes]) -> set[bytes]:
        """Those of up to a thousand sorted keys that are known."""
        inside, outside = self._parted(keys)
        known = self._keys.intersection(inside)
        sought = outside if self.is_open and not self._is_closing else keys
        if sought:
            (positions,) = self._execute(SQL["known"], (b"".join(sought),)).fetchone()
            if positions:
                known.update([sought[int(position)] for position in positions.split(",")])
        return known

    @property
    def is_crowded(self) -> bool:
        """There is something for `make_room` to do."""
        return self.is_open and (self._is_closing or self._size > CAPACITY)

    def make_room(self) -> None:
        """The oldest of too many keys enter the tree, or some of those that all shall."""
        if self._is_closing:
            self.leave()
        elif self.is_open:
            self._enter(self._size - CAPACITY + STEP_KEYS)

    def rest(self) -> bool:
        """Whether no large put has come since this was last asked: then all may enter the tree, by `leave`."""
        was_resting, self._is_resting = self._is_resting, True
        return was_resting and (self.is_open or self._has_left)

    def leave(self) -> bool:
        """Some keys enter the tree, and no more are kept here before all have; whether there are more."""
        self._is_closing = self.is_open
        self._enter(STEP_KEYS)
        if not self._buckets:
            self.forget()
            self._strayed = min(self._strayed, 0)
        return self.is_open

    def forget(self) -> None:
        """Nothing is in memory: the rows on disk count alone."""
        self._has_left = self._has_left or bool(self._rows)
        self.is_open = self._is_closing = False
        self._keys, self._buckets, self._in_tree, self._rows, self._row_keys = set(), {}, [], [], 0

    @property
    def _size(self) -> int:
        return len(self._keys) + 2 * len(self._buckets)  # a bucket takes the memory of two keys

    def _open(self) -> None:
        self._foreign_commits = self._count_foreign()
        first, last = min(first for first, _ in self._times), max(last for _, last in self._times)
        end = min(int.from_bytes(last) + AHEAD_MS, LAST_TIMESTAMP).to_bytes(TIMESTAMP_BYTES)
        self._high = self._execute(SQL["first_above"], (end + ABOVE_ALL,)).fetchone()[0] or ABOVE_ALL
        # What the traffic has lately brought into the tree is here as well, to go on amid it.
        keys = [key for (key,) in self._execute(SQL["last_between"], (first, self._high, CAPACITY // 2))]
        self._low = keys[-1] if len(keys) == CAPACITY // 2 else first
        self._keys.update(keys)
        self._in_tree = keys[::-1]
        self._in_vain = 0
        self.is_open = True

    def _count_foreign(self) -> int:
        """A number that changes when another connection has committed."""
        return int(self._execute("PRAGMA data_version").fetchone()[0])

    def _parted(self, keys: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Sorted keys between `low` and `high`, and the others."""
        start, end = bisect_right(keys, self._low), bisect_left(keys, self._high)
        return keys[start:end], keys[:start] + keys[end:]

    def _share_out(self, keys: list[bytes]) -> None:
        """Sorted keys go to their buckets."""
        start = 0
        while start < len(keys):
            bucket = int.from_bytes(keys[start][:TIMESTAMP_BYTES]) // BUCKET_MS
            last_ms = (bucket + 1) * BUCKET_MS - 1
            end = bisect_left(keys, last_ms.to_bytes(TIMESTAMP_BYTES) + ABOVE_ALL, start)
            self._buckets.setdefault(bucket, []).extend(keys[start:end])
            start = end

    def _enter(self, keys: int) -> None:
        """At least so many enter the tree, if there are so many: the oldest, by buckets or parts of large ones."""
        stamp = self._wall.latest_us() // 1_000_000  # later than their receipt: they are remembered for longer
        while keys > 0 and self._buckets:
            oldest = min(self._buckets)
            bucket = self._buckets.pop(oldest)
            bucket.sort()
            leaving, staying = bucket[:MAX_BUCKET_KEYS], bucket[MAX_BUCKET_KEYS:]
            if staying:
                self._buckets[oldest] = staying
            for start in range(0, len(leaving), MAX_FRESH_KEYS):
                self._execute(SQL["enter"], (b"".join(leaving[start : start + MAX_FRESH_KEYS]), stamp))
            self._keys.difference_update(leaving)
            self._low = leaving[-1]
            keys -= len(leaving)
        gone = bisect_right(self._in_tree, self._low)
        self._keys.difference_update(self._in_tree[:gone])
        del self._in_tree[:gone]
        while self._rows and self._rows[0][0] <= self._low:
            _, row, size = heapq.heappop(self._rows)
            self._execute(SQL["drop_recent"], (row,))
            self._row_keys -= size
