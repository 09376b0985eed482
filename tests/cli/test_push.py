"""`collector push`: files into a running collector."""

import asyncio
import gzip
from pathlib import Path

import msgspec
import pytest

from tests.e2e.daemon import command, environment, running
from tests.patience import PATIENCE_SECONDS

NOWHERE = "http://127.0.0.1:1"
EVENTS = [
    {"appId": "wiki", "timestamp": number, "email": "person@example.com", "eventName": "page_viewed"}
    for number in range(12_000)
]
NDJSON = b"".join(msgspec.json.encode(event) + b"\n" for event in [*EVENTS, *EVENTS[:34]])


async def push(*words: str, folder: Path, stdin: bytes = b"", **settings: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command("push", *words),
        env=environment(folder, NOWHERE, **settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), PATIENCE_SECONDS)
    assert process.returncode is not None
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


async def test_files_of_every_kind_are_sent_and_again_adds_nothing(tmp_path: Path) -> None:
    plain, packed = tmp_path / "events.ndjson", tmp_path / "events.ndjson.gz"
    plain.write_bytes(NDJSON)
    packed.write_bytes(gzip.compress(NDJSON))
    async with running(tmp_path, NOWHERE) as daemon:
        status, out, _ = await push(str(packed), "--to", daemon.url, folder=tmp_path)
        assert (status, out) == (0, "sent 12,034  accepted 12,000  duplicates 34  rejected 0\n")
        for words in (["--json", str(plain)], ["--json", "-"]):
            status, out, _ = await push(*words, "--to", daemon.url, folder=tmp_path, stdin=NDJSON)
            assert status == 0
            assert msgspec.json.decode(out) == {"sent": 12_034, "accepted": 0, "duplicates": 12_034, "rejected": 0}


async def test_a_rejected_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(msgspec.json.encode(EVENTS[0]) + b'\n\n\n{"timestamp": 1}\nrubbish\n')
    async with running(tmp_path, NOWHERE) as daemon:
        status, out, err = await push(str(file), "--to", daemon.url, folder=tmp_path)
    assert (status, out) == (1, "sent 3  accepted 1  duplicates 0  rejected 2\n")
    assert f"{file}:4: email: missing" in err
    assert f"{file}:5: not JSON" in err


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (gzip.compress(b"")[:-8], "Compressed file ended before the end-of-stream marker was reached"),
        (gzip.compress(b"")[:-10] + b"\xff" * 99, "Error -3 while decompressing data: invalid block type"),
        (b"rubbish", "Not a gzipped file (b'ru')"),
    ],
    ids=["cut off", "damaged", "foreign"],
)
async def test_a_broken_archive_is_named_and_what_came_before_is_sent(tmp_path: Path, rest: bytes, said: str) -> None:
    file, good = tmp_path / "events.gz", tmp_path / "good.ndjson"
    good.write_bytes(NDJSON)
    file.write_bytes(gzip.compress(NDJSON) + rest)
    async with running(tmp_path, NOWHERE) as daemon:
        status, _, err = await push(str(file), "--to", daemon.url, folder=tmp_path)
        assert status == 1
        assert err == f"collector: {file}: it cannot be read after line 12034, up to which all was sent: {said}\n"
        _, out, _ = await push(str(good), "--to", daemon.url, folder=tmp_path)
        assert out == "sent 12,034  accepted 0  duplicates 12,034  rejected 0\n"


@pytest.mark.parametrize(
    ("url", "said"), [(NOWHERE, "Connection refused"), ("unix:/not/there", "No such file or directory")]
)
async def test_where_there_is_no_collector_it_says_so_and_how_to_go_on(tmp_path: Path, url: str, said: str) -> None:
    status, _, err = await push("-", "--to", url, "--patience", "0.5", folder=tmp_path, stdin=NDJSON)
    assert status == 75
    first, last = err.splitlines()
    assert first == f"{url} cannot take events yet: cannot connect: {said}; tried again for 0.5 s"
    assert last.endswith(f"cannot connect: {said}; 0 were sent. Run the same command again to go on.")


async def test_without_an_address_it_goes_where_the_configuration_has_the_collector_listen(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as daemon:
        there = daemon.url.removeprefix("http://")
        status, out, _ = await push("-", folder=tmp_path, stdin=NDJSON, http__listen=there)
    assert (status, out) == (0, "sent 12,034  accepted 12,000  duplicates 34  rejected 0\n")


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://a..b", "http://h:99999", "ftp://h", "h:8787"])
async def test_an_address_that_cannot_be_is_wrong_usage(tmp_path: Path, url: str) -> None:
    status, _, err = await push("-", "--to", url, folder=tmp_path, stdin=NDJSON)
    assert status == 2
    assert f"'{url}' is not http://HOST:PORT or unix:PATH" in err


async def test_it_goes_by_a_unix_socket_or_shows_a_token_where_one_is_asked_for(tmp_path: Path) -> None:
    tokens, events = tmp_path / "tokens", tmp_path / "events.ndjson"
    tokens.write_text("first-token-of-sixteen\n")
    tokens.chmod(0o600)
    events.write_bytes(NDJSON)
    door = tmp_path / "http.sock"
    async with running(
        tmp_path, NOWHERE, access__tokens_file=str(tokens), unix__stream=str(door), stop__deadline="0s"
    ) as daemon:
        status, _, err = await push(str(events), "--to", daemon.url, folder=tmp_path)
        assert (status, "answered 401" in err) == (1, True)
        status, out, err = await push(str(events), "--to", f"unix:{door}", folder=tmp_path)
        assert (status, err) == (0, "")
        assert "accepted 12,000" in out
        status, out, err = await push(str(events), "--to", daemon.url, "--token-file", str(tokens), folder=tmp_path)
        assert (status, err) == (0, "")
        assert "duplicates 12,034" in out


async def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    status, _, err = await push(str(tmp_path / "nothing"), folder=tmp_path)
    assert status == 2
    assert "does not exist" in err
