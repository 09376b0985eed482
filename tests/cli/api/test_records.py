"""What is read from CSV, JSON and NDJSON, and every problem that is found in it."""

import datetime as dt
import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.cli.api.formats import PROBLEMS_SHOWN, InputFormat
from collector.cli.api.records import EVENTS, ORG_CHART, SPEND, USERS, Input, RecordKind, read
from collector.contract.models import CustomField, Event, OrgChartUser, ProvisionedUser, SpendRecord
from collector.errors import Rejected, Unusable

TWO = [Event(1, "a@example.com", "x"), Event(2, "b@example.com", "y")]
OBJECTS = (
    '{"timestamp": 1, "email": "a@example.com", "eventName": "x"}',
    '{"timestamp": 2, "email": "b@example.com", "eventName": "y"}',
)
EVENT_FIELDS = "allowed: timestamp, email, eventName"
WHOLE_NUMBER = "expected a whole number of milliseconds since the epoch, int64"
ADDRESS = "expected an address with something on both sides of its @"
AMOUNT = "expected a number that is finite, with a point and no thousands' signs"


def read_text(
    folder: Path, text: str | bytes, kind: RecordKind[Any], name: str = "input", **options: Any
) -> Input[Any]:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(str(file), kind, **options)


def problems(folder: Path, text: str | bytes, kind: RecordKind[Any], name: str = "input", **options: Any) -> list[str]:
    with pytest.raises(Rejected) as caught:
        read_text(folder, text, kind, name, **options)
    assert "nothing was sent" in str(caught.value)
    return [line.removeprefix(f"{folder / name}:") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("before", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize(
    "text",
    [
        "timestamp,email,eventName\n1,a@example.com,x\n2,b@example.com,y\n",
        'eventName,"email",timestamp\r\nx,a@example.com,1\r\n\r\n"y","b@example.com",2\r\n,,\r\n',
        "\n".join(OBJECTS),
        f"\n{OBJECTS[0]}\n\n{OBJECTS[1]}\n\n",
        f"[{OBJECTS[0]},\n{OBJECTS[1]}]",
        f' {{"events": [{OBJECTS[0]}, {OBJECTS[1]}]}}\n',
        f'{{\n"events":\n[{OBJECTS[0]}, {OBJECTS[1]}]\n}}',
    ],
    ids=["csv", "csv of a spreadsheet", "ndjson", "ndjson with empty lines", "array", "envelope", "pretty envelope"],
)
def test_the_format_is_told_by_the_content(tmp_path: Path, text: str, before: str) -> None:
    assert read_text(tmp_path, before + text, EVENTS).records == TWO


def test_an_object_alone_is_one_record(tmp_path: Path) -> None:
    for text in (OBJECTS[0], OBJECTS[0].replace(",", ",\n")):
        assert read_text(tmp_path, text, EVENTS).records == TWO[:1]


def test_the_name_and_the_option_tell_the_format_before_the_content_does(tmp_path: Path) -> None:
    lines = "\n".join(OBJECTS)
    assert problems(tmp_path, lines, EVENTS, "events.json") == [
        "2: not JSON: JSON is malformed: trailing characters (byte 62); for an object a line give --input-format ndjson"
    ]
    for name in ("events.NDJSON", "events.jsonl"):
        assert read_text(tmp_path, lines, EVENTS, name).records == TWO
    assert read_text(tmp_path, lines, EVENTS, "events.json", input_format=InputFormat.NDJSON).records == TWO
    assert problems(tmp_path, OBJECTS[0], EVENTS, "events.csv")[0].startswith("1: ")


def test_cells_become_what_the_contract_says_and_empty_ones_are_absent(tmp_path: Path) -> None:
    text = 'amount,date,description\n-1.5e2,2026-01-31,"two\nlines, ""quoted"""\n,,null\n7,,\n'
    assert read_text(tmp_path, text, SPEND).records == [
        SpendRecord(-150.0, None, dt.date(2026, 1, 31), 'two\nlines, "quoted"'),
        SpendRecord(description="null"),
        SpendRecord(7.0),
    ]
    assert read_text(tmp_path, '[{"email": "a@b", "role": null}]', USERS).records == [ProvisionedUser("a@b")]


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        (
            'amount,description,date\nx,"a\nb\nc",\n\nnan,,31.1.2026\n1,2\n"1,000",,\ninf,,2026-02-30\nnull,,\n',
            SPEND,
            [
                f'2: amount: "x"; {AMOUNT}',
                f'6: amount: "nan"; {AMOUNT}',
                '6: date: "31.1.2026"; expected a day such as 2026-01-31',
                "7: 2 cells; expected 3, as the header has",
                f'8: amount: "1,000"; {AMOUNT}',
                f'9: amount: "inf"; {AMOUNT}',
                '9: date: "2026-02-30"; expected a day such as 2026-01-31',
                f'10: amount: "null"; {AMOUNT}',
            ],
        ),
        (
            "timestamp,email,eventName\n1.7E12,nobody,x\n9223372036854775808,@b,\n,a@,x\n",
            EVENTS,
            [
                f'2: timestamp: "1.7E12"; {WHOLE_NUMBER}',
                f'2: email: "nobody"; {ADDRESS}',
                f'3: timestamp: "9223372036854775808"; {WHOLE_NUMBER}',
                f'3: email: "@b"; {ADDRESS}',
                "3: eventName: missing; expected text that is not empty",
                f"4: timestamp: missing; {WHOLE_NUMBER}",
                f'4: email: "a@"; {ADDRESS}',
            ],
        ),
        (
            "timestamp,emial,email,email\n1,2,3,4\n",
            EVENTS,
            [
                "1: emial: unknown; did you mean email? allowed: timestamp, email, eventName",
                "1: email: 2 columns have this name; expected one",
                f"1: eventName: there is no such column; expected text that is not empty; {EVENT_FIELDS}",
            ],
        ),
        (
            "email,rol\na@b,x\nnobody,\n",
            USERS,
            [
                "1: rol: unknown; did you mean role? allowed: email, firstName, lastName, role",
                f'3: email: "nobody"; {ADDRESS}',
            ],
        ),
        (
            """[{"timestamp": 1, "email": "a@b", "eventName": "x"},

 {"timestamp": true, "email": null,
 "eventName": "", "user": 1},
 {"timestamp": "1", "email": 5, "eventName": "x"}, [1]]""",
            EVENTS,
            [
                f"3: user: unknown; {EVENT_FIELDS}",
                f"3: timestamp: true; {WHOLE_NUMBER}",
                f"3: email: missing; {ADDRESS}",
                '3: eventName: ""; expected text that is not empty',
                f'5: timestamp: "1"; {WHOLE_NUMBER}',
                f"5: email: 5; {ADDRESS}",
                "5: [1]; expected an object",
            ],
        ),
        (
            '{"email": "a@b"}\nrubbish\n{"email": "a@b", "firstname": "A"}\n[]\n',
            USERS,
            [
                "2: not JSON: JSON is malformed: invalid character (byte 0)",
                "3: firstname: unknown; did you mean firstName? allowed: email, firstName, lastName, role",
                "4: []; expected an object",
            ],
        ),
        ('{"users": [{"email": "a@b"}],\n"usres": []}', USERS, ["1: usres: unknown; allowed: nothing else"]),
        ('[{"email": "x"},\n{"email": "x"}]', USERS, [f'{line}: email: "x"; {ADDRESS}' for line in (1, 2)]),
        ('{"users": 3}', USERS, ["1: 3; expected an array of objects"]),
        ('[{"email": "a@b"},\n{"email": }]', USERS, ["2: not JSON: JSON is malformed: invalid character (byte 29)"]),
        ('[{"amount": 1e999}]', SPEND, ["1: not JSON: Number out of range - at `$[...]`"]),
        ("[" * 100_000, USERS, ["1: not JSON: maximum recursion depth exceeded while deserializing an object"]),
        ('email,role\na@b,x\n"a@b,x\n', USERS, ["3: not CSV: unexpected end of data"]),
        (b"email\na@b\n\xff\xfe@b\n", USERS, ["3: not UTF-8"]),
        ("\x1b[31m,email\n,a@b\n", USERS, [r'1: "\u001b[31m": unknown; allowed: email, firstName, lastName, role']),
    ],
    ids=[
        *(
            "csv cells",
            "csv events",
            "csv header",
            "csv column",
            "json",
            "ndjson",
            "beside",
            "twice the same",
            "no list",
            "broken json",
            "huge number",
        ),
        *("deep", "open quote", "not UTF-8", "escape"),
    ],
)
def test_every_problem_is_named_by_line_field_value_and_what_is_expected(
    tmp_path: Path, text: str | bytes, kind: RecordKind[Any], found: list[str]
) -> None:
    assert problems(tmp_path, text, kind) == found


