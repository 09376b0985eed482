"""Programs that people run already can send here: README's own examples, and loggers with an HTTP output."""

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.daemon import Daemon, running
from tests.patience import until
from tests.system.conftest import program

README = Path(__file__).parents[2] / "README.md"
PATIENCE_SECONDS = 120  # `go run` compiles first


@pytest.fixture
async def daemon(tmp_path: Path, sandbox: Sandbox, state: State) -> AsyncIterator[Daemon]:
    """A collector that delivers to the sandbox, where the app `wiki` exists."""
    await state.add_app("wiki", "wiki")
    async with running(tmp_path, sandbox.url, apps__default="wiki") as daemon:
        yield daemon


def example(language: str, url: str) -> str:
    """README's example in a language, sent to `url`."""
    match = re.search(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert match
    assert "http://127.0.0.1:8787" in match[1]
    return match[1].replace("http://127.0.0.1:8787", url)


async def delivered(sandbox: Sandbox, emails: set[str]) -> None:
    """Returns when the events of just these people have been delivered."""

    async def are_there() -> bool:
        return {msgspec.json.decode(line)["email"] for _, line in await sandbox._state.events()} == emails

    await until(are_there, seconds=PATIENCE_SECONDS, pause_seconds=0.05)


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 0
    return said.decode()


@pytest.mark.parametrize(
    ("language", "command", "file"),
    [
        ("sh", ["bash"], "example.sh"),
        ("python", [sys.executable], "example.py"),
        ("js", ["node"], "example.mjs"),
        ("go", ["go", "run"], "example.go"),
    ],
)
async def test_an_example_of_the_readme_works(
    tmp_path: Path, daemon: Daemon, sandbox: Sandbox, language: str, command: list[str], file: str
) -> None:
    executable = program(command[0])
    if language == "sh":
        program("curl")
    script = tmp_path / file
    script.write_text(example(language, daemon.url), encoding="utf-8")
    said = await output(executable, *command[1:], str(script))
    assert msgspec.json.decode(said) == {"accepted": 1, "duplicates": 0, "rejected": 0, "errors": []}
    sender = {"sh": "curl", "js": "node"}.get(language, language)
    await delivered(sandbox, {f"{sender}@example.com"})


SYSLOG_NG = """
@version: 3.38
options {{ stats-freq(0); }};
source incoming {{ network(ip("127.0.0.1") port({port}) transport("tcp") flags(no-parse)); }};
destination collector {{
  http(
    url("{url}/v1/events")
    method("POST")
    headers("Content-Type: application/json")
    {batching}
    body("${{MSG}}")
  );
}};
log {{ source(incoming); destination(collector); }};
"""


@pytest.mark.parametrize(
    "batching",
    ["", 'batch-lines(10) batch-timeout(50) delimiter(",") body-prefix("[") body-suffix("]")', "batch-lines(10)"],
    ids=["one a request", "arrays", "objects in a row"],
)
async def test_syslog_ng_delivers_over_http(tmp_path: Path, daemon: Daemon, sandbox: Sandbox, batching: str) -> None:
    syslog_ng = program("syslog-ng")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = tmp_path / "syslog-ng.conf"
    configuration.write_text(SYSLOG_NG.format(port=port, url=daemon.url, batching=batching), encoding="utf-8")
    files = {name: str(tmp_path / name) for name in ("persist", "ctl", "pid")}
    process = await asyncio.create_subprocess_exec(
        syslog_ng,
        *("--foreground", "--no-caps", "--stderr", "--cfgfile", str(configuration)),
        *("--persist-file", files["persist"], "--control", files["ctl"], "--pidfile", files["pid"]),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        people = [f"person{number}@example.com" for number in range(25)]
        lines = [
            b'{"timestamp": %d, "email": "%b", "eventName": "logged_in"}\n' % (number, person.encode())
            for number, person in enumerate(people)
        ]
        await send_lines(port, lines)
        await delivered(sandbox, set(people))
    finally:
        process.terminate()
        await process.wait()


async def send_lines(port: int, lines: list[bytes]) -> None:
    """Lines to a TCP port, once somebody listens there."""
    writer: asyncio.StreamWriter | None = None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while writer is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
    writer.writelines(lines)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_curl_sends_files_of_any_size_compressed_and_over_a_unix_socket(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    curl, gzip = program("curl"), program("gzip")
    await state.add_app("wiki", "wiki")
    events = tmp_path / "events.ndjson"
    events.write_text(
        "".join(f'{{"timestamp":{number},"email":"user@example.com","eventName":"seen"}}\n' for number in range(50_000))
    )
    await output(gzip, "--keep", str(events))
    path = tmp_path / "http.sock"
    async with running(tmp_path, sandbox.url, apps__default="wiki", unix__stream=str(path)) as daemon:
        address = urlsplit(daemon.url).netloc
        type_is = ("-H", "Content-Type: application/x-ndjson")
        ways = {
            "chunked": ("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{events}"),
            "from a pipe": ("-T", str(events), "-X", "POST"),
            "compressed": ("-H", "Content-Encoding: gzip", "--data-binary", f"@{events}.gz"),
            "upgrade": ("--http2", "--data-binary", f"@{events}"),
            "old": ("--http1.0", "--data-binary", f"@{events}"),
            "unix": ("--unix-socket", str(path), "--data-binary", f"@{events}"),
        }
        accepted = 0
        for options in ways.values():
            said = msgspec.json.decode(await output(curl, "-sS", *type_is, *options, f"http://{address}/v1/events"))
            assert said["rejected"] == 0
            assert said["accepted"] + said["duplicates"] == 50_000
            accepted += said["accepted"]
        assert accepted == 50_000
