"""Where a setting comes from, and how every problem is told at once without telling a secret."""

import os
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path

import msgspec
import pytest

from collector.config import Config, load
from collector.config.kinds import Address, Secret, UnixUrl
from collector.config.load import keys
from collector.errors import ConfigInvalid

CREDENTIALS = {"COLLECTOR_UPSTREAM__CLIENT_ID": "client", "COLLECTOR_UPSTREAM__CLIENT_SECRET": "hunter2"}
ONLY_ID = {"COLLECTOR_UPSTREAM__CLIENT_ID": "client"}

# A value for each setting that is not its default, as the environment gives it, and what it is read as.
SETTINGS: Mapping[str, tuple[str, object]] = {
    "http.listen": ("[::1]:1", Address("::1", 1)),
    "http.max_request_bytes": ("1MB", 10**6),
    "http.max_decompressed_bytes": ("2MB", 2 * 10**6),
    "http.max_stream_bytes": ("1GB", 10**9),
    "http.max_held_bytes": ("32MiB", 2**25),
    "http.max_header_bytes": ("8KiB", 2**13),
    "http.max_connections": ("100", 100),
    "http.max_in_flight": ("50", 50),
    "http.header_timeout": ("5s", 5.0),
    "http.body_timeout": ("1m", 60.0),
    "http.idle_timeout": ("2m", 120.0),
    "udp.listen": ("127.0.0.1:1", Address("127.0.0.1", 1)),
    "udp.receive_buffer": ("1MiB", 2**20),
    "unix.stream": ("/run/stream.sock", Path("/run/stream.sock")),
    "unix.datagram": ("/run/datagram.sock", Path("/run/datagram.sock")),
    "unix.mode": ("0600", 0o600),
    "unix.owner": ("user:group", "user:group"),
    "access.tokens_file": ("tokens", Path("tokens")),
    "access.allow_unauthenticated": ("true", True),
    "access.allowed_hosts": ("collector.internal,collector", ("collector.internal", "collector")),
    "apps.default": ("app", "app"),
    "events.keep_fields": ("team,site", ("team", "site")),
    "events.max_per_request": ("1000", 1000),
    "events.max_email_chars": ("100", 100),
    "events.max_event_name_chars": ("200", 200),
    "events.max_kept_bytes": ("2KiB", 2**11),
    "events.max_recorded": ("500", 500),
    "events.max_event_bytes": ("4KiB", 2**12),
    "queue.backend": ("jetstream", "jetstream"),
    "queue.path": ("/queue", Path("/queue")),
    "queue.dedup_retention": ("7d", 7 * 86_400.0),
    "queue.max_bytes": ("1GiB", 2**30),
    "queue.max_uncommitted": ("1MiB", 2**20),
    "queue.max_dead_bytes": ("1MB", 10**6),
    "queue.keep_delivered": ("7d", 7 * 86_400.0),
    "jetstream.servers": ("nats://one.example.com:4222, tls://two:1", ("nats://one.example.com:4222", "tls://two:1")),
    "jetstream.stream": ("ours", "ours"),
    "jetstream.replicas": ("5", 5),
    "jetstream.lease_timeout": ("1m", 60.0),
    "jetstream.user": ("collector", "collector"),
    "jetstream.password": ("hidden", Secret("hidden")),
    "jetstream.credentials_file": ("/nats/user.creds", Path("/nats/user.creds")),
    "jetstream.nkey_file": ("/nats/seed", Path("/nats/seed")),
    "jetstream.ca_file": ("/nats/ca.pem", Path("/nats/ca.pem")),
    "jetstream.certificate_file": ("/nats/cert.pem", Path("/nats/cert.pem")),
    "jetstream.key_file": ("/nats/key.pem", Path("/nats/key.pem")),
    "flush.batch_events": ("7", 7),
    "flush.linger": ("0s", 0.0),
    "flush.max_in_flight": ("9", 9),
    "flush.max_requests_per_second": ("50", 50),
    "flush.backoff_base": ("1ms", 0.001),
    "flush.backoff_max": ("2m", 120.0),
    "flush.hold_retry": ("1h", 3600.0),
    "upstream.base_url": ("https://api.example.com", "https://api.example.com"),
    "upstream.token_url": ("https://login.example.com/t", "https://login.example.com/t"),
    "upstream.client_id": ("client", "client"),
    "upstream.client_secret": ("hunter2", Secret("hunter2")),
    "upstream.client_secret_file": ("/secret", Path("/secret")),
    "upstream.scope": ("write", "write"),
    "upstream.export_scope": ("read", "read"),
    "upstream.usage_events_path": ("/{appId}/events", "/{appId}/events"),
    "upstream.timeout": ("5s", 5.0),
    "forward.url": ("unix:/run/central.sock", UnixUrl(Path("/run/central.sock"))),
    "forward.token": ("sesame", Secret("sesame")),
    "forward.token_file": ("/token", Path("/token")),
    "forward.timeout": ("6s", 6.0),
    "gateway.operations": ("getAppSummaries, publishSpendData", ("getAppSummaries", "publishSpendData")),
    "stop.deadline": ("20s", 20.0),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        file = tmp_path / "collector.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file `tokens` in the working directory, which holds a token."""
    (tmp_path / "tokens").write_text("0123456789abcdef\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def problems(file: Path | None = None, environment: Mapping[str, str] = CREDENTIALS) -> list[str]:
    """What is said about a configuration that is refused."""
    with pytest.raises(ConfigInvalid) as caught:
        load(file, environment)
    return str(caught.value).splitlines()


def in_toml(dotted: str) -> str:
    [key] = [key for key in keys() if key.dotted == dotted]
    return f"[{key.section}]\n{key.name} = {key.kind.write(SETTINGS[dotted][1])}\n"


def in_environment(dotted: str) -> dict[str, str]:
    return {f"COLLECTOR_{dotted.replace('.', '__').upper()}": SETTINGS[dotted][0]}


# -- where values come from --------------------------------------------------------------------------------------------


def test_without_file_and_environment_every_setting_has_its_default() -> None:
    assert load(None, {}, with_credentials=False) == Config()


def test_every_setting_is_tried_out_here() -> None:
    assert list(SETTINGS) == [key.dotted for key in keys()]


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("dotted", SETTINGS)
def test_a_setting_can_be_given_by_the_file_and_touches_no_other(write: Write, dotted: str) -> None:
    config = load(write(in_toml(dotted)), {}, with_credentials=False)
    assert attrgetter(dotted)(config) == SETTINGS[dotted][1] != attrgetter(dotted)(Config())
    assert differences(config) == [dotted]


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("dotted", SETTINGS)
def test_a_setting_can_be_given_by_the_environment_and_touches_no_other(dotted: str) -> None:
    config = load(None, in_environment(dotted), with_credentials=False)
    assert attrgetter(dotted)(config) == SETTINGS[dotted][1]
    assert differences(config) == [dotted]


def differences(config: Config) -> list[str]:
    """The settings that do not have their default."""
    return [key.dotted for key in keys() if attrgetter(key.dotted)(config) != key.default]


def test_the_file_wins_over_the_default_and_the_environment_over_the_file(write: Write) -> None:
    file = write('[http]\nlisten = "127.0.0.1:1"\n[flush]\nbatch_events = 10\nlinger = "2s"\n')
    config = load(file, CREDENTIALS | {"COLLECTOR_FLUSH__BATCH_EVENTS": "20"})
    assert config.http.listen == Address("127.0.0.1", 1)
    assert (config.flush.batch_events, config.flush.linger) == (20, 2.0)
    assert config.flush.max_in_flight == Config().flush.max_in_flight


def test_the_environment_is_the_processs_own_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COLLECTOR_")]:
        monkeypatch.delenv(name)
    for name, value in (CREDENTIALS | {"COLLECTOR_LOG__LEVEL": "debug"}).items():
        monkeypatch.setenv(name, value)
    config = load()
    assert (config.upstream.client_id, config.log.level) == ("client", "debug")


@pytest.mark.parametrize("text", ["", "# nothing\n", "[http]\n", "\r\n[log]\r\nlevel = 'info'\r\n"])
def test_a_file_may_say_little(write: Write, text: str) -> None:
    assert load(write(text), {}, with_credentials=False) == Config()


# -- problems ----------------------------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_with_key_value_and_what_is_allowed(write: Write) -> None:
    sizes = 'allowed: a size from "1KiB" to "1GiB", in B, KiB, MiB, GiB, TiB, kB, MB, GB, TB'
    durations = 'allowed: a duration from "0s" to "1h", in ms, s, m, h, d'
    file = write(
        '[http]\nlisten = "nowhere"\nmax_request_bytes = "2TiB"\n[flush]\nbatch_events = 1001\nlingr = "1s"\n'
        '[upstreem]\n[log]\nlevel = "loud"\n'
    )
    assert sorted(problems(file, {"COLLECTOR_STOP__DEADLINE": "soon", "COLLECTOR_QUEUE__PTAH": "/q"})) == sorted(
        [
            "http.listen: 'nowhere'; allowed: HOST:PORT with a port from 0 to 65535, such as \"127.0.0.1:8787\"",
            f"http.max_request_bytes: '2TiB'; {sizes}",
            "flush.batch_events: 1001; allowed: a whole number from 1 to 1000",
            "flush.lingr: unknown; did you mean flush.linger?",
            "upstreem: unknown; did you mean upstream?",
            'log.level: \'loud\'; allowed: one of "debug", "info", "warning", "error"',
            f"stop.deadline: 'soon'; {durations}; it was set by COLLECTOR_STOP__DEADLINE",
            "COLLECTOR_QUEUE__PTAH: unknown; did you mean COLLECTOR_QUEUE__PATH?",
            "upstream.client_secret: missing; give it in the environment, client_secret_file or a systemd credential",
            "upstream.client_id: missing; give the OAuth2 client ID that Productiv issued",
        ]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[http]\nlisten_on = "a:1"', "http.listen_on: unknown; did you mean http.listen?"),
        ('[http]\nListen = "a:1"', "http.Listen: unknown; did you mean http.listen?"),
        ("[queue]\nmax-bytes = 1", "queue.max-bytes: unknown; did you mean queue.max_bytes?"),
        ("[HTTP]", "HTTP: unknown; see config.example.toml"),
        ("[flushing]\nlinger = '1s'", "flushing: unknown; did you mean flush?"),
        ("zzz = 1", "zzz: unknown; see config.example.toml"),
        ("[http.listen]\nport = 1", "http.listen: {'port': 1}; allowed: HOST:PORT"),
        ("[http]\nlisten = 'a..b:80'", "http.listen: 'a..b:80': 'a..b' can be no host's name; allowed: HOST:PORT"),
        ("queue = 'here'", "queue: text; allowed: a section, [queue]"),
        ("[[upstream]]\nclient_secret = 'hunter2'", "upstream: a list; allowed: a section, [upstream]"),
        ("[flush]\nbatch_events = '10 events'", "flush.batch_events: '10 events'; allowed: a whole number"),
        ("[flush]\nbatch_events = true", "flush.batch_events: True; allowed: a whole number"),
        ("[flush]\nbatch_events = 10.0", "flush.batch_events: 10.0; allowed: a whole number"),
        ("[flush]\nmax_in_flight = 1", "flush.max_in_flight: 1; allowed: a whole number from 2 to 256"),
        ("[flush]\nlinger = 1", "flush.linger: 1; allowed: a duration"),
        ("[flush]\nlinger = 07:32:00", "flush.linger: datetime.time(7, 32); allowed: a duration"),
        ("[queue]\npath = ['a']", "queue.path: ['a']; allowed: a path"),
        ("[queue]\npath = ''", "queue.path: ''; allowed: a path"),
        ("[events]\nkeep_fields = [1]", "events.keep_fields: [1]; allowed: a list of names"),
        ("[log]\nformat = []", "log.format: []; allowed: one of"),
        ("[access]\nallow_unauthenticated = 1", "access.allow_unauthenticated: 1; allowed: true or false"),
        ("[unix]\nmode = 432", "unix.mode: 432; allowed: an octal mode"),
        ("[jetstream]\nservers = []", "jetstream.servers: []; allowed: a list of nats://HOST:PORT"),
        ("[queue]\npath = '~nobody-has-this-name/q'", "queue.path: '~nobody-has-this-name/q': "),
    ],
)
def test_what_is_unknown_or_of_a_wrong_type_is_named_with_a_remedy(write: Write, text: str, problem: str) -> None:
    [said] = problems(write(text))
    assert said.startswith(problem)


def test_a_file_may_begin_with_a_byte_order_mark(write: Write) -> None:
    file = write("\ufeff[http]\nmax_connections = 7\n")
    assert load(file, CREDENTIALS).http.max_connections == 7


@pytest.mark.parametrize(
    "content",
    [
        b"[http",
        b"[http]\nlisten",
        b"[http]\n[http]",
        b"= 1",
        b"[http]\nlisten = nowhere",
        b"\xff\xfe",
        b"a = " + b"[" * 9999,
    ],
    ids=repr,
)
def test_a_file_that_is_not_toml_is_named_with_the_environments_problems_and_nothing_that_it_may_hold(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    first, second = problems(file, {"COLLECTOR_LOG__LEVEL": "loud"})  # and no word of credentials
    assert first.startswith(f"{file}: is not TOML: ")
    assert second.startswith("log.level: 'loud'")


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problems(missing) == [f"{missing}: cannot be read (No such file or directory)"]
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read (Is a directory)"]


@pytest.mark.parametrize(
    "name",
    [
        "COLLECTOR_PORT",
        "COLLECTOR_PORT_8787_TCP_ADDR",
        "COLLECTOR_SERVICE_HOST",
        "COLLECTOR_SERVICE_PORT_HTTP",
        "COLLECTOR_VERSION",
        "COLLECTOR_",
        "COLLECTOR",
        "MY_COLLECTOR_HTTP__LISTEN",
        "OTHER__COLLECTOR__X",
    ],
)
def test_variables_that_others_set_are_left_alone(name: str) -> None:
    assert load(None, {name: "tcp://10.0.0.1:8787"}, with_credentials=False) == Config()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("COLLECTOR_UPSTREAM_CLIENT_ID", "COLLECTOR_UPSTREAM__CLIENT_ID"),
        ("COLLECTOR_UPSTREAM_CLIENT_SECRET", "COLLECTOR_UPSTREAM__CLIENT_SECRET"),
        ("COLLECTOR_HTTP_LISTEN", "COLLECTOR_HTTP__LISTEN"),
        ("COLLECTOR_QUEUE_PATH", "COLLECTOR_QUEUE__PATH"),
        ("COLLECTOR_UPSTREAM__CLIENTID", "COLLECTOR_UPSTREAM__CLIENT_ID"),
        ("COLLECTOR_FLUSH__BATCH_SIZE", "COLLECTOR_FLUSH__BATCH_EVENTS"),
    ],
)
def test_a_variable_that_is_nearly_a_settings_name_is_a_mistake(name: str, nearest: str) -> None:
    assert problems(environment=CREDENTIALS | {name: "hunter3"}) == [f"{name}: unknown; did you mean {nearest}?"]


