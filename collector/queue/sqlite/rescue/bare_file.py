"""A copy of a damaged file in which SQLite finds the queue's tables, whatever is left of the first and the inner pages.

A table's first page follows from the schema (see database.py), so the copy's first page can be one of ours. Where inner
pages of a table are broken, the pages below them are found by the file's pointer map, which an auto_vacuum file keeps
for each page: whether it is free, and whose child it is (https://sqlite.org/fileformat2.html#pointer_map_or_ptrmap_pages).
"""

import os
import shutil
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.write_ahead_log import PAGE_BYTES, read_log

TABLES = {
    "app": "CREATE TABLE app (app INTEGER PRIMARY KEY, name UNIQUE, next_segment, waiting_events, waiting_bytes)",
    "segment": "CREATE TABLE segment (segment INTEGER PRIMARY KEY, stamp, events, lines, crc)",
    "seen": "CREATE TABLE seen (key PRIMARY KEY, stamp) WITHOUT ROWID",
    "recent_keys": "CREATE TABLE recent_keys (run INTEGER PRIMARY KEY, stamp, keys)",
    "dead": "CREATE TABLE dead (dead INTEGER PRIMARY KEY, app, buried_ms, reason, line, crc)",
    "delivered": "CREATE TABLE delivered (delivered INTEGER PRIMARY KEY, app, delivered_ms, events, crc, lines)",
}
"""The tables as their rows are read: no types, no triggers, small enough for one page."""
APP_NAMES = "sqlite_autoindex_app_1"

LEAVES = {0x0D, 0x0A}
"""What the first byte of a table's or an index's lowest pages is."""
_ENTRY = struct.Struct(">BI")
_ENTRIES = PAGE_BYTES // _ENTRY.size
_INNER = 5
"""The pointer map's word for a page of a tree that is not its first."""


def copy_with_log(file: Path, copy: Path) -> None:
    """The file's pages, as its log has left them, in one file of whole pages. Raises OSError."""
    if file.exists():
        shutil.copyfile(file, copy)
    else:
        copy.touch()
    wal = file.with_name(FILE_NAME + "-wal")
    log = read_log(wal)
    with copy.open("r+b") as pages:
        size = pages.seek(0, os.SEEK_END)
        count = max(-(-size // PAGE_BYTES), log.pages, 1)
        if log.frames:
            with wal.open("rb") as frames:
                for frame in log.frames:
                    if 1 < frame.page <= count:
                        frames.seek(frame.offset)
                        pages.seek((frame.page - 1) * PAGE_BYTES)
                        pages.write(frames.read(PAGE_BYTES))
        pages.truncate(count * PAGE_BYTES)


def roots_of(connection: sqlite3.Connection) -> dict[str, int]:
    """The page in which each table and index begins: the same in every file of this schema."""
    return dict(connection.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0"))


def open_bare(copy: Path, roots: Mapping[str, int]) -> sqlite3.Connection:
    """The copy, open for reading, with a first page that says where the tables begin. Text comes as bytes."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as bare:
        bare.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        bare.execute("PRAGMA auto_vacuum = INCREMENTAL")
        bare.execute("PRAGMA writable_schema = ON")
        rows = [("table", name, name, roots[name], text) for name, text in TABLES.items()]
        rows.append(("index", APP_NAMES, "app", roots[APP_NAMES], None))  # type: ignore[arg-type]  # its text is NULL
        bare.executemany("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", rows)
        page = bytearray(bare.serialize()[:PAGE_BYTES])
    with copy.open("r+b") as pages:
        count = pages.seek(0, os.SEEK_END) // PAGE_BYTES
        page[28:32] = count.to_bytes(4)
        page[92:96] = page[24:28]  # only then the count is believed
        pages.seek(0)
        pages.write(page)
    connection = sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    connection.text_factory = bytes
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def leaves_of(copy: Path, root: int) -> Iterator[int]:
    """The lowest pages of the tree that begins in page `root`, as the pointer map has it; not the root itself."""
    parents: dict[int, int] = {}
    with copy.open("rb") as pages:
        count = pages.seek(0, os.SEEK_END) // PAGE_BYTES
        for map_page in range(2, count + 1, _ENTRIES + 1):
            pages.seek((map_page - 1) * PAGE_BYTES)
            content = pages.read(PAGE_BYTES)
            for place in range(min(_ENTRIES, count - map_page)):
                kind, parent = _ENTRY.unpack_from(content, place * _ENTRY.size)
                if kind == _INNER:
                    parents[map_page + 1 + place] = parent
        for page in parents:
            pages.seek((page - 1) * PAGE_BYTES)
            if pages.read(1)[0] in LEAVES and _first_of(page, parents) == root:
                yield page


def _first_of(page: int, parents: Mapping[int, int]) -> int:
    """Where the tree of a page begins. No sound tree is as deep as the loop goes."""
    for _ in range(20):
        if page not in parents:
            break
        page = parents[page]
    return page
