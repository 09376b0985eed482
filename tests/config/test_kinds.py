"""What each kind of setting takes and refuses."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config import kinds
from collector.config.kinds import Address, Kind, Secret
from collector.config.load import Key, keys

DURATION = kinds.duration("", "10ms", "1d")
SIZE = kinds.size("", "1KiB", "1GiB")
INTEGER = kinds.integer("", 1, 1000)
TEXT = kinds.text("")
CHOICE = kinds.choice("", "auto", "json")
FLAG = kinds.flag("")
FILE_MODE = kinds.file_mode("")
OWNER = kinds.owner("")
APP_ID = kinds.app_id("")
NAMES = kinds.names("")
PATH = kinds.path("")
SECRET = kinds.secret("")
ADDRESS = kinds.address("")
URL = kinds.url("")
URL_PATH = kinds.url_path("", "{appId}")


@pytest.mark.parametrize(
    ("kind", "value", "meant"),
    [
        (DURATION, "10ms", 0.01),
        (DURATION, "1.5s", 1.5),
        (DURATION, "90m", 5400.0),
        (DURATION, "1h", 3600.0),
        (DURATION, "1d", 86_400.0),
        (DURATION, " 2 s ", 2.0),
        (SIZE, "1024B", 1024),
        (SIZE, "1KiB", 1024),
        (SIZE, "2kB", 2000),
        (SIZE, "1.5MiB", 1_572_864),
        (SIZE, "1MB", 1_000_000),
        (SIZE, "1GiB", 2**30),
        (SIZE, "1GB", 10**9),
        (INTEGER, 1, 1),
        (INTEGER, 1000, 1000),
        (INTEGER, "17", 17),
        (TEXT, " as it is ", " as it is "),
        (CHOICE, "json", "json"),
        (FLAG, True, True),
        (FLAG, False, False),
        (FLAG, "true", True),
        (FLAG, "false", False),
        (FILE_MODE, "660", 0o660),
        (FILE_MODE, "0777", 0o777),
        (FILE_MODE, "000", 0),
        (OWNER, "user", "user"),
        (OWNER, "user:", "user:"),
        (OWNER, ":group", ":group"),
        (OWNER, f"4711:{2**32 - 2}", f"4711:{2**32 - 2}"),
        (APP_ID, "...", "..."),
        (APP_ID, "a" * 256, "a" * 256),
        (NAMES, [], ()),
        (NAMES, ["team", "cost centre", "team"], ("team", "cost centre")),
        (NAMES, "", ()),
        (NAMES, " team , cost centre,,team", ("team", "cost centre")),
        (PATH, "queue", Path("queue")),
        (PATH, "/var/lib/collector", Path("/var/lib/collector")),
        (SECRET, " hunter2\n", Secret(" hunter2\n")),
        (ADDRESS, "127.0.0.1:8787", Address("127.0.0.1", 8787)),
        (ADDRESS, "collector.example.com:0", Address("collector.example.com", 0)),
        (ADDRESS, "[::1]:65535", Address("::1", 65_535)),
        (URL, "https://api.example.com", "https://api.example.com"),
        (URL, "http://127.0.0.1:8788/v1/", "http://127.0.0.1:8788/v1"),
        (URL, "http://[::1]:8788", "http://[::1]:8788"),
        (URL_PATH, "/apps/{appId}/events", "/apps/{appId}/events"),
    ],
)
def test_a_value_is_read_as_it_was_meant(kind: Kind, value: object, meant: object) -> None:
    assert kind.parse(value) == meant


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DURATION, ["9ms", "25h", "1", "s", "", "-1s", "1 second", "1S", "1e3s", "1_000ms", "1.s", ".5s", "1s1s"]),
        (DURATION, [1, 1.5, True, None, ["1s"], {"s": 1}, "\u0661s", "1s\x00", "1,5s", "infs", "nans"]),
        (
            SIZE,
            ["1023B", "1kB", "2GiB", "1024", "1kib", "1KIB", "1Kb", "-1MiB", "", "MiB", "\u0661MiB", 1024, 2.0, None],
        ),
        (INTEGER, [0, 1001, -1, True, False, 1.0, 2.5, "", "x", "1.0", "1e2", None, [1], "9" * 5000]),
        (TEXT, ["", "\udcff", None, 1, True, ["text"]]),
        (CHOICE, ["", "JSON", "jso", "auto,json", None, 1, ["auto"], {}]),
        (FLAG, [1, 0, 1.0, "", "1", "yes", "on", "True", "FALSE", " true", None, [], ["true"], [True], {}]),
        (FILE_MODE, ["", "66", "1777", "668", "0o660", "+660", "-660", " 660", "660\n", "\u0666\u0666\u0660"]),
        (FILE_MODE, [660, 0o660, True, None, ["660"], "u=rw"]),
        (OWNER, ["", ":", "user:group:", "user\0", ":group\0", "\udcff", None, 1]),
        (OWNER, [f"{2**32 - 1}", f":{2**32 - 1}", "9" * 5000]),
        (APP_ID, ["", ".", "..", "a" * 257, "\udcff", None, 1]),
        (NAMES, [None, 1, True, [1], [""], [["a"]], {"a": 1}, ("a",)]),
        (PATH, ["", "/queue-\udcff", "/queue\0", None, 1, ["a"]]),
        (SECRET, ["", "\udcff", None, 1, ["hunter2"]]),
        (ADDRESS, ["a..b:1", "\udcff:1"]),
        (ADDRESS, ["", "8787", ":8787", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "[]:1"]),
        (ADDRESS, ["a:+1", "a: 1", "a:\u0661", "a:b", "a:1.0", 8787, None, ["a:1"], "a:" + "1" * 5000]),
        (
            URL,
            ["", "api.example.com", "ftp://example.com", "//example.com", "https://", "https:///path", "http://[::1"],
        ),
        (URL, ["https://user:pass@example.com", "https://user@example.com", "https://example.com?a=b", 1, None]),
        (URL, ["https://a..example.com", f"https://{'a' * 64}.example.com", "https://example.com/\udcff"]),
        (URL, ["https://example.com#part", "https://example.com:port", "https://example.com:65536"]),
        (URL_PATH, ["", "apps/{appId}", "/apps", "/apps/{appid}", "/{appId}/{appId}", "/{appId}?a", "/{appId}#a", 1]),
    ],
)
def test_a_value_out_of_bounds_or_of_another_kind_is_refused(kind: Kind, values: list[object]) -> None:
    taken = []
    for value in values:
        try:
            taken.append((value, kind.parse(value)))
        except (ValueError, TypeError):
            continue
    assert taken == []


def test_a_path_may_start_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/collector")
    assert PATH.parse("~/queue") == Path("/home/collector/queue")


@given(st.integers(1, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: tuple[str, float]) -> None:
    assert kinds.seconds(f"{number}{unit[0]}") == pytest.approx(number * unit[1])


@pytest.mark.parametrize("key", [key for key in keys() if key.default is not None], ids=lambda key: key.dotted)
def test_every_default_survives_being_written_and_read(key: Key) -> None:
    document = tomllib.loads(f"value = {key.kind.write(key.default)}")
    assert key.kind.parse(document["value"]) == key.default


@pytest.mark.parametrize(
    ("kind", "value"), [(FLAG, True), (FLAG, False), (FILE_MODE, 0), (FILE_MODE, 0o7), (FILE_MODE, 0o777)]
)
def test_a_flag_and_a_mode_survive_being_written_and_read(kind: Kind, value: object) -> None:
    assert kind.parse(tomllib.loads(f"value = {kind.write(value)}")["value"]) == value


@given(st.integers(2**10, 2**30))
def test_every_size_survives_being_written_and_read(size: int) -> None:
    assert SIZE.parse(tomllib.loads(f"value = {SIZE.write(size)}")["value"]) == size


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "a\\b", "{}", "#", "'", "caf\u00e9", "\U0001f600"])
def test_text_survives_being_written_and_read(text: str) -> None:
    assert TEXT.parse(tomllib.loads(f"value = {TEXT.write(text)}")["value"]) == text


@pytest.mark.parametrize("text", ["a b", "{}", "#", "'", "caf\u00e9", "\U0001f600"])
def test_names_survive_being_written_and_read(text: str) -> None:
    assert NAMES.parse(tomllib.loads(f"value = {NAMES.write((text, 'b'))}")["value"]) == (text, "b")


@pytest.mark.parametrize("name", ['"', "\\", "a\nb", "\x00", ""])
def test_a_name_that_json_would_write_differently_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^\["):
        NAMES.parse([name])


@pytest.mark.parametrize(
    ("address", "written"),
    [
        (Address("127.0.0.1", 80), "127.0.0.1:80"),
        (Address("::1", 80), "[::1]:80"),
        (Address("fe80::1%eth0", 80), "[fe80::1%eth0]:80"),
        (Address("büro.example.com", 80), "büro.example.com:80"),
    ],
)
def test_an_address_is_written_as_it_is_read(address: Address, written: str) -> None:
    assert str(address) == written
    assert kinds.parse_address(written) == address


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - nobody listens there
        ("::", False),
        ("128.0.0.1", False),
        ("fe80::1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_an_address_says_whether_no_other_machine_can_reach_it(host: str, is_loopback: bool) -> None:
    assert Address(host, 80).is_loopback is is_loopback


@pytest.mark.parametrize("value", ["::1:80", "::1", "fe80::1:8787", ":::80", "a:b:80", "1:2:3:4:5:6:7:8:80", "::"])
def test_an_ipv6_address_without_brackets_is_refused_with_a_word_about_brackets(value: str) -> None:
    with pytest.raises(kinds.Refused) as caught:
        ADDRESS.parse(value)
    assert str(caught.value) == f'{value!r}: an IPv6 host stands in brackets, such as "[::1]:8787"'


@pytest.mark.parametrize(
    "value",
    [
        "https://user:hunter2@example.com",
        "https://user:hunter2@example.com:8788/path",
        "https://hunter2@example.com",
        "https://user:hunter2@",
        "https://user:hunter2@[::1",
        "https://user:hunter2@example.com:port",
        "https://example.com/@hunter2",
        "ftp://user:hunter2@example.com",
        "user:hunter2@example.com",
        "https://user:hunter2@example.com\n?#",
        ["https://user:hunter2@example.com"],
        {"user:hunter2@example.com": 1},
    ],
)
def test_a_url_with_a_password_is_refused_without_a_word_of_it(value: object) -> None:
    with pytest.raises(kinds.Refused, match="a URL with an @ in it") as caught:
        URL.parse(value)
    error = caught.value
    assert "hunter2" not in f"{error!r} {error.__cause__!r} {error.__context__!r}"


@pytest.mark.parametrize("value", ["", "hunter2\ud800", ["hunter2"], 7])
def test_a_secret_that_cannot_be_one_is_refused_without_a_word_of_it(value: object) -> None:
    with pytest.raises(kinds.Refused, match=r"^\(not shown\)$") as caught:
        kinds.secret("").parse(value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "{!r}".format, lambda secret: f"{secret:}", lambda secret: "%s" % [secret]]
)
def test_a_secret_shows_itself_nowhere(show: Any) -> None:
    assert "hunter2" not in show(Secret("hunter2"))
    assert "***" in show(Secret("hunter2"))


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_a_secret_is_not_written_out_by_accident(encode: Any) -> None:
    with pytest.raises(TypeError, match="Secret"):
        encode({"secret": Secret("hunter2")})


def test_a_secret_is_known_by_its_text_and_reveals_it_on_request() -> None:
    assert Secret("hunter2").reveal() == "hunter2"
    assert Secret("hunter2") == Secret("hunter2")
    assert Secret("hunter2") != Secret("hunter3")
    assert Secret("hunter2") != "hunter2"
    assert len({Secret("hunter2"), Secret("hunter2"), Secret("hunter3")}) == 2
