"""From a damaged file of the queue to a sound one, with everything in it that can be read and is known to be right.

1. A copy of the file is made, the log's pages are put into it, and its first page is replaced by one of ours: where
   the tables begin follows from the schema alone, so the schema in the file is not needed. The file is not touched.
2. Every readable row of the copy goes into a new file. Events are taken where their row's checksum fits, else line by
   line where the key proves the line; in rows of version 1, which have no checksum, where a line is an event. What is
   not taken is kept in a file of its own. Keys are taken as they are, and those of events are added. (What no check can
   tell: a flipped bit in a key, or one that makes another event of the queue of a line.)
3. The new file is complete and fsynced, and gets the name that says so; only then are the old files set aside and is it
   put in place. A crash before leaves the old state, to be salvaged again; a crash after is finished by the next start.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from collector.events import KEY_BYTES, split_keys
from collector.queue.sqlite.database import APP_SHIFT, FILE_NAME, FIRST_MICROSECOND, make_file, sync
from collector.queue.sqlite.rescue.bare_file import copy_with_log, leaves_of, open_bare, roots_of
from collector.queue.sqlite.rescue.walk import Row, Table, readable_rows
from collector.queue.sqlite.soundness import is_proven, key_of, letter_crc, lines_crc

MAKING, COMPLETE, COPY = (FILE_NAME + suffix for suffix in (".making", ".complete", ".copy"))
UNSOUND = FILE_NAME + ".unsound"
COMPANIONS = ("-wal", "-shm", "-journal")

MAX_ROWID = 2**63 - 1
ROWS_AT_ONCE = 10_000
PIECE_BYTES = 1000


def _by_rowid(columns: str, table: str) -> Table:
    first = columns.partition(",")[0]
    select = f"SELECT {columns} FROM {table} WHERE {first} BETWEEN ? AND ? ORDER BY {first} {{order}}"  # noqa: S608 - names of ours
    return Table(select, lambda row: int(row[0]), int)


APPS = _by_rowid("app, name, waiting_events", "app NOT INDEXED")
APP_NAMES = "SELECT app, name, NULL FROM app ORDER BY name"
SEGMENTS = _by_rowid("segment, stamp", "segment")  # their lines are read one by one: they may be cut short
LETTERS = _by_rowid("dead, app, buried_ms, reason, line, crc", "dead")
DELIVERED = _by_rowid("delivered, app, delivered_ms", "delivered")
RECENT = _by_rowid("run, stamp, keys", "recent_keys")
KEYS = Table(
    "SELECT key, stamp FROM seen WHERE key BETWEEN ? AND ? ORDER BY key {order}",
    lambda row: int.from_bytes(row[0]),
    lambda position: position.to_bytes(KEY_BYTES),
)


class Salvaged(msgspec.Struct, rename="camel"):
    """What came of a damaged file: what is in the new one, and what could not be taken over."""

    set_aside: str = ""
    waiting_events: int = 0
    waiting_events_before: int = 0
    """As many as the damaged file's own count says, as far as that can be read."""
    dead_letters: int = 0
    delivered_events: int = 0
    keys_read: int = 0
    keys_rebuilt: int = 0
    """Keys that were unreadable, of events that were not."""
    segments_unreadable: int = 0
    """Rows of events of which a part at least was not taken."""
    lines_unsound: int = 0
    """Lines of these that are kept beside the file that was set aside."""

    def as_fields(self) -> dict[str, str | int]:
        """For the log."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def salvage(file: Path) -> Salvaged:
    """A sound file stands in the damaged one's place, which is set aside with its log. Nobody may have it open.

    Needs room for a copy of the file and for the new one. Raises sqlite3.Error and OSError with the file as it was.
    """
    making, copy, unsound = file.with_name(MAKING), file.with_name(COPY), file.with_name(UNSOUND)
    try:
        make_file(making)
        copy_with_log(file, copy)
        with closing(sqlite3.connect(making, isolation_level=None)) as new:
            new.execute("PRAGMA journal_mode = OFF")
            new.execute("PRAGMA synchronous = OFF")
            with unsound.open("wb") as aside:
                salvaged = _Salvage(copy, new, aside).run()
        _belong_alike(making, file)
        sync(making)
        sync(unsound)
        copy.unlink()
        if not salvaged.lines_unsound:
            unsound.unlink()
        making.replace(file.with_name(COMPLETE))
    except BaseException:
        for left in (making, copy, unsound):
            left.unlink(missing_ok=True)
        raise
    salvaged.set_aside = str(put_in_place(file))
    return salvaged


def _belong_alike(making: Path, file: Path) -> None:
    """Who may use the old file may use the new one, also where root makes it for the daemon of another user."""
    old = (file if file.exists() else file.parent).stat()
    if os.geteuid() == 0:
        os.chown(making, old.st_uid, old.st_gid)
    making.chmod(old.st_mode & 0o666)  # of a directory what is meant for files


def put_in_place(file: Path) -> Path:
    """The complete new file is the queue's file, and what stood there is set aside; the name it has now.

    Can be repeated after a crash at any point.
    """
    complete = file.with_name(COMPLETE)
    made_at = datetime.fromtimestamp(complete.stat().st_mtime, tz=UTC)
    aside = file.with_name(f"{FILE_NAME}.broken-{made_at:%Y%m%dT%H%M%S.%fZ}")
    sync(file.parent)
    for suffix in (*COMPANIONS, "", ".unsound"):
        part = file.with_name(FILE_NAME + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    sync(file.parent)  # a log that came back after a power cut would be read into the new file
    complete.rename(file)
    sync(file.parent)
    return aside


class _Salvage:
    """Takes what is sound from a copy of the old file to the new one; lines that are not go to `aside`."""

    def __init__(self, copy: Path, new: sqlite3.Connection, aside: BinaryIO) -> None:
        self._copy = copy
        self._new = new
        self._roots = roots_of(new)
        self._old = open_bare(copy, self._roots)
        self._aside = aside
        self._did = Salvaged()
        self._names: dict[int, list[str]] = {}
        self._taken: dict[str, int] = {}
        self._refused: set[tuple[str, int]] = set()

    def run(self) -> Salvaged:
        """What was done."""
        try:
            self._new.execute("BEGIN")
            self._take_keys()
            self._read_apps()
            for row in self._rows("segment", SEGMENTS):
                self._take_segment(*row)
            for row in self._rows("dead", LETTERS):
                self._take_letter(*row)
            for row in self._rows("delivered", DELIVERED):
                self._take_delivered(*row)
        finally:
            self._old.close()
        self._new.execute(
            "UPDATE pruned SET keys = (SELECT coalesce(sum(stored_events), 0) FROM app) - (SELECT count(*) FROM seen)"
        )
        # Rows came in no certain order, so the triggers' count says nothing.
        self._new.execute(
            "UPDATE app SET next_segment = 1 + coalesce((SELECT max(segment) FROM segment"
            " WHERE segment BETWEEN app << 40 AND ((app + 1) << 40) - 1), app << 40)"
        )
        self._new.execute("COMMIT")
        return self._did

    def _rows(self, name: str, table: Table, highest: int = MAX_ROWID) -> Iterator[Row]:
        """All rows of a table that can be read; first along its tree, then, where that is broken, page by page."""
        broken: list[int] = []
        yield from readable_rows(self._old, table, 0, highest, broken)
        for leaf in leaves_of(self._copy, self._roots[name]) if broken else ():
            self._old.close()
            self._old = open_bare(self._copy, self._roots | {name: leaf})
            yield from readable_rows(self._old, table, 0, highest, [])
        if broken:
            self._old.close()
            self._old = open_bare(self._copy, self._roots)

    def _take_keys(self) -> None:
        now = int(time.time())
        sound = (
            (key, min(stamp if stamp < FIRST_MICROSECOND else stamp // 1_000_000, now))
            for key, stamp in self._key_rows()
            if isinstance(key, bytes) and len(key) == KEY_BYTES and isinstance(stamp, int)
        )
        for some in _in_parts(sound, ROWS_AT_ONCE):
            self._new.executemany("INSERT OR IGNORE INTO seen (key, stamp) VALUES (?, ?)", some)
        (self._did.keys_read,) = self._new.execute("SELECT count(*) FROM seen").fetchone()

    def _key_rows(self) -> Iterator[Row]:
        yield from self._rows("seen", KEYS, 2 ** (8 * KEY_BYTES) - 1)
        for _, stamp, keys in self._rows("recent_keys", RECENT):
            # A row may be cut off; and before version 4 another table's page is there, with text in place of a stamp.
            if isinstance(keys, bytes) and isinstance(stamp, int):
                whole = len(keys) // KEY_BYTES * KEY_BYTES
                yield from ((key, stamp) for key in split_keys(keys[:whole]))

    def _read_apps(self) -> None:
        """The names that a number may have: they stand in the table and in its index, and either may be damaged."""
        rows = list(self._rows("app", APPS))
        with contextlib.suppress(sqlite3.Error):
            rows.extend(self._old.execute(APP_NAMES))  # those before an error count
        for app, name, waiting in rows:
            if isinstance(waiting, int):
                self._did.waiting_events_before += waiting
            try:
                text = name.decode() if isinstance(name, bytes) else ""
            except UnicodeDecodeError:
                continue
            names = self._names.setdefault(app, []) if isinstance(app, int) and text else []
            if text and text not in names:
                names.append(text)

    def _take_segment(self, segment: int, stamp: object) -> None:
        if not self._is_first("segment", segment):
            return
        name, sound = self._sound_lines(segment >> APP_SHIFT, *self._lines_of("segment", segment))
        if name is None:
            self._refused.add(("segment", segment))
            return
        stamp = stamp if isinstance(stamp, int) else time.time_ns() // 1000
        text = b"\n".join(sound)
        self._new.execute(
            "INSERT INTO segment (segment, stamp, events, lines, crc) VALUES (?, ?, ?, ?, ?)",
            (segment, stamp, len(sound), text, lines_crc(name, text)),
        )
        self._did.waiting_events += len(sound)
        self._add_keys(name, sound, stamp)

    def _take_delivered(self, number: int, app: object, when_ms: object) -> None:
        if not (isinstance(app, int) and isinstance(when_ms, int) and self._is_first("delivered", number)):
            return
        lines, crc = self._lines_of("delivered", number)
        name, sound = self._sound_lines(app, lines, -1 if crc is None else crc)
        if name is None:
            self._refused.add(("delivered", number))
            return
        text = b"\n".join(sound)
        self._new.execute(
            "INSERT INTO delivered (delivered, app, delivered_ms, events, crc, lines) VALUES (?, ?, ?, ?, ?, ?)",
            (number, app, when_ms, len(sound), lines_crc(name, text), text),
        )
        self._did.delivered_events += len(sound)

    def _take_letter(
        self, number: int, app: object, when_ms: object, reason: object, line: object, crc: object
    ) -> None:
        if not self._is_first("dead", number):
            return
        text = line if isinstance(line, bytes) else b""
        why = reason.decode(errors="replace") if isinstance(reason, bytes) else ""
        app = app if isinstance(app, int) else 0
        for name in self._names_of(app):
            if crc == letter_crc(name, why, text) or self._is_taken_without(name, text, crc):
                self._add_app(app, name)
                break
        else:
            self._refused.add(("dead", number))
            self._reject([text])
            return
        when_ms = when_ms if isinstance(when_ms, int) else time.time_ns() // 10**6
        self._new.execute(
            "INSERT INTO dead (dead, app, buried_ms, reason, line, crc) VALUES (?, ?, ?, ?, ?, ?)",
            (number, app, when_ms, why, text, letter_crc(name, why, text)),
        )
        self._did.dead_letters += 1
        self._add_keys(name, [text], when_ms * 1000)

    def _lines_of(self, table: str, number: int) -> tuple[object, object]:
        """A row's lines and checksum; of lines that cannot be read to the end, the beginning, and none that fits."""
        try:
            select = f"SELECT lines, crc FROM {table} WHERE {table} = ?"  # noqa: S608 - names of ours
            lines, crc = self._old.execute(select, (number,)).fetchone()
        except (sqlite3.Error, TypeError):
            parts: list[bytes] = []
            with contextlib.suppress(sqlite3.Error), self._old.blobopen(table, "lines", number, readonly=True) as blob:
                while piece := blob.read(PIECE_BYTES):
                    parts.append(piece)
            return b"".join(parts), -1
        return lines, crc

    def _sound_lines(self, app: int, lines: object, crc: object) -> tuple[str | None, list[bytes]]:
        """Whose lines these are, and those of them that are right; the others are kept aside."""
        names = self._names_of(app)
        if not isinstance(lines, bytes):
            self._reject([repr(lines).encode()])
            return None, []
        each = lines.split(b"\n")
        for name in names:
            if crc == lines_crc(name, lines):
                self._add_app(app, name)
                return name, each
        for name in names:
            # Once each: a flipped digit may make the neighbour's line of one.
            sound = list(dict.fromkeys(line for line in each if self._is_taken_without(name, line, crc)))
            if sound:
                self._add_app(app, name)
                if len(sound) < len(each):
                    self._reject([line for line in each if line not in sound])
                return name, sound
        self._reject(each)
        return None, []

    def _is_taken_without(self, name: str, line: bytes, crc: object) -> bool:
        """Whether a line is taken whose row has no checksum, or another one."""
        return (crc is None and key_of(name, line) is not None) or is_proven(name, line, self._is_known)

    def _is_first(self, table: str, number: int) -> bool:
        """Whether this row was not read before: the pages of a broken tree may lead twice to one place."""
        select = f"SELECT 1 FROM {table} WHERE {table} = ?"  # noqa: S608 - names of ours
        return (table, number) not in self._refused and self._new.execute(select, (number,)).fetchone() is None

    def _is_known(self, key: bytes) -> bool:
        return self._new.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def _reject(self, lines: list[bytes]) -> None:
        self._did.segments_unreadable += 1
        self._did.lines_unsound += len(lines)
        self._aside.writelines(line + b"\n" for line in lines)

    def _names_of(self, app: int) -> list[str]:
        """The names that an app may have, but for those that are another's."""
        return [name for name in self._names.get(app, ()) if self._taken.get(name, app) == app]

    def _add_app(self, app: int, name: str) -> None:
        if name not in self._taken:
            self._taken[name] = app
            self._names[app] = [name]  # no app has two
            self._new.execute(
                "INSERT INTO app (app, name, next_segment) VALUES (?, ?, ?)", (app, name, (app << APP_SHIFT) + 1)
            )

    def _add_keys(self, name: str, lines: list[bytes], stamp: int) -> None:
        keys = [(key, stamp // 1_000_000) for line in lines if (key := key_of(name, line)) is not None]
        added = self._new.executemany("INSERT OR IGNORE INTO seen (key, stamp) VALUES (?, ?)", keys).rowcount
        self._did.keys_rebuilt += added


def _in_parts(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
