"""The figures while they change: a live panel on a terminal, else a line a second."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from collector.cli.demo.books import Books

DOWN = "DOWN"
NAMES = 23
"""Columns for what stands at the left of a figure."""


class Member(NamedTuple):
    """One of the processes that are shown each with a line of its own."""

    name: str
    state: str
    figures: str


class Screen:
    """Shows the books as often as it is told to."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._console = Console()
        self._backlog: deque[int] = deque(maxlen=80)
        self._live = (
            Live(console=self._console, refresh_per_second=8, transient=True) if self._console.is_terminal else None
        )
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, elapsed: float, state: str, members: Sequence[Member] = ()) -> None:
        """The books as they are now; without a terminal once a second, and when all is done."""
        self._backlog.append(self._books.waiting)
        if self._live is not None:
            self._live.update(self._panel(elapsed, state, members))
        elif elapsed >= self._next_line or state == "done":
            self._next_line = elapsed + 1.0
            figures = [f"{name} {value:>6,}" for name, value in self._figures()]
            line = "  ".join(figures + [f"{member.name} {member.state:<7}" for member in members])
            click.echo(f"{elapsed:5.1f} s  {state:<17}  {line}".rstrip())

    def _figures(self) -> list[tuple[str, int]]:
        books = self._books
        return [
            ("sent", books.sent),
            ("accepted", books.accepted),
            ("duplicates", books.duplicates),
            ("waiting", books.waiting),
            ("delivered", books.delivered),
            ("distinct at the sandbox", books.sandbox_distinct),
        ]

    def _panel(self, elapsed: float, state: str, members: Sequence[Member]) -> Group:
        table, each = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
        table.add_column(min_width=NAMES)
        each.add_column(min_width=NAMES)
        for name, value in self._figures():
            table.add_row(name, Text(f"{value:,}", justify="right"))
        for member in members:
            colour = "red" if member.state == DOWN else "green"
            each.add_row(member.name, Text(member.state, style=colour), Text(member.figures, style="dim"))
        colour = "red" if DOWN in state else "yellow" if state == "draining" else "green"
        head = Text.assemble((f"{elapsed:5.1f} s  ", "dim"), (state, f"bold {colour}"))
        backlog = Text("backlog  ", style="dim")
        backlog.append(_sparkline(list(self._backlog)[len(backlog) - self._console.width :]), style=colour)
        return Group(head, table, *([each] if members else []), backlog)


def _sparkline(values: Sequence[int]) -> str:
    top = max(values, default=0) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, -(-8 * value // top))] for value in values)
