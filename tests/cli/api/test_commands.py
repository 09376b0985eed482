"""Every command of `collector api` beside the real sandbox, as its users run it."""

import asyncio
import os
import pty
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from collector.contract.models import Execution, ExecutionSummary, Outcome, ProvisionedUser, Workflow
from collector.contract.operations import SCOPE_READ, SCOPE_WRITE
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.cli.api.conftest import APP, Api, environment, rows
from tests.cli.child import SECONDS, finish, own_environment, run, started
from tests.e2e.daemon import command
from tests.patience import until

PUSH = "/services/push/v1/customer"
EVENTS_CSV = "timestamp,email,eventName\n" + "".join(f"{n},user@example.com,viewed\n" for n in range(2500))


@pytest.fixture(autouse=True)
async def app(state: State) -> None:
    await state.add_app(APP, APP)


async def test_a_token_is_asked_for_and_shown_only_when_that_is_wanted(api: Api, sandbox: Sandbox) -> None:
    told = await api("token", "--for", "export")
    assert (told.status, told.err) == (0, "")
    assert msgspec.json.decode(told.out) == {"scope": SCOPE_READ, "tokenType": "Bearer", "expiresInSeconds": 3600}
    shown = await api("token", "--show")
    assert (shown.status, shown.out.count("\n")) == (0, 1)
    assert len(shown.out) > 20
    assert SCOPE_WRITE not in shown.out
    assert (await sandbox.stats()).tokens == 2


async def test_an_app_is_made_listed_and_shown(api: Api) -> None:
    made = await api("apps", "create", "Tickets", "--category", "Support", "--url", "https://tickets.example.com")
    assert made.status == 0
    app_id = msgspec.json.decode(made.out)["appId"]
    listed = rows(await api("apps", "list"))
    assert {"ApplicationId": app_id, "AppName": "Tickets", "AppStatus": "active", "AppCategory": "Support"} in listed
    shown = await api("apps", "show", app_id, "--format", "table")
    assert [line.split() for line in shown.out.splitlines()[:2]] == [["ApplicationId", app_id], ["AppName", "Tickets"]]
    missing = await api("apps", "show", "nothing")
    assert (missing.status, missing.out) == (1, "")
    assert missing.err.startswith("collector: getAppDetails: 404")


async def test_events_are_sent_in_requests_of_a_thousand(api: Api, sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text(EVENTS_CSV)
    sent = await api("events", "push", APP, str(file))
    assert (sent.status, sent.err) == (0, "")
    request = f"POST {sandbox.url}{PUSH}/apps/{APP}/usage-events"
    assert msgspec.json.decode(sent.out) == {
        "operation": "publishUsageEvents",
        "request": request,
        "records": 2500,
        "requests": 3,
        "dryRun": False,
    }
    stats = await sandbox.stats()
    assert (stats.requests, stats.received, stats.distinct) == (3, 2500, 2500)


async def test_a_problem_in_the_last_record_keeps_all_of_them_from_being_sent(api: Api, sandbox: Sandbox) -> None:
    ended = await api("events", "push", APP, "-", stdin=EVENTS_CSV + "2500,user,viewed\n")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        "collector: the input has problems; nothing was sent",
        'standard input:2502: email: "user"; expected an address with something on both sides of its @',
    ]
    assert ((await sandbox.stats()).requests, (await sandbox.stats()).tokens) == (0, 0)


async def test_spend_and_the_org_chart_arrive(api: Api, state: State) -> None:
    spend = await api("spend", "push", APP, "-", stdin="amount,currency,date\n12.5,EUR,2026-01-31\n-2.5,EUR,\n")
    assert spend.status == 0
    total = (await state.records.fiscal_spend())[APP]
    assert (total.total_spend, total.currency) == (10.0, "EUR")
    chart = {
        "users": [{"email": "a@b", "managerEmail": "c@d"}],
        "customFieldsConfig": [{"name": "Team", "type": "text"}],
    }
    pushed = await api("org-chart", "push", "-", stdin=msgspec.json.encode(chart).decode())
    assert pushed.status == 0
    kept = {
        name: [msgspec.json.decode(raw) for raw in raws] for name, raws in (await state.records.org_chart()).items()
    }
    assert kept == chart


