"""Whether what a queue's file holds is what was put there.

SQLite notices broken pages, not flipped bits inside a value. So each row of events has a CRC-32, over the app's name as
well: under another name the events would go to another app. A segment that fails it can be told apart line by line by
the keys in `seen`: a line that is, byte for byte, the one way to write an event whose key is known was put.
"""

import sqlite3
import zlib
from collections.abc import Callable, Iterable

import msgspec

from collector.errors import UNPARSABLE
from collector.events import UsageEvent, event_key

MAX_PROBLEMS = 20
"""More are not said: the file is not getting any more broken."""

_DECODE = msgspec.json.Decoder(UsageEvent).decode
_ENCODE = msgspec.json.Encoder().encode


def lines_crc(app_id: str, lines: bytes | memoryview) -> int:
    """The checksum of a row of lines that wait for an app, or were delivered to it."""
    return zlib.crc32(lines, zlib.crc32(app_id.encode()))


def letter_crc(app_id: str, reason: str, line: bytes) -> int:
    """The checksum of a dead letter."""
    return lines_crc(app_id, reason.encode() + b"\0" + line)


def key_of(app_id: str, line: bytes) -> bytes | None:
    """The key of the event that a line holds; None where it holds none."""
    try:
        event = _DECODE(line)
    except UNPARSABLE:
        return None
    return event_key(app_id, event.timestamp, event.email, event.event_name)


def is_proven(app_id: str, line: bytes, is_known: Callable[[bytes], bool]) -> bool:
    """Whether an event's line is known to be intact without a checksum: it holds nothing that its key does not."""
    key = key_of(app_id, line)
    return key is not None and _ENCODE(_DECODE(line)) == line and is_known(key)


def problems(connection: sqlite3.Connection, schema: Iterable[tuple[str, str]], *, whole: bool = True) -> list[str]:
    """What is wrong with a queue's file, for people; nothing where it is sound. `schema` is what it should be.

    Read whole, it takes two to four seconds a gigabyte that the kernel has in memory, else as long as the disk needs.
    """
    found: list[str] = []
    try:
        if list(schema) != list(stored_schema(connection)):
            found.append("its schema is not that of its version")
        if not whole:
            return found
        for (text,) in connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})"):
            found += [line for line in text.splitlines() if line != "ok"]
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not found:
            found += _miscounts(connection)
            found += _unsound_rows(connection) if version > 1 else []
    except (sqlite3.Error, UnicodeError) as error:  # also text that is no text
        found.append(str(error))
    return found[:MAX_PROBLEMS]


def stored_schema(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Name and text of everything that a file's schema has."""
    return connection.execute(
        "SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name"
    ).fetchall()


def _miscounts(connection: sqlite3.Connection) -> Iterable[str]:
    for name, events, size, dead, there, there_bytes, there_dead in connection.execute(
        "SELECT name, waiting_events, waiting_bytes, dead_events,"
        " (SELECT coalesce(sum(events), 0) FROM segment WHERE segment BETWEEN app << 40 AND ((app + 1) << 40) - 1),"
        " (SELECT coalesce(sum(length(lines) + 1), 0) FROM segment"
        "  WHERE segment BETWEEN app << 40 AND ((app + 1) << 40) - 1),"
        " (SELECT count(*) FROM dead WHERE dead.app = app.app) FROM app"
    ):
        if (events, size, dead) != (there, there_bytes, there_dead):
            yield (
                f"app {name!r} should have {events} events in {size} bytes waiting and {dead} dead letters, "
                f"but has {there} in {there_bytes} and {there_dead}"
            )
    for name, following, last in connection.execute(
        "SELECT name, next_segment, max(segment) FROM app JOIN segment ON segment >> 40 = app GROUP BY app"
    ):
        if following <= last:
            yield f"app {name!r} should have its next segment at {following}, but has segments up to {last}"


def _unsound_rows(connection: sqlite3.Connection) -> Iterable[str]:
    for segment, name, events, crc, lines in connection.execute(
        "SELECT segment, name, events, segment.crc, lines FROM segment LEFT JOIN app ON app = segment >> 40"
    ):
        if name is None or lines.count(b"\n") + 1 != events or crc not in {None, lines_crc(name, lines)}:
            yield f"segment {segment} does not match its checksum"
    for number, name, reason, crc, line in connection.execute(
        "SELECT dead, name, reason, dead.crc, line FROM dead LEFT JOIN app USING (app)"
    ):
        if name is None or crc not in {None, letter_crc(name, reason, line)}:
            yield f"dead letter {number} does not match its checksum"
    for number, name, crc, lines in connection.execute(
        "SELECT delivered, name, delivered.crc, lines FROM delivered LEFT JOIN app USING (app)"
    ):
        if name is None or crc != lines_crc(name, lines):
            yield f"delivered events {number} do not match their checksum"
