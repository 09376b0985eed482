"""Records from a file, checked whole: either all of them are what the contract says, or none is sent.

Every problem is found and named by its line, its field, what stands there and what is expected. An unknown field is one
too: a slip in a name must not silently drop what stands under it.
"""

import codecs
import datetime as dt
import difflib
import gzip
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, get_args

import msgspec

from collector.bodies import shown
from collector.cli.api.formats import (
    Found,
    InputFormat,
    Problems,
    csv_rows,
    json_envelope,
    json_objects,
    lines_that_are_not_utf8,
    ndjson_objects,
)
from collector.cli.options import GZIP_MAGIC
from collector.contract import models
from collector.errors import UNPARSABLE, Rejected, Unusable

BOM = b"\xef\xbb\xbf"
FORMAT_OF_SUFFIX = {
    ".csv": InputFormat.CSV,
    ".json": InputFormat.JSON,
    ".ndjson": InputFormat.NDJSON,
    ".jsonl": InputFormat.NDJSON,
}

EMAIL_EXPECTED = "an address with something on both sides of its @"
_WHOLE_NUMBER = re.compile(r"-?\d+", re.ASCII)

Record = TypeVar("Record", bound=msgspec.Struct)
AnyRecord = TypeVar("AnyRecord", bound=msgspec.Struct)
_Model = type[msgspec.Struct]


class RecordKind(NamedTuple, Generic[Record]):
    """A sort of record: its model, and where in the contract's request the list of them stands."""

    type: type[Record]
    list_name: str
    beside: Mapping[str, _Model] = MappingProxyType({})
    """What other lists that request may hold, and of what."""


EVENTS = RecordKind(models.Event, "events")
SPEND = RecordKind(models.SpendRecord, "spendData")
USERS = RecordKind(models.ProvisionedUser, "users")
USERS_TO_REMOVE = RecordKind(models.UserToRemove, "users")
ORG_CHART = RecordKind(models.OrgChartUser, "users", beside={"customFieldsConfig": models.CustomField})


class Input(NamedTuple, Generic[Record]):
    """What was read: records, and the lists that stood beside theirs; at least one in all of them."""

    records: Sequence[Record]
    beside: Mapping[str, Sequence[Any]]


_Take = Callable[[Any, msgspec.structs.FieldInfo, bool], Any]
"""Value, field, strict -> what goes into the record, or None where it is not what is expected."""


class _Field(NamedTuple):
    """One field of a record, and how a value is taken into it."""

    name: str
    required: bool
    expected: str
    take: Callable[[Any, bool], Any]


def is_email(text: str) -> bool:
    """Something stands on both sides of an @: the rule for the collector's own events."""
    return 0 < text.find("@") < len(text) - 1


def read(
    file: str, kind: RecordKind[Record], *, input_format: InputFormat | None = None, ignore_unknown: bool = False
) -> Input[Record]:
    """All records of `file`; "-" is standard input.

    It may be gzipped. The format is told by the file's name, else by its first character. Raises Rejected with all
    problems, and Unusable where the file cannot be read.
    """
    name = "standard input" if file == "-" else file
    if file == "-" and sys.stdin is None:
        raise Unusable(f"{name}: it is closed")
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Unusable(f"{name}: {error.strerror}") from error
    path = Path(file)
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise Rejected(f"{name}: it is gzip, and broken: {error}; nothing was sent") from error
        path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    content = content.removeprefix(BOM)
    if not content.strip():
        raise Rejected(f"{name}: it is empty; nothing was sent")
    input_format = input_format or FORMAT_OF_SUFFIX.get(path.suffix.lower()) or _told_by_content(content)
    reader = _Reader(kind, Problems(name), ignore_unknown)
    records = list(reader.records(content, input_format))
    if reader.problems.count:
        raise reader.problems.rejected()
    if not records and not any(reader.beside.values()):
        raise Rejected(f"{name}: there are no records in it; nothing was sent")
    return Input(records, reader.beside)


