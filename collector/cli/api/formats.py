"""CSV, JSON and NDJSON taken apart: what shall be a record, with the line it starts in, and what is wrong."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from collector.bodies import shown
from collector.errors import UNPARSABLE, Rejected

PROBLEMS_SHOWN = 50
MAX_CELL_CHARS = 2**20
"""A longer one is a quote that was never closed."""


class InputFormat(Enum):
    """How records are written down."""

    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"


class Found(NamedTuple):
    """What shall be a record. A field that is empty in CSV or null in JSON is not there."""

    line: int
    fields: Mapping[str, Any]


class Problems:
    """All that is wrong with one input."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown: list[tuple[int, str]] = []
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        """One more, in the line of this number, from 1."""
        self.count += 1
        if self.count <= PROBLEMS_SHOWN:
            self._shown.append((line, f"{self._name}:{line}: {problem}"))

    def rejected(self) -> Rejected:
        """The error that lists them."""
        in_order = [problem for _, problem in sorted(self._shown, key=itemgetter(0))]
        more = [f"and {self.count - PROBLEMS_SHOWN:,} more"] if self.count > PROBLEMS_SHOWN else []
        return Rejected("\n".join(["the input has problems; nothing was sent", *in_order, *more]))


def lines_that_are_not_utf8(content: bytes) -> Iterator[int]:
    """Their numbers, from 1."""
    try:
        content.decode()
    except UnicodeDecodeError:
        for line, text in enumerate(content.split(b"\n"), 1):
            try:
                text.decode()
            except UnicodeDecodeError:
                yield line


def csv_rows(text: str, problems: Problems) -> Iterator[tuple[int, Sequence[str]]]:
    """Rows with the line that each starts in, the header first. Rows that are not as long as it are problems."""
    csv.field_size_limit(MAX_CELL_CHARS)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    cells = last_line = 0
    try:
        for row in rows:
            line, last_line = last_line + 1, rows.line_num
            cells = cells or len(row)
            if row and len(row) == cells:
                yield line, row
            elif row:
                problems.add(line, f"{len(row)} cells; expected {cells}, as the header has")
    except csv.Error as error:
        problems.add(last_line + 1, f"not CSV: {error}")


def ndjson_objects(content: bytes, problems: Problems) -> Iterator[Found]:
    """An object a line; empty lines are none."""
    for line, text in enumerate(content.split(b"\n"), 1):
        if text.strip():
            yield from _object(line, text, problems)


def json_envelope(
    content: bytes, list_name: str, beside: Collection[str], problems: Problems
) -> Mapping[str, msgspec.Raw]:
    """The list of the contract's request under `list_name`, and what stands beside it.

    An array, and an object that has neither the list nor anything `beside` it, which is a record itself, are taken as
    if they stood in a request.
    """
    try:
        whole = msgspec.json.decode(content, type=msgspec.Raw)
        if not content.lstrip().startswith(b"{"):
            return {list_name: whole}
        envelope = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        if envelope.keys().isdisjoint({list_name, *beside}):
            return {list_name: msgspec.Raw(b"[" + bytes(whole) + b"]")}
        return {list_name: msgspec.Raw(b"[]")} | envelope
    except UNPARSABLE as error:
        at = re.search(r"\(byte (\d+)\)", str(error))
        hint = "; for an object a line give --input-format ndjson" if "trailing" in str(error) else ""
        problems.add(_line_at(content, int(at[1]) if at else len(content)), f"not JSON: {error}{hint}")
        return {}


def json_objects(content: bytes, array: msgspec.Raw, problems: Problems) -> Iterator[Found]:
    """The objects of an array that stands in `content`."""
    try:
        items = msgspec.json.decode(array, type=list[msgspec.Raw])
    except UNPARSABLE:
        problems.add(_line_at(content, content.find(bytes(array))), f"{shown(array)}; expected an array of objects")
        return
    # Before the first item, and between one and the next, nothing stands that could be taken for an item's beginning.
    position = counted = max(0, content.find(bytes(array)))
    line = _line_at(content, position)
    for item in map(bytes, items):
        position = content.find(item, position)
        line, counted = line + content.count(b"\n", counted, position), position
        position += len(item)
        yield from _object(line, item, problems)


def _object(line: int, text: bytes, problems: Problems) -> Iterator[Found]:
    try:
        value = msgspec.json.decode(text)
    except UNPARSABLE as error:
        problems.add(line, f"not JSON: {error}")
        return
    if isinstance(value, dict):
        yield Found(line, {name: field for name, field in value.items() if field is not None})
    else:
        problems.add(line, f"{shown(value)}; expected an object")


def _line_at(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1