async def test_custom_fields_arrive_without_people_too(api: Api, state: State) -> None:
    for text in (
        '{"customFieldsConfig": [{"name": "Team"}], "users": []}',
        '{"customFieldsConfig": [{"name": "Unit"}]}',
    ):
        pushed = await api("org-chart", "push", "-", stdin=text)
        assert (pushed.status, pushed.err) == (0, "")
        assert (msgspec.json.decode(pushed.out)["records"], msgspec.json.decode(pushed.out)["requests"]) == (0, 1)
    chart = await state.records.org_chart()
    assert sorted(msgspec.json.decode(raw)["name"] for raw in chart["customFieldsConfig"]) == ["Team", "Unit"]


async def test_users_are_replaced_only_where_somebody_has_said_yes_to_the_removals(api: Api, state: State) -> None:
    async def emails() -> list[str]:
        return [user.email for user in await state.records.users(APP)]

    first = await api("users", "push", APP, "-", stdin="email,role\na@b,admin\nc@d,\n")
    assert first.status == 0
    assert first.err == f"users of app {APP}: 0 upstream, 2 in the input; 2 will be added, 0 removed\n"
    refused = await api("users", "push", APP, "-", stdin="email\nc@d\ne@f\n")
    assert (refused.status, refused.out) == (2, "")
    assert "1 will be added, 1 removed" in refused.err
    assert "no terminal to answer at; --yes answers" in refused.err
    assert await emails() == ["a@b", "c@d"]
    done = await api("users", "push", APP, "-", "--yes", stdin="email\nc@d\ne@f\n")
    assert done.status == 0
    assert await emails() == ["c@d", "e@f"]
    listed = await api("users", "list", APP, "--format", "csv")
    assert listed.out == "email,firstName,lastName,role\nc@d,,,\ne@f,,,\n"


@pytest.mark.parametrize(("answer", "status", "left"), [(b"y\n", 0, ["e@f"]), (b"n\n", 1, ["a@b", "c@d", "e@f"])])
async def test_on_a_terminal_it_asks_before_users_are_deleted(
    sandbox: Sandbox, state: State, tmp_path: Path, answer: bytes, status: int, left: list[str]
) -> None:
    await state.records.set_users(APP, [ProvisionedUser("a@b"), ProvisionedUser("c@d"), ProvisionedUser("e@f")])
    file = tmp_path / "users.ndjson"
    file.write_text('{"email": "a@b"}\n')
    terminal, child_side = pty.openpty()
    try:
        words = ("api", "users", "delete", APP, "c@d", "a@b", "--file", str(file))
        async with started(*words, env=environment(sandbox), stdin=child_side) as process:
            os.write(terminal, answer)
            out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        os.close(terminal)
        os.close(child_side)
    assert (process.returncode, b"deleteProvisionedUsers" in out) == (status, status == 0)
    assert f"Remove 2 of the users of app {APP}? [y/N]" in err.decode()
    assert [user.email for user in await state.records.users(APP)] == left


async def test_files_are_uploaded_and_their_urls_never_shown(api: Api, state: State, tmp_path: Path) -> None:
    files = [tmp_path / "users.csv", tmp_path / "größe.bin"]
    files[0].write_bytes(b"email\n")
    files[1].write_bytes(bytes(3 * 2**20))
    ended = await api("upload", APP, *map(str, files))
    assert rows(ended) == [{"filename": "users.csv", "bytes": 6}, {"filename": "größe.bin", "bytes": 3 * 2**20}]
    assert (ended.status, ended.err) == (0, "")
    assert {(upload.filename, upload.bytes) for upload in await state.records.uploads()} == {
        ("users.csv", 6),
        ("größe.bin", 3 * 2**20),
    }


async def test_workflows_their_executions_and_one_of_them_are_shown(api: Api, state: State) -> None:
    def summary(number: int) -> tuple[ExecutionSummary, Execution]:
        started = datetime(2026, 1, number, 10, tzinfo=UTC)
        users = [Outcome("a@b", "revoke", "kept [bold]\x1b[31m")]
        return (ExecutionSummary(f"e{number}", "w1", "done", started), Execution(f"e{number}", "w1", "done", users))

    await state.records.add_workflow(Workflow("w1", "Leavers", APP, "active"), [summary(n) for n in (1, 2, 3)])
    assert rows(await api("workflows", "list")) == [
        {"workflowId": "w1", "workflowName": "Leavers", "applicationId": APP, "status": "active"}
    ]
    between = await api("workflows", "executions", "w1", "--since", "2026-01-01T10:00:01", "--until", "2026-01-03")
    assert [row["executionId"] for row in rows(between)] == ["e2"]
    one = await api("workflows", "execution", "w1", "e1", "--format", "table")
    assert one.out == (
        "executionId  e1\nworkflowId   w1\nstatus       done\nusers\n"
        "email  suggestedOutcome  actionedOutcome\na@b    revoke            kept [bold]\N{REPLACEMENT CHARACTER}[31m\n"
    )