class _Reader(Generic[Record]):
    """Reads one file; `problems` and `beside` are complete once all records were taken from it."""

    def __init__(self, kind: RecordKind[Record], problems: Problems, ignore_unknown: bool) -> None:
        self._kind = kind
        self._ignore_unknown = ignore_unknown
        self._fields = _fields(kind.type)
        self.problems = problems
        self.beside: Mapping[str, Sequence[Any]] = {}

    def records(self, content: bytes, input_format: InputFormat) -> Iterator[Record]:
        """Those that are as they should be."""
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self.problems.add(1, "UTF-16; expected UTF-8")
            return
        for line in lines_that_are_not_utf8(content):
            self.problems.add(line, "not UTF-8")
        text = content.decode(errors="replace")  # the problems of the other lines shall be listed as well
        content = text.encode() if self.problems.count else content
        if input_format is InputFormat.CSV:
            found = self._from_csv(text)
        elif input_format is InputFormat.NDJSON:
            found = ndjson_objects(content, self.problems)
        else:
            found = self._from_json(content)
        yield from self._records(found, self._kind.type, strict=input_format is not InputFormat.CSV)

    def _from_csv(self, text: str) -> Iterator[Found]:
        header: Sequence[str] = ()
        for line, row in csv_rows(text, self.problems):
            if header:
                fields = {name: cell for name, cell in zip(header, row, strict=True) if cell and name in self._fields}
                if fields:  # a spreadsheet ends in rows of commas
                    yield Found(line, fields)
            else:
                header, before = row, self.problems.count
                self._check_header(line, header)
                if self.problems.count > before and not self._tells_records(header):
                    return

    def _tells_records(self, header: Sequence[str]) -> bool:
        """Whether the rows can be judged, each column that is known standing for itself."""
        required = {name for name, field in self._fields.items() if field.required}
        return required.issubset(header) and len(set(header)) == len(header)

    def _check_header(self, line: int, header: Sequence[str]) -> None:
        for sign in ";\t":
            if len(header) == 1 and sign in header[0]:
                self.problems.add(line, f"cells stand between {sign!r}; expected ','")
                return
        for name in dict.fromkeys(header):
            if header.count(name) > 1:
                self.problems.add(line, f"{name}: {header.count(name)} columns have this name; expected one")
            self._check_known(line, name, self._fields)
        for name, field in self._fields.items():
            if field.required and name not in header:
                allowed = ", ".join(self._fields)
                self.problems.add(
                    line, f"{name}: there is no such column; expected {field.expected}; allowed: {allowed}"
                )

    def _from_json(self, content: bytes) -> Iterator[Found]:
        envelope = dict(json_envelope(content, self._kind.list_name, self._kind.beside, self.problems))
        if not envelope:
            return
        array = envelope.pop(self._kind.list_name)
        for name in envelope:
            self._check_known(1, name, self._kind.beside)
        self.beside = {
            name: list(self._records(json_objects(content, envelope[name], self.problems), kind, strict=True))
            for name, kind in self._kind.beside.items()
            if bytes(envelope.get(name, b"null")) != b"null"
        }
        yield from json_objects(content, array, self.problems)

    def _check_known(self, line: int, name: str, known: Mapping[str, Any] | Sequence[str]) -> None:
        if name in known or self._ignore_unknown:
            return
        nearest = difflib.get_close_matches(name, list(known), 1, 0.4)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        name = name if name and name.isprintable() else shown(name)
        self.problems.add(line, f"{name}: unknown; {hint}allowed: {', '.join(known) or 'nothing else'}")

    def _records(self, found: Iterable[Found], kind: type[AnyRecord], *, strict: bool) -> Iterator[AnyRecord]:
        fields = _fields(kind)
        for one in found:
            before, values = self.problems.count, self._values(one, fields, strict=strict)
            if self.problems.count == before:
                yield kind(**values)

    def _values(self, found: Found, fields: Mapping[str, _Field], *, strict: bool) -> dict[str, Any]:
        for name in found.fields:
            self._check_known(found.line, name, fields)
        values = {}
        for name, field in fields.items():
            sent = found.fields.get(name)
            if sent is not None:
                values[field.name] = field.take(sent, strict)
                if values[field.name] is None:
                    self.problems.add(found.line, f"{name}: {shown(sent)}; expected {field.expected}")
            elif field.required:
                self.problems.add(found.line, f"{name}: missing; expected {field.expected}")
        return values


def _told_by_content(content: bytes) -> InputFormat:
    """An object that is complete at the end of its line, with more lines to come, is the first of many."""
    text = content.lstrip()
    if not text.startswith((b"{", b"[")):
        return InputFormat.CSV
    line, _, rest = text.partition(b"\n")
    if line.startswith(b"[") or not rest.strip():
        return InputFormat.JSON
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except UNPARSABLE:
        return InputFormat.JSON
    return InputFormat.NDJSON


def _fields(kind: type[msgspec.Struct]) -> Mapping[str, _Field]:
    return {field.encode_name: _field(field) for field in msgspec.structs.fields(kind)}


def _field(field: msgspec.structs.FieldInfo) -> _Field:
    take: _Take
    if field.name.endswith("email"):
        expected, take = EMAIL_EXPECTED, _email
    elif _mentions(field.type, int):
        expected, take = "a whole number of milliseconds since the epoch, int64", _whole_number
    elif _mentions(field.type, float):
        expected, take = "a number that is finite, with a point and no thousands' signs", _amount
    elif _mentions(field.type, dt.date):
        expected, take = "a day such as 2026-01-31", _converted
    else:
        expected, take = "text that is not empty" if field.required else "text", _text
    return _Field(field.name, field.required, expected, lambda value, strict: take(value, field, strict))


def _converted(value: Any, field: msgspec.structs.FieldInfo, strict: bool) -> Any:
    try:
        return msgspec.convert(value, field.type, strict=strict)
    except msgspec.ValidationError:
        return None


def _email(value: Any, _field: msgspec.structs.FieldInfo, _strict: bool) -> Any:
    return value if isinstance(value, str) and is_email(value) else None


def _text(value: Any, field: msgspec.structs.FieldInfo, _strict: bool) -> Any:
    return value if isinstance(value, str) and (value or not field.required) else None


def _whole_number(value: Any, field: msgspec.structs.FieldInfo, strict: bool) -> Any:
    # A spreadsheet's 1.76723E+12 has lost digits.
    return _converted(value, field, strict) if strict or _WHOLE_NUMBER.fullmatch(value) else None


def _amount(value: Any, field: msgspec.structs.FieldInfo, strict: bool) -> Any:
    number = _converted(value, field, strict)
    return number if number is not None and math.isfinite(number) else None


def _mentions(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_mentions(part, wanted) for part in get_args(annotation))
