"""Every row of a table that can still be read, however many of its pages cannot.

A scan ends at the first page that SQLite cannot make sense of. Behind it, rows are found again by asking for ever
larger positions (a broken page hides a few neighbours, or some hundred pages of them, never all), and by coming back
from the other side.
"""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAX_DEPTH = 3
"""A stretch in which nothing was found by that is halved this often to look for readable rows amid it."""

Row = tuple[Any, ...]


class Table(NamedTuple):
    """How a table is read: a statement with a lower and an upper bound and {order}, and where a row stands.

    Positions are whole numbers that rise in the table's order; `bound` makes what the statement takes of one.
    """

    select: str
    position: Callable[[Row], int]
    bound: Callable[[int], int | bytes]


def readable_rows(
    connection: sqlite3.Connection, table: Table, low: int, high: int, broken: list[int]
) -> Iterator[Row]:
    """The table's rows from position `low` to `high` that can be read, in no certain order.

    Positions behind which something could not be read are added to `broken`. A row may hold anything, and come twice:
    what a page says is not known to be right.
    """
    todo = [(low, high, 0)]
    found = False
    while todo:
        low, high, depth = todo.pop()
        step = 0
        while low + step <= high:
            scan = _Scan(connection, table, low + step, high, "ASC")
            yield from scan
            found = found or scan.reached is not None
            if scan.ended_well:
                high = low + step - 1
                break
            broken.append(low)
            if scan.reached is not None:
                if step:
                    yield from _Scan(connection, table, low, low + step - 1, "DESC")
                low, step = scan.reached + 1, 0
            step = step * 2 or 1
        if low > high:
            continue
        back = _Scan(connection, table, low, high, "DESC")
        yield from back
        if back.reached is not None:
            high, found = back.reached - 1, True
        if found and not back.ended_well and depth < MAX_DEPTH and low < high:
            middle = (low + high) // 2
            todo += [(low, middle, depth + 1), (middle + 1, high, depth + 1)]


class _Scan:
    """The rows between two positions, up to one that cannot be read."""

    def __init__(self, connection: sqlite3.Connection, table: Table, low: int, high: int, order: str) -> None:
        self._connection = connection
        self._table = table
        self._low = low
        self._high = high
        self._order = order
        self.reached: int | None = None
        self.ended_well = False

    def __iter__(self) -> Iterator[Row]:
        table = self._table
        try:
            for row in self._connection.execute(
                table.select.format(order=self._order), (table.bound(self._low), table.bound(self._high))
            ):
                try:
                    position = table.position(row)
                except (TypeError, ValueError):
                    return
                if not self._low <= position <= self._high or not self._goes_on(position):
                    return  # the pages lead in circles
                self.reached = position
                yield row
        except sqlite3.Error:
            return
        self.ended_well = True

    def _goes_on(self, position: int) -> bool:
        return self.reached is None or (position > self.reached) is (self._order == "ASC")