# -- the secret --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["hunter2", "hunter2\n", "hunter2\r\n"])
def test_the_secret_may_come_from_a_file_and_loses_its_line_end(tmp_path: Path, content: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content.encode())
    config = load(None, ONLY_ID | {"COLLECTOR_UPSTREAM__CLIENT_SECRET_FILE": str(secret)})
    assert config.upstream.client_secret == Secret("hunter2")


def test_a_secret_keeps_its_spaces_and_signs(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(" h\u00fcnter\n2 \n", encoding="utf-8")
    config = load(None, ONLY_ID | {"COLLECTOR_UPSTREAM__CLIENT_SECRET_FILE": str(secret)})
    assert config.upstream.client_secret == Secret(" h\u00fcnter\n2 ")


def test_the_secret_may_come_from_systemds_credentials(tmp_path: Path) -> None:
    (tmp_path / "client_secret").write_text("hunter2\n", encoding="utf-8")
    config = load(None, ONLY_ID | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert config.upstream.client_secret == Secret("hunter2")


def test_the_nearest_secret_wins_key_before_file_before_systemd(tmp_path: Path) -> None:
    file, directory = tmp_path / "file", tmp_path / "credentials"
    file.write_text("of file", encoding="utf-8")
    directory.mkdir()
    (directory / "client_secret").write_text("of systemd", encoding="utf-8")
    environment = ONLY_ID | {"CREDENTIALS_DIRECTORY": str(directory)}
    assert load(None, environment).upstream.client_secret == Secret("of systemd")
    environment |= {"COLLECTOR_UPSTREAM__CLIENT_SECRET_FILE": str(file)}
    assert load(None, environment).upstream.client_secret == Secret("of file")
    environment |= {"COLLECTOR_UPSTREAM__CLIENT_SECRET": "of key"}
    assert load(None, environment).upstream.client_secret == Secret("of key")


def test_a_secret_that_cannot_be_read_is_a_problem_with_its_place(tmp_path: Path) -> None:
    def said(content: bytes | None) -> list[str]:
        secret = tmp_path / "client_secret"
        if content is not None:
            secret.write_bytes(content)
        return [
            problem.partition(": ")[2]
            for environment in (
                {"COLLECTOR_UPSTREAM__CLIENT_SECRET_FILE": str(secret)},
                {"CREDENTIALS_DIRECTORY": str(tmp_path)},
            )
            for problem in problems(environment=ONLY_ID | environment)
        ]

    place = repr(str(tmp_path / "client_secret"))
    assert said(None) == [
        f"{place} cannot be read (No such file or directory); allowed: a readable file",
        "missing; give it in the environment, client_secret_file or a systemd credential",
    ]
    assert said(b"") == [f"{place} is empty; allowed: a file that holds the secret"] * 2
    assert said(b"\n") == [f"{place} is empty; allowed: a file that holds the secret"] * 2
    assert said(b"\xff") == [f"{place} cannot be read (not UTF-8, or NUL in its name); allowed: a readable file"] * 2


def test_a_credential_that_may_not_be_looked_at_is_a_problem_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", forbidden)  # a test runs as root, who may look at all
    monkeypatch.setattr(Path, "read_text", forbidden)
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    said = problems(environment=ONLY_ID | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    credentials = ["systemd credential client_secret", "systemd credential forward_token", "access.tokens_file"]
    assert [problem.partition(":")[0] for problem in said] == credentials
    assert all("Permission denied" in problem for problem in said)


def test_tokens_may_come_from_systemds_credentials_too(tmp_path: Path) -> None:
    environment = CREDENTIALS | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load(None, environment).access.tokens_file is None, "there is none"
    credential = tmp_path / "ingest_tokens"
    credential.write_text("a-token-0123456789\n", encoding="utf-8")
    assert load(None, environment).access.tokens_file == credential
    assert load(None, environment | {"COLLECTOR_HTTP__LISTEN": "0.0.0.0:1"}).http.listen.port == 1
    (tmp_path / "tokens").write_text("b-token-0123456789\n", encoding="utf-8")
    nearer = environment | {"COLLECTOR_ACCESS__TOKENS_FILE": str(tmp_path / "tokens")}
    assert load(None, nearer).access.tokens_file == tmp_path / "tokens"


def test_a_credential_says_that_there_are_no_tokens_by_one_word_and_not_by_being_empty(tmp_path: Path) -> None:
    environment = CREDENTIALS | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "ingest_tokens").write_text("none\n", encoding="utf-8")
    assert load(None, environment).access.tokens_file is None
    (tmp_path / "ingest_tokens").write_text("", encoding="utf-8")
    [said] = problems(environment=environment)
    assert "holds no token" in said


def test_who_only_listens_needs_no_credentials_and_cannot_pass_anything_on() -> None:
    def said(environment: Mapping[str, str]) -> list[str]:
        with pytest.raises(ConfigInvalid) as caught:
            load(None, environment, with_credentials=False, with_listeners=True)
        return str(caught.value).splitlines()

    assert load(None, {}, with_credentials=False, with_listeners=True) == Config()
    assert said({"COLLECTOR_HTTP__LISTEN": "0.0.0.0:1"})[0].startswith("http.listen: ")
    assert said({"COLLECTOR_GATEWAY__OPERATIONS": "getAppSummaries"}) == [
        "gateway.operations: getAppSummaries; cannot be passed on without upstream's credentials"
    ]


def test_who_only_delivers_is_asked_for_nothing_that_listeners_need() -> None:
    environment = CREDENTIALS | {"COLLECTOR_HTTP__LISTEN": "0.0.0.0:1", "COLLECTOR_ACCESS__TOKENS_FILE": "/nowhere"}
    assert load(None, environment, with_listeners=False).upstream.client_id == "client"


def test_credentials_are_asked_for_only_where_they_are_needed() -> None:
    assert [problem.partition(":")[0] for problem in problems(environment={})] == [
        "upstream.client_secret",
        "upstream.client_id",
    ]
    assert load(None, {}, with_credentials=False).upstream.client_secret is None


def test_an_edge_needs_no_credentials_of_upstream_and_takes_those_that_there_are() -> None:
    edge = {"COLLECTOR_FORWARD__URL": "https://central.example.com/"}
    assert load(None, edge).upstream.client_secret is None
    assert load(None, edge).delivers_to == "https://central.example.com"
    assert load(None, edge | CREDENTIALS).upstream.client_secret == Secret("hunter2")


def test_the_token_for_a_central_collector_comes_from_its_key_its_file_or_systemd(tmp_path: Path) -> None:
    environment = {"COLLECTOR_FORWARD__URL": "https://central.example.com"}
    assert load(None, environment).forward.token is None
    (tmp_path / "forward_token").write_text("of systemd\n", encoding="utf-8")
    environment |= {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load(None, environment).forward.token == Secret("of systemd")
    (tmp_path / "file").write_text("of file\n", encoding="utf-8")
    environment |= {"COLLECTOR_FORWARD__TOKEN_FILE": str(tmp_path / "file")}
    assert load(None, environment).forward.token == Secret("of file")
    environment |= {"COLLECTOR_FORWARD__TOKEN": "of key"}
    assert load(None, environment).forward.token == Secret("of key")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"URL": "ftp://central"}, "forward.url: 'ftp://central'; allowed: an http:// or https:// URL without"),
        ({"URL": "unix:"}, "forward.url: 'unix:'; allowed: an http:// or https:// URL without"),
        ({"TOKEN": ""}, "forward.token: (not shown); allowed: text that is not empty"),
        ({"TOKEN": "hunter\n2"}, "forward.token: (not shown) has characters that no header can carry"),
        ({"TOKEN": "h\u00fcnter2"}, "forward.token: (not shown) has characters that no header can carry"),
        ({"TOKEN_FILE": "/nowhere/token"}, "forward.token_file: '/nowhere/token' cannot be read (No such file"),
    ],
)
def test_a_way_to_a_central_collector_that_is_none_is_a_problem(settings: dict[str, str], problem: str) -> None:
    edge = {"URL": "https://central.example.com"} | settings
    environment = {f"COLLECTOR_FORWARD__{name}": value for name, value in edge.items()}
    [said] = [text for text in problems(environment=environment) if not text.startswith("upstream.")]
    assert said.startswith(problem)