@pytest.mark.parametrize("text", ["email,phone\na@b,1\n", '{"users": [{"email": "a@b", "phone": 1}], "total": 1}'])
def test_unknown_fields_are_left_out_where_that_is_asked_for(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text, USERS)
    assert read_text(tmp_path, text, USERS, ignore_unknown=True).records == [ProvisionedUser("a@b")]


@pytest.mark.parametrize("name", ["users.csv.gz", "users.CSV.GZ", "users.csv", "users"])
def test_a_file_may_be_gzipped(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    packed = gzip.compress(b"email\na@b\n")
    file.write_bytes(packed)
    assert read(str(file), USERS).records == [ProvisionedUser("a@b")]
    file.write_bytes(packed[:-9])
    with pytest.raises(Rejected, match="it is gzip, and broken"):
        read(str(file), USERS)


def test_what_may_stand_beside_the_list_is_handed_on(tmp_path: Path) -> None:
    text = '{"customFieldsConfig": [{"name": "Team"}], "users": [{"email": "a@b", "managerEmail": "c@d"}]}'
    records, beside = read_text(tmp_path, text, ORG_CHART)
    assert records == [OrgChartUser("a@b", manager_email="c@d")]
    assert beside == {"customFieldsConfig": [CustomField("Team")]}


def test_what_stands_beside_the_list_is_checked_like_the_records(tmp_path: Path) -> None:
    text = """{"customFieldsConfig": [{"name": "Team", "type": null},
{"name": 5},
{"name": "VP", "kind": "text"}, 7],
"users": [{"email": "nobody"}]}"""
    assert problems(tmp_path, text, ORG_CHART) == [
        "2: name: 5; expected text",
        "3: kind: unknown; allowed: name, type",
        "3: 7; expected an object",
        f'4: email: "nobody"; {ADDRESS}',
    ]
    assert problems(tmp_path, '{"users": [{"email": "a@b"}],\n"customFieldsConfig": {}}', ORG_CHART) == [
        "2: {}; expected an array of objects"
    ]


def test_unknown_fields_beside_the_list_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    text = '{"customFieldsConfig": [{"name": "VP", "kind": "text"}]}'
    assert read_text(tmp_path, text, ORG_CHART, ignore_unknown=True).beside["customFieldsConfig"] == [CustomField("VP")]


@pytest.mark.parametrize("text", ['{"customFieldsConfig": []}', '{"customFieldsConfig": null, "users": []}'])
def test_what_stands_beside_no_list_and_is_empty_is_no_input(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text, ORG_CHART) == []


def test_many_problems_are_counted_and_not_all_shown(tmp_path: Path) -> None:
    found = problems(tmp_path, "email\n" + "nobody\n" * 1234, USERS)
    assert len(found) == PROBLEMS_SHOWN + 1
    assert found[-1] == "and 1,184 more"


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff", "[]", '{"users": []}', "email\n", "email,role\n,\n"])
def test_an_input_without_records_is_refused_for_it_may_be_the_output_of_a_command_that_failed(
    tmp_path: Path, text: str
) -> None:
    assert problems(tmp_path, text, USERS) == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"nothing: No such file"):
        read(str(tmp_path / "nothing"), USERS)