@pytest.mark.parametrize(
    ("words", "fault", "status", "said"),
    [
        (["apps", "create", "X"], Fault(operation="setupApplication", cut=True), 3, "The app may exist"),
        (["spend", "push", APP, "-"], Fault(operation="publishSpendData", cut=True, after=True), 3, "may be booked"),
        (["token"], Fault(operation="getAccessToken", status=401), 77, "refused"),
        (["events", "push", APP, "-"], Fault(status=401), 77, "0 are upstream"),
        (["apps", "list"], Fault(operation="getAppSummaries", status=403), 1, "403"),
    ],
    ids=["outcome of an app", "outcome of spend", "credentials", "token in a chunk", "forbidden"],
)
async def test_the_exit_code_says_what_to_do(
    api: Api, sandbox: Sandbox, words: list[str], fault: Fault, status: int, said: str
) -> None:
    sandbox.set_faults(fault)
    ended = await api(*words, stdin='{"amount": 1}' if "spend" in words else EVENTS_CSV)
    assert (ended.status, ended.out) == (status, "")
    assert ended.err.startswith("collector: ")
    assert said in ended.err


async def test_ctrl_c_amid_what_may_not_be_done_twice_says_where_to_look(sandbox: Sandbox, state: State) -> None:
    sandbox.set_faults(Fault(operation="setupApplication", delay_seconds=3600, after=True))
    async with started("api", "apps", "create", "Wiki", env=environment(sandbox)) as process:

        async def is_made() -> bool:
            return "Wiki" in (await state.names()).values()

        await until(is_made)
        process.send_signal(signal.SIGINT)
        ended = await finish(process)
    assert (ended.status, ended.out) == (3, "")
    assert ended.err.startswith("collector: setupApplication: interrupted. The app may exist")


async def test_a_long_wait_is_said_before_it(sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(operation="getAppSummaries", status=429, headers={"Retry-After": "3600"}))
    async with started("api", "apps", "list", env=environment(sandbox)) as process:
        assert process.stderr is not None
        said = await asyncio.wait_for(process.stderr.readline(), SECONDS)
        assert re.fullmatch(rb"getAppSummaries: 429; next try in 360\d(\.\d)? s\n", said)
        process.send_signal(signal.SIGINT)
        assert (await finish(process))[:2] == (1, "")


async def test_without_credentials_it_is_the_configuration_that_is_wrong() -> None:
    ended = await run("api", "apps", "list", env=own_environment())
    assert ended.status == 78
    assert "upstream.client_id: missing" in ended.err


async def test_a_reader_that_goes_away_ends_it_without_a_word(sandbox: Sandbox, state: State) -> None:
    for number in range(300):
        await state.add_app(f"{number}", "x" * 1000)
    reading, writing = os.pipe()
    os.close(reading)
    async with started("api", "apps", "list", env=environment(sandbox), stdout=writing) as process:
        os.close(writing)
        assert await finish(process) == (1, "", "")


@pytest.mark.parametrize(
    ("closed", "words", "status", "said"),
    [
        ("<&-", "api events push wiki -", 1, "standard input: it is closed"),
        (">&-", "api apps list", 1, "standard output: Bad file descriptor"),
        ("2>&-", "api apps list", 0, ""),
        ("<&-", "push -", 1, "standard input: it is closed"),
    ],
)
async def test_a_standard_stream_that_is_closed_is_an_error_where_it_is_needed(
    sandbox: Sandbox, closed: str, words: str, status: int, said: str
) -> None:
    line = f'"$@" {closed}'
    child = await asyncio.create_subprocess_exec(
        *("sh", "-c", line, "sh", *command(*words.split())),
        env=environment(sandbox),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ended = await finish(child)
    assert (ended.status, ended.err) == (status, said and f"collector: {said}\n")


async def test_output_that_cannot_be_written_is_said(sandbox: Sandbox) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    async with started("api", "apps", "list", env=environment(sandbox), stdout=full) as process:
        os.close(full)
        ended = await finish(process)
    assert ended == (1, "", "collector: standard output: No space left on device\n")