def test_credentials_that_are_wrong_are_not_called_missing_too() -> None:
    environment = {"COLLECTOR_UPSTREAM__CLIENT_ID": "", "COLLECTOR_UPSTREAM__CLIENT_SECRET": ""}
    allowed = "allowed: text that is not empty; it was set by COLLECTOR_UPSTREAM__CLIENT"
    assert sorted(problems(environment=environment)) == [
        f"upstream.client_id: ''; {allowed}_ID",
        f"upstream.client_secret: (not shown); {allowed}_SECRET",
    ]


@pytest.mark.parametrize("name", ["base_url", "token_url"])
@pytest.mark.parametrize("value", ["'https://user:hunter2@example.com'", "['https://user:hunter2@example.com']"])
def test_a_url_with_a_password_is_refused_without_a_word_of_it(write: Write, name: str, value: str) -> None:
    assert problems(write(f"[upstream]\n{name} = {value}\n")) == [
        (
            f"upstream.{name}: a URL with an @ in it (not shown, for there may be a password before it); "
            "allowed: an http:// or https:// URL without user, query or fragment"
        )
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[upstream]\nclient_secret = 'hunter2'",
        "[upstream]\nclient_secret = ['hunter2']",
        "[upstream]\nclient_secret = {value = 'hunter2'}",
        "[upstream]\nclient_secrets = 'hunter2'",
        "[upstream.client_secret]\nhunter = 'hunter2'",
        "client_secret = 'hunter2'",
        "[upstrem]\nclient_secret = 'hunter2'",
        "[upstream]\nclient_secret = 'hunter2",
        "[upstream]\nclient_secret = hunter2",
    ],
)
def test_no_problem_tells_the_secret(write: Write, text: str) -> None:
    file = write(text + "\n[log]\nlevel = 'loud'\n")  # the first of these has no other problem
    with pytest.raises(ConfigInvalid) as caught:
        load(file, {})
    error = caught.value
    assert "hunter2" not in f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"


def test_a_configuration_does_not_tell_its_secret() -> None:
    config = load(None, CREDENTIALS)
    assert config.upstream.client_secret is not None
    assert config.upstream.client_secret.reveal() == "hunter2"
    assert "hunter2" not in repr(config) + str(config) + repr(msgspec.structs.asdict(config.upstream))
    with pytest.raises(TypeError):
        msgspec.json.encode(config)
