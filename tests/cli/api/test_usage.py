"""Words on the command line: what is refused before anything is done, and what help says."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from collector.cli import EXIT_CONFIG, exit_code, main
from collector.contract.operations import OPERATIONS
from collector.errors import (
    ChunkFailed,
    CollectorError,
    CredentialsRefused,
    NotDone,
    OutcomeUnknown,
    Rejected,
    Retryable,
    Unusable,
)

NOWHERE = "http://127.0.0.1:1"
PUSH = "/services/push/v1/customer"
EVENTS_CSV = "timestamp,email,eventName\n" + "1,user@example.com,viewed\n" * 2500

COMMANDS = [
    *(["token"], ["apps", "create"], ["apps", "list"], ["apps", "show"], ["events", "push"], ["spend", "push"]),
    *(["users", "push"], ["users", "list"], ["users", "delete"], ["org-chart", "push"], ["upload"]),
    *(["workflows", "list"], ["workflows", "executions"], ["workflows", "execution"], ["audit-events"]),
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["apps", "create", " "], "expected a name"),
        (["apps", "create", "x", "--url", "wiki.example.com"], "expected a URL such as https://wiki.example.com"),
        (["apps", "create", "x", "--url", "https://wiki example"], "expected a URL such as https://wiki.example.com"),
        (["users", "delete", "wiki"], "Give at least one EMAIL, or --file."),
        (["users", "delete", "wiki", "a@b", "nobody"], "'nobody'; expected an address"),
        (["events", "push", "wiki", "/does/not/exist"], "does not exist"),
        (["apps", "create", "caf\udce9"], "'caf\\udce9' is not UTF-8"),
        (["apps", "create", "x", "--description", "\udce9"], "'\\udce9' is not UTF-8"),
        (["apps", "show", "\udce9"], "'\\udce9' is not UTF-8"),
        (["users", "list", "\udce9"], "'\\udce9' is not UTF-8"),
        (["users", "delete", "wiki", "\udce9@b"], "'\\udce9@b' is not UTF-8"),
        (["workflows", "execution", "w", "\udce9"], "'\\udce9' is not UTF-8"),
        (["events", "push", "wiki", "-", "--input-format", "xml"], "'xml' is not one of"),
        (["upload", "wiki", __file__, __file__], "Two files are called 'test_usage.py'"),
        (["upload", "wiki", "/dev/null"], "'/dev/null' is not a regular file"),
        (["apps", "list", "--format", "xml"], "'xml' is not one of"),
        (["workflows", "executions", "w", "--since", "yesterday"], "'yesterday' is no time"),
        (["workflows", "executions", "w", "--since", "-1h", "--until", "-2h"], "--since is not before --until"),
        (["audit-events", "--since", "now", "--until", "-1h"], "--since is not before --until"),
        (["audit-events", "--follow", "--until", "now"], "leave out --until"),
        (["audit-events", "--follow", "--format", "table"], "take ndjson or csv"),
        (["audit-events", "--cursor", "x", "--format", "json"], "take ndjson or csv"),
        (["audit-events", "--interval", "1"], 'a duration from "100ms" to "1d"'),
    ],
)
def test_wrong_usage_is_said_with_what_would_be_right(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["api", *words])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "stdin", "request_line", "records", "requests"),
    [
        (["apps", "create", "Tickets"], "", f"POST {PUSH}/apps", 1, 1),
        (["events", "push", "wiki", "-"], EVENTS_CSV, f"POST {PUSH}/apps/wiki/usage-events", 2500, 3),
        (["spend", "push", "wiki", "-"], '{"amount": 1}', f"POST {PUSH}/apps/wiki/spend", 1, 1),
        (["users", "push", "wiki", "-"], "email\na@b\nc@d\n", f"POST {PUSH}/apps/wiki/users", 2, 1),
        (["users", "delete", "a/b", "a@b", "a@b"], "", f"DELETE {PUSH}/apps/a%2Fb/users", 1, 1),
        (["org-chart", "push", "-"], "email\n" + "a@b\n" * 1001, f"PUT {PUSH}/org-chart", 1001, 2),
        (["org-chart", "push", "-"], '{"customFieldsConfig": [{"name": "Team"}]}', f"PUT {PUSH}/org-chart", 0, 1),
        (["upload", "wiki", __file__], "", f"GET {PUSH}/apps/wiki/upload", 1, 1),
    ],
    ids=[
        "apps create",
        "events push",
        "spend push",
        "users push",
        "users delete",
        "org-chart push",
        "custom fields",
        "upload",
    ],
)
def test_a_dry_run_needs_no_credentials_and_nobody_to_send_to(
    capfd: pytest.CaptureFixture[str], words: list[str], stdin: str, request_line: str, records: int, requests: int
) -> None:
    env = {"COLLECTOR_UPSTREAM__BASE_URL": NOWHERE}
    result = CliRunner(env=env).invoke(main, ["api", *words, "--dry-run"], input=stdin)
    assert (result.exit_code, result.output) == (0, "")
    told = msgspec.json.decode(capfd.readouterr().out)
    assert (told["request"], told["dryRun"]) == (request_line.replace(" ", f" {NOWHERE}"), True)
    assert (told["records"], told["requests"]) == (records, requests)


def test_a_file_whose_name_cannot_be_sent_is_not_uploaded_but_can_be_read_from(tmp_path: Path) -> None:
    file = tmp_path / "\udcff.csv"
    file.write_text(EVENTS_CSV)
    upload, push = (
        CliRunner().invoke(main, ["api", *words, "wiki", str(file), "--dry-run"])
        for words in (["upload"], ["events", "push"])
    )
    assert (upload.exit_code, push.exit_code) == (2, 0)
    assert r"The name '\udcff.csv' is not UTF-8" in upload.output


@pytest.mark.parametrize("words", [["apps", "list"], ["token"], ["audit-events"]])
def test_where_events_are_forwarded_and_upstream_has_no_credentials_the_api_is_not_called(words: list[str]) -> None:
    env = {"COLLECTOR_FORWARD__URL": NOWHERE, "COLLECTOR_UPSTREAM__BASE_URL": NOWHERE}
    result = CliRunner(env=env).invoke(main, ["api", *words])
    assert result.exit_code == EXIT_CONFIG
    assert "upstream.client_id, upstream.client_secret: missing" in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Rejected("no"), 1),
        (Unusable("no"), 1),
        (OutcomeUnknown("perhaps"), 3),
        (Retryable("later"), 75),
        (NotDone("later"), 75),
        (CredentialsRefused("no"), 77),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_code_is_by_what_is_to_be_done_also_where_a_part_was_sent(error: CollectorError, code: int) -> None:
    chunk = ChunkFailed("items 1 to 2", done=0, last=2)
    chunk.__cause__ = error
    assert (exit_code(error), exit_code(chunk)) == (code, code)


def test_there_is_a_command_for_every_operation() -> None:
    helps = [CliRunner().invoke(main, ["api", *words, "--help"]) for words in COMMANDS]
    assert {result.exit_code for result in helps} == {0}
    said = " ".join(result.output for result in helps)
    # A token has no scope of its own to name; it is what `token` is for.
    assert [operation.id for operation in OPERATIONS if operation.id not in said] == []


def test_the_lists_of_commands_are_shown_without_what_the_commands_bring() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from collector.cli import main\n"
        "for words in (['--help'], ['api', '--help']):\n"
        "    assert CliRunner().invoke(main, words).exit_code == 0\n"
        "assert not {'aiohttp', 'rich', 'structlog'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
