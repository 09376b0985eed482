"""Rows are found behind, before and between pages that cannot be read."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from collector.queue.sqlite.rescue.walk import Table, readable_rows

ROWS = 5000
TABLE = Table("SELECT n, text FROM t WHERE n BETWEEN ? AND ? ORDER BY n {order}", lambda row: int(row[0]), int)


def leaves(file: Path) -> list[int]:
    """Where the lowest pages of the only table begin, as numbers of pages."""
    content = file.read_bytes()
    return [page for page in range(1, len(content) // 4096) if content[page * 4096] == 0x0D]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "rows"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", ((n, f"row {n} " * 20) for n in range(ROWS)))
        connection.commit()
    return file


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("bad", [0, 1, 2, 10])
def test_no_row_of_a_readable_page_is_lost_and_none_is_made_up(file: Path, bad: int, seed: int) -> None:
    pages = leaves(file)
    chosen = random.Random(seed).sample(pages, bad)
    if bad == 10:
        chosen += [pages[0], pages[-1]]
    with file.open("r+b") as content:
        for page in chosen:
            content.seek(page * 4096)
            content.write(b"\xff" * 4096)
    broken: list[int] = []
    with closing(sqlite3.connect(file)) as connection:
        rows = list(readable_rows(connection, TABLE, 0, 2**63 - 1, broken))
    assert all(text == f"row {n} " * 20 for n, text in rows)
    found = {n for n, _ in rows}
    most_rows_a_page = -(-ROWS // (len(pages) - 1)) + 5
    assert ROWS - len(found) <= len(set(chosen)) * most_rows_a_page
    assert bool(broken) is bool(chosen)
