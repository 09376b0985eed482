"""`collector status`, `top`, `healthcheck` and `completion`, as people and scripts run them."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.observe.status import Status
from collector.sources.http1 import SPARE_CONNECTIONS
from tests.cli.child import Ended, run
from tests.e2e.books import Books, Event
from tests.e2e.daemon import Daemon, environment, running
from tests.system.conftest import program

NOWHERE = "http://127.0.0.1:1"
TOKEN = "first-token-0123456789"


async def post(daemon: Daemon, count: int = 3) -> None:
    async with aiohttp.ClientSession() as session:
        events = [Event("wiki", number, "person@example.com", "page_viewed") for number in range(count)]
        await Books().post(session, daemon.url, events)


def settings(folder: Path, daemon: Daemon, **more: str) -> Mapping[str, str]:
    """The environment of a command that finds this daemon through its configuration."""
    return environment(folder, NOWHERE, http__listen=daemon.url.removeprefix("http://"), **more)


def document(ended: Ended) -> Status:
    return msgspec.json.decode(ended.out, type=Status)


# -- status ------------------------------------------------------------------------------------------------------------


async def test_a_collector_that_has_nothing_to_do_is_well(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        ended = await run("status", env=settings(tmp_path, daemon))
        assert (ended.status, ended.err) == (0, "")
        assert "Nothing keeps events from being taken and delivered." in ended.out
        assert daemon.url in ended.out
        assert "\x1b" not in ended.out, "no colours where there is no terminal"
        assert max(map(len, ended.out.splitlines())) < 160


async def test_an_outage_is_said_first_and_is_the_exit_code(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        await post(daemon, 1234)
        await daemon.logs("flusher.outage_began")
        ended = await run("status", "--url", daemon.url)
        assert ended.status == 1
        assert "Upstream does not take events" in ended.out.splitlines()[1]
        assert "1,234 events" in ended.out
        assert "wiki" in ended.out
        said = document(await run("status", "--json", "--url", daemon.url))
        assert (said.is_running, said.upstream.state, said.queue.waiting_events) == (True, "failing", 1234)
        assert daemon.log("flusher.outage_ended") == []
        assert len(daemon.log("flusher.outage_began")) == 1


async def test_without_a_collector_the_files_are_read_and_it_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, stop__deadline="0s") as daemon:
        await post(daemon, 7)
        env = settings(tmp_path, daemon)
        assert await daemon.stop() == 0
    ended = await run("status", env=env)
    assert ended.status == 69
    assert "No collector answers" in ended.out
    assert "7 events" in ended.out
    said = document(await run("status", "--json", env=env))
    assert (said.is_running, said.queue.waiting_events, said.apps[0].app_id) == (False, 7, "wiki")


async def test_with_neither_collector_nor_files_it_says_what_was_looked_for(tmp_path: Path) -> None:
    ended = await run("status", env=environment(tmp_path, NOWHERE, http__listen="127.0.0.1:1"))
    assert (ended.status, ended.out) == (69, "")
    assert "http://127.0.0.1:1 does not answer" in ended.err
    assert "queue.sqlite3 does not exist" in ended.err


@pytest.mark.parametrize("command", ["status", "top", "drain", "healthcheck"])
async def test_a_url_that_is_none_is_wrong_usage(command: str) -> None:
    assert (await run(command, "--url", "nonsense")).status == 2


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:x", "http://a:0", "http://a..b", "http://[", "unix:"]
)
async def test_a_url_that_is_none_is_named(url: str) -> None:
    ended = await run("status", "--url", url)
    assert (ended.status, ended.out) == (2, "")
    assert url in ended.err
    assert "Traceback" not in ended.err


async def test_tokens_are_shown_where_they_are_asked_for(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    async with running(tmp_path, NOWHERE, access__tokens_file=str(tokens)) as daemon:
        refused = await run("status", "--url", daemon.url)
        assert (refused.status, refused.out) == (1, "")
        assert "--token-file" in refused.err
        assert (await run("status", "--url", daemon.url, "--token-file", str(tokens))).status == 0
        assert (await run("status", env=settings(tmp_path, daemon, access__tokens_file=str(tokens)))).status == 0


async def test_a_script_that_asks_for_json_gets_it_also_where_nothing_answers() -> None:
    ended = await run("status", "--url", NOWHERE, "--json")
    assert (ended.status, ended.err) == (69, "")
    assert msgspec.json.decode(ended.out) == {
        "isRunning": False,
        "said": f"{NOWHERE} does not answer: Connection refused",
    }


NESTED = b'{"other":' + b"[" * 100_000


@pytest.mark.parametrize(
    ("words", "head", "status", "said"),
    [
        ("status --url", b"200 OK", 1, "answered what this version does not understand"),
        ("status --url", b"1" * 5000 + b" OK", 69, "does not answer as a collector does"),
        ("healthcheck --url", b"503 no", 1, "it answered 503"),
        ("push - --to", b"200 OK", 1, "answered 200 and not as a collector does"),
        ("push - --to", b"404 No\r\nX-Content: {}", 1, "answered 404 and not as a collector does"),
        ("push - --patience 0.1 --to", b"503 no\r\nRetry-After: \xc2\xb2", 75, "cannot take events"),
    ],
)
async def test_an_answer_that_no_collector_gives_is_said_whatever_it_is(
    words: str, head: bytes, status: int, said: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        content = head.partition(b"X-Content: ")[2] or NESTED
        fields = b"Content-Length: %d\r\nConnection: close" % len(content)
        writer.write(b"HTTP/1.1 %s\r\n%s\r\n\r\n%s" % (head, fields, content))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        ended = await run(*words.split(), f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", stdin=b"{}")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert ended.status == status


async def test_a_collector_without_a_connection_to_spare_is_no_collector_that_is_gone(tmp_path: Path) -> None:
    why = "http.max_connections = 1 connections are open"
    async with running(tmp_path, NOWHERE, http__max_connections="1") as daemon:
        await post(daemon)
        env = settings(tmp_path, daemon)
        host, port = daemon.url.removeprefix("http://").split(":")
        _, first = await asyncio.open_connection(host, int(port))
        assert (await run("healthcheck", env=env)).status == 0
        assert "http.max_connections is 200% used" in (await run("status", env=env)).out
        spare = [await asyncio.open_connection(host, int(port)) for _ in range(SPARE_CONNECTIONS)]
        for words in (["status"], ["drain", "--deadline", "10ms"], ["healthcheck"], ["healthcheck", "--ready"]):
            ended = await run(*words, env=env)
            assert (ended.status, ended.out) == (1, "")
            assert f"{daemon.url}: {why}" in ended.err
        ended = await run("top", "--count", "2", "--interval", "0.1", env=env)
        assert (ended.status, ended.out.count(why)) == (1, 2)
        said = msgspec.json.decode((await run("top", "--count", "1", "--json", env=env)).out)
        assert said == {"isRunning": True, "said": f"{daemon.url}: {why}"}
        ended = await run("push", "-", "--patience", "0", stdin=b"{}\n", env=env)
        assert ended.status == 75
        assert f"it answered 503: {why}; 0 were sent" in ended.err
        for writer in (first, *(writer for _, writer in spare)):
            writer.close()


# -- top ---------------------------------------------------------------------------------------------------------------


async def test_top_looks_again_and_again(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        words = ("top", "--count", "2", "--interval", "1", "--url", daemon.url)
        ended = await run(*words, "--json")
        first, second = (msgspec.json.decode(line, type=Status) for line in ended.out.splitlines())
        assert ended.status == 0
        assert second.now_ms - first.now_ms >= 900
        ended = await run("top", "--count", "2", "--interval", "0.1", "--url", daemon.url)
        assert ended.out.count("collector 0.1.0") == 2


async def test_top_goes_on_where_the_collector_is_gone() -> None:
    words = ("top", "--count", "2", "--interval", "0.1", "--url", NOWHERE)
    ended = await run(*words)
    assert (ended.status, ended.err) == (69, "")
    assert ended.out.count("does not answer") == 2
    said = [msgspec.json.decode(line) for line in (await run(*words, "--json")).out.splitlines()]
    assert [line["isRunning"] for line in said] == [False, False]


# -- healthcheck -------------------------------------------------------------------------------------------------------


async def test_a_healthcheck_says_whether_the_collector_lives(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with running(tmp_path, NOWHERE, unix__stream=str(path)) as daemon:
        for words in ((), ("--ready",), ("--url", daemon.url), ("--url", f"unix:{path}", "--ready")):
            ended = await run("healthcheck", *words, env=settings(tmp_path, daemon, unix__stream=str(path)))
            assert (ended.status, ended.err) == (0, ""), words
        env = settings(tmp_path, daemon)
    gone = await run("healthcheck", "--json", env=env)
    assert gone.status == 1
    assert msgspec.json.decode(gone.out)["healthy"] is False


def test_a_healthcheck_waits_for_no_library_that_it_does_not_need() -> None:
    program = "import sys, collector.cli.healthcheck; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"aiohttp", "asyncio", "structlog", "prometheus_client", "rich", "http.client"}.intersection(modules)


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_each_shell_gets_its_script(shell: str) -> None:
    ended = await run("completion", shell)
    assert (ended.status, ended.err) == (0, "")
    assert "_COLLECTOR_COMPLETE" in ended.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [("collector sta", {"status"}), ("collector status --t", {"--timeout", "--token-file"})],
)
def test_bash_completes_with_it(words: str, expected: set[str]) -> None:
    collector = Path(sys.executable).with_name("collector")
    script = f"""
        eval "$({collector} completion bash)"
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _collector_completion {collector}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    said = subprocess.run([program("bash"), "-c", script], check=True, capture_output=True, text=True)
    assert set(said.stdout.split()) == expected


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "top", "healthcheck", "completion"])
async def test_help_says_what_the_exit_code_or_the_output_is_for(name: str) -> None:
    ended = await run(name, "--help")
    assert ended.status == 0
    assert "\\b" not in ended.out
    assert len(ended.out) > 400
