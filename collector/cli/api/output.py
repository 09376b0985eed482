"""What commands answer on standard output: as a table for people, as JSON, NDJSON or CSV for programs.

Columns and keys are the contract's field names. Tables never hold a control character, whatever upstream has said.
"""

import csv
import errno
import io
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from collector.cli.options import plain
from collector.errors import Unusable

STDOUT = 1
PIECE_BYTES = 2**20
UNFOLDED_COLUMNS = 10_000
"""Width of a table that goes elsewhere than to a terminal: one line a row."""

format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "ndjson", "csv"]),
    help="Default: table on a terminal; else ndjson, or json for one object.",
)

_encode = msgspec.json.Encoder().encode


def write_rows(rows: Sequence[msgspec.Struct], row_type: type[msgspec.Struct], output_format: str | None) -> None:
    """All rows are written. Raises Unusable or BrokenPipeError as `write` does."""
    match output_format or default_format("ndjson"):
        case "json":
            write(msgspec.json.format(_encode(rows), indent=2) + b"\n")
        case "ndjson":
            write(to_ndjson(rows))
        case "csv":
            write(to_csv(rows, row_type, with_header=True))
        case _:
            _print([_table(_columns(row_type), [msgspec.to_builtins(row) for row in rows])])


def write_one(thing: msgspec.Struct, output_format: str | None) -> None:
    """One object is written. Raises Unusable or BrokenPipeError as `write` does."""
    match output_format or default_format("json"):
        case "json":
            write(msgspec.json.format(_encode(thing), indent=2) + b"\n")
        case "table":
            _print(_tables_of_one(msgspec.to_builtins(thing)))
        case rows_format:
            write_rows([thing], type(thing), rows_format)


def to_ndjson(rows: Iterable[msgspec.Struct]) -> bytes:
    """A line of JSON each."""
    return b"".join(_encode(row) + b"\n" for row in rows)


def to_csv(rows: Iterable[msgspec.Struct], row_type: type[msgspec.Struct], *, with_header: bool) -> bytes:
    """A record each; what is no text or number stands in its cell as JSON."""
    columns = _columns(row_type)
    records = _Records()
    writer = csv.writer(records)  # ends records in CR LF, so both are quoted in cells; before 3.13 no other CR is
    if with_header:
        writer.writerow(columns)
    for row in rows:
        fields = msgspec.to_builtins(row)
        writer.writerow([_cell(fields.get(column)) for column in columns])
    return "".join(records.lines).encode()


class _Records:
    """Takes what a csv.writer writes, a record at a time; here it ends in LF."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, record: str) -> None:
        self.lines.append(record.removesuffix("\r\n") + "\n")


def write(content: bytes) -> None:
    """All of it has left the process. Raises BrokenPipeError where nobody reads, Unusable where it cannot be written.

    Past Python's own buffer, which would try once more at the end of the process and complain by itself.
    """
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(STDOUT, rest) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unusable(f"standard output: {error.strerror}") from error


def write_to_disk(content: bytes) -> None:
    """As `write`; where standard output is a file, it survives a power cut."""
    write(content)
    try:
        os.fsync(STDOUT)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # a pipe or a terminal
            raise Unusable(f"standard output: {error.strerror}") from error


def written_bytes() -> int | None:
    """How long the file is that standard output goes into; None where it is no file."""
    try:
        about = os.fstat(STDOUT)
    except OSError:  # closed, which the first write says
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def end_torn_line(*, is_csv: bool) -> None:
    """Where standard output is a file that ends within a line, as a kill leaves it, the next line starts a new one.

    In CSV the kill may have left a cell's quotes open: the file is read whole to tell.
    """
    if not written_bytes():
        return
    end = b""
    try:
        with Path(f"/proc/self/fd/{STDOUT}").open("rb") as file:
            if is_csv and sum(piece.count(b'"') for piece in iter(partial(file.read, PIECE_BYTES), b"")) % 2:
                end = b'"\n'
            file.seek(-1, io.SEEK_END)
            if not end and file.read(1) != b"\n":
                end = b"\n"
    except OSError:  # written it may be, but not read: an empty line does no harm
        end = b"\n"
    write(end)


def default_format(for_programs: str) -> str:
    """Where none was asked for: a table for people, else this."""
    return "table" if _is_terminal() else for_programs


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # None where it was closed


def _columns(row_type: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(row_type)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _encode(value).decode()


def _tables_of_one(fields: Mapping[str, Any]) -> list[Table]:
    """Names and values, objects within it by dotted names; each list of objects as a table of its own below."""
    lists: list[Table] = []
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column()
    grid.add_column(overflow="fold")

    def add(fields: Mapping[str, Any], prefix: str) -> None:
        for name, value in fields.items():
            if isinstance(value, Mapping) and value:
                add(value, f"{prefix}{name}.")
            elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
                lists.append(_table(list(dict.fromkeys(key for item in value for key in item)), value, name))
            elif isinstance(value, list):
                grid.add_row(_plain(prefix + name), _plain(", ".join(map(_cell, value))))
            else:
                grid.add_row(_plain(prefix + name), _plain(_cell(value)))

    add(fields, "")
    return [grid, *lists]


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], title: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, title=title and _plain(title), title_justify="left")
    for column in columns:
        table.add_column(_plain(column), overflow="fold")
    for row in rows:
        table.add_row(*(_plain(_cell(row.get(column))) for column in columns))
    return table


def _plain(text: str) -> Text:
    """Text that is shown as it is: no markup, and no characters that would steer the terminal."""
    return Text(plain(text))


def _print(tables: Iterable[Table]) -> None:
    is_terminal = _is_terminal()
    console = Console(force_terminal=is_terminal, width=None if is_terminal else UNFOLDED_COLUMNS)
    with console.capture() as shown:
        for table in tables:
            console.print(table)
    write("".join(line.rstrip() + "\n" for line in shown.get().splitlines()).encode())
