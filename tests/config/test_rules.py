"""Which settings do not go together, each told as a problem of one of them."""

from pathlib import Path

import pytest

from collector.config import load
from collector.errors import ConfigInvalid
from tests.config.test_load import CREDENTIALS

TOKEN, SECRET = "AbC-._~+/0123456789==", "hunter2"
OPEN = {"ACCESS__ALLOW_UNAUTHENTICATED": "true"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def refused(environment: dict[str, str]) -> list[str]:
    """The problems of a configuration."""
    try:
        load(None, CREDENTIALS | {f"COLLECTOR_{name}": value for name, value in environment.items()})
    except ConfigInvalid as error:
        return str(error).splitlines()
    return []


# -- the queue ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"QUEUE__KEEP_DELIVERED": "1h"}, None),
        (
            {"QUEUE__KEEP_DELIVERED": "1h", "QUEUE__BACKEND": "jetstream"},
            'queue.keep_delivered: not with queue.backend = "jetstream"; allowed there: "0s"',
        ),
        ({"EVENTS__MAX_KEPT_BYTES": "1MiB"}, None),
        ({"EVENTS__MAX_KEPT_BYTES": "1000KiB", "QUEUE__BACKEND": "jetstream"}, None),
        (
            {"EVENTS__MAX_KEPT_BYTES": "1MiB", "QUEUE__BACKEND": "jetstream"},
            (
                "events.max_kept_bytes: with max_email_chars, max_event_name_chars and keep_fields an event may take "
                '1056740 bytes; allowed with queue.backend = "jetstream": 1032192'
            ),
        ),
        ({"JETSTREAM__USER": "collector", "JETSTREAM__PASSWORD": SECRET}, None),
        ({"JETSTREAM__PASSWORD": SECRET}, "jetstream.user: missing; jetstream.password needs it"),
        (
            {"JETSTREAM__CREDENTIALS_FILE": "/creds", "JETSTREAM__NKEY_FILE": "/seed"},
            (
                "jetstream.credentials_file: jetstream.credentials_file and jetstream.nkey_file are given; "
                "allowed: one of them"
            ),
        ),
        ({"JETSTREAM__CERTIFICATE_FILE": "/cert.pem"}, None),
        (
            {"JETSTREAM__KEY_FILE": "/key.pem"},
            "jetstream.certificate_file: missing; jetstream.key_file needs it",
        ),
    ],
)
def test_what_a_queue_cannot_do_and_who_signs_in_by_half_or_twice_is_refused(
    settings: dict[str, str], problem: str | None
) -> None:
    assert refused(settings) == ([] if problem is None else [problem])


# -- the way to a central collector ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "listen", "leads_back"),
    [
        ("http://127.0.0.1:8787", "127.0.0.1:8787", True),
        ("http://localhost:8787/", "127.0.0.1:8787", True),
        ("http://[::1]:8787", "0.0.0.0:8787", True),
        ("http://10.0.0.1:8787", "10.0.0.1:8787", True),
        ("http://localhost", "127.0.0.1:80", True),
        ("https://localhost", "127.0.0.1:443", True),
        ("unix:/run/http.sock", "127.0.0.1:8787", True),
        ("unix:/run/other.sock", "127.0.0.1:8787", False),
        ("http://127.0.0.1:8788", "127.0.0.1:8787", False),
        ("http://10.0.0.2:8787", "127.0.0.1:8787", False),
        ("http://central.example.com:8787", "0.0.0.0:8787", False),
    ],
)
def test_a_collector_that_would_forward_to_itself_is_refused(url: str, listen: str, leads_back: bool) -> None:
    said = f"{url.rstrip('/')!r} is where this collector itself listens: all its events would come back as duplicates"
    problem = f"forward.url: {said}; allowed: another collector"
    settings = {"FORWARD__URL": url, "HTTP__LISTEN": listen, "UNIX__STREAM": "/run/http.sock"}
    assert refused(settings | OPEN) == ([problem] if leads_back else [])


def test_an_edge_passes_no_operations_on() -> None:
    [said] = refused({"FORWARD__URL": "https://central.example.com", "GATEWAY__OPERATIONS": "getAppSummaries"})
    assert said.startswith("gateway.operations: getAppSummaries; allowed: none beside forward.url")


# -- the ways in -------------------------------------------------------------------------------------------------------

NEAR = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"]
FAR = [
    "0.0.0.0:1",
    "[::]:1",
    "192.0.2.1:1",
    "collector.example.com:1",
    "localhost.example.com:1",
    "[::ffff:c000:201]:1",
]


@pytest.mark.parametrize("key", ["http.listen", "udp.listen"])
@pytest.mark.parametrize("listen", NEAR)
def test_this_machine_may_always_be_listened_to(key: str, listen: str) -> None:
    assert refused({key.replace(".", "__").upper(): listen}) == []


@pytest.mark.parametrize("listen", FAR)
def test_who_listens_to_other_machines_asks_for_tokens_or_says_that_he_does_not(file: Path, listen: str) -> None:
    file.write_text(TOKEN, encoding="ascii")
    tokens = {"ACCESS__TOKENS_FILE": str(file)}
    http, udp = {"HTTP__LISTEN": listen}, {"UDP__LISTEN": listen}
    reach = f"{listen!r} can be reached from other machines; "
    of_http = f"http.listen: {reach}give access.tokens_file, or set access.allow_unauthenticated = true"
    of_udp = f"udp.listen: {reach}datagrams carry no token; set access.allow_unauthenticated = true"
    assert refused(http) == [of_http]
    assert refused(udp) == [of_udp]
    assert refused(http | udp) == [of_http, of_udp]
    assert refused(http | udp | tokens) == [of_udp]
    assert refused(http | tokens) == refused(http | udp | OPEN) == refused(http | udp | tokens | OPEN) == []


def test_a_broken_file_of_tokens_is_told_along_with_other_problems(file: Path) -> None:
    file.write_text(f"{TOKEN}\n{SECRET}\n", encoding="ascii")
    first, second = refused({"ACCESS__TOKENS_FILE": str(file), "HTTP__LISTEN": "0.0.0.0:1", "LOG__LEVEL": "loud"})
    assert first.startswith("log.level: 'loud'")
    assert second.startswith(f"access.tokens_file: {str(file)!r}, line 2: not a token")
    assert SECRET not in second


@pytest.mark.parametrize(
    ("owner", "stranger"),
    [
        ("root", None),
        ("4711:4711", None),
        (":root", None),
        ("nobody-has-this-name", "user 'nobody-has-this-name'"),
        ("root:nobody-has-this-name", "group 'nobody-has-this-name'"),
    ],
)
def test_the_owner_of_the_sockets_is_one_that_this_machine_knows(owner: str, stranger: str | None) -> None:
    problems = refused({"UNIX__OWNER": owner})
    assert problems == ([f"unix.owner: {owner!r}: there is no {stranger} on this machine"] if stranger else [])


def test_the_two_unix_sockets_cannot_be_one_file() -> None:
    problems = refused({"UNIX__STREAM": "/run/a.sock", "UNIX__DATAGRAM": "/run/a.sock"})
    assert problems == ["unix.datagram: '/run/a.sock'; allowed: another file than unix.stream"]