def test_every_field_of_every_record_is_taken_from_both_csv_and_json(tmp_path: Path) -> None:
    for kind, record in (
        (EVENTS, TWO[0]),
        (SPEND, SpendRecord(1.5, "USD", dt.date(2026, 1, 31), "text")),
        (USERS, ProvisionedUser("a@b", "A", "B", "admin")),
        (ORG_CHART, OrgChartUser("a@b", "A", "B", "c@d", "IT", "Head")),
    ):
        fields = msgspec.to_builtins(record)
        assert len(fields) == len(record.__struct_fields__)
        csv_text = ",".join(fields) + "\n" + ",".join(map(str, fields.values())) + "\n"
        for text in (csv_text, msgspec.json.encode({kind.list_name: [record]})):
            assert read_text(tmp_path, text, kind).records == [record]


def test_every_line_that_is_not_utf8_is_listed_beside_the_other_problems(tmp_path: Path) -> None:
    file = tmp_path / "latin.csv"
    file.write_bytes("email\nj\xf6rg@example.com\nnobody\n\xfc@example.com\n".encode("latin-1"))
    with pytest.raises(Rejected) as raised:
        read(str(file), USERS)
    _, *found = str(raised.value).splitlines()
    assert [line.removeprefix(f"{file}:").split(";")[0] for line in found] == [
        "2: not UTF-8",
        '3: email: "nobody"',
        "4: not UTF-8",
    ]


def test_utf16_is_called_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "unicode.csv"
    file.write_bytes("email\na@example.com\n".encode("utf-16"))
    with pytest.raises(Rejected, match=r"unicode.csv:1: UTF-16; expected UTF-8"):
        read(str(file), USERS)


@pytest.mark.parametrize("sign", [";", "\t"])
def test_another_sign_between_cells_is_the_one_problem(tmp_path: Path, sign: str) -> None:
    [problem] = problems(tmp_path, f"timestamp{sign}email{sign}eventName\n1{sign}a@b{sign}c\n", EVENTS)
    assert problem.endswith(f"cells stand between {sign!r}; expected ','")
