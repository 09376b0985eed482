"""Unix sockets in the file system: whose they are, who keeps them, what is left of them, and HTTP over them."""

import asyncio
import grp
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import pytest

from collector.agent import Collector
from collector.errors import Unusable
from collector.sources.unix import DRAFT_SUFFIX, MAX_PATH_BYTES, UnixSocket
from tests.embedded import config, embedded

NOWHERE = "http://127.0.0.1:1"

KINDS = [socket.SOCK_STREAM, socket.SOCK_DGRAM]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["stream", "datagram"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sock"


def made(
    path: Path, kind: socket.SocketKind = socket.SOCK_DGRAM, *, mode: int = 0o660, owner: str | None = None
) -> UnixSocket:
    return UnixSocket(path, kind, mode=mode, owner=owner)


def reaches(path: Path, ours: UnixSocket) -> bool:
    """Whether what is sent to the file arrives at our socket."""
    with socket.socket(socket.AF_UNIX, ours.socket.type) as client:
        if ours.socket.type == socket.SOCK_STREAM:
            ours.socket.listen()
            client.connect(str(path))
            with ours.socket.accept()[0] as served:
                client.send(b"here")
                return served.recv(4) == b"here"
        client.connect(str(path))
        client.send(b"here")
        return ours.socket.recv(4) == b"here"


def identity(path: Path) -> tuple[int, int, int]:
    """What stays the same as long as a file is the same one; the time of the last look at it does not."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mode


def left(folder: Path) -> set[str]:
    """The names in a folder but for those of locks, which stay."""
    return {file.name for file in folder.iterdir() if file.suffix != ".lock"}


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666], ids=oct)
@kinds
def test_the_file_has_its_mode_whatever_the_umask_and_can_be_reached(
    path: Path, kind: socket.SocketKind, mode: int
) -> None:
    with closing(made(path, kind, mode=mode)) as ours:
        assert stat.S_IMODE(path.lstat().st_mode) == mode
        assert reaches(path, ours)
        assert left(path.parent) == {path.name}


def other_group() -> grp.struct_group:
    """A group that files do not get by themselves, if this process may give files away; else its own."""
    own = grp.getgrgid(os.getgid())
    others = [group for group in grp.getgrall() if group.gr_gid != own.gr_gid]
    return others[0] if os.geteuid() == 0 and others else own


USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = other_group()
OWN_GID = os.getegid()


@pytest.mark.parametrize(
    ("owner", "gid"),
    [
        (None, OWN_GID),
        (USER, OWN_GID),
        (f"{USER}:", OWN_GID),
        (f":{GROUP.gr_name}", GROUP.gr_gid),
        (f"{USER}:{GROUP.gr_name}", GROUP.gr_gid),
        (f"{os.getuid()}:{GROUP.gr_gid}", GROUP.gr_gid),
    ],
)
def test_the_file_has_its_owner(path: Path, owner: str | None, gid: int) -> None:
    with closing(made(path, owner=owner)) as ours:
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (os.geteuid(), gid)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert reaches(path, ours)


@pytest.mark.parametrize("owner", ["no-such-user", ":no-such-group", f"{USER}:no-such-group", ":", f"{USER}:a:b"])
def test_an_owner_who_does_not_exist_is_named_and_nothing_is_left_behind(path: Path, owner: str) -> None:
    with pytest.raises(Unusable) as caught:
        made(path, owner=owner)
    assert str(caught.value).startswith(f"{path}: ")
    assert "no such" in str(caught.value) or "user and/or group must be set" in str(caught.value)
    assert left(path.parent) == set()
    made(path).close()


def test_the_file_is_gone_after_the_close_and_the_next_one_finds_its_place(path: Path) -> None:
    ours = made(path)
    ours.close()
    assert left(path.parent) == set()
    made(path).close()


@pytest.mark.parametrize("replacement", [Path.touch, Path.mkdir, lambda path: listening(path, socket.SOCK_DGRAM)])
def test_a_file_that_somebody_put_in_its_place_stays(
    path: Path, replacement: Callable[[Path], socket.socket | None]
) -> None:
    ours = made(path)
    path.unlink()
    theirs = replacement(path)
    found = identity(path)
    ours.close()
    assert identity(path) == found
    if theirs is not None:
        theirs.close()


def test_a_file_that_is_gone_already_is_no_trouble_at_the_close(path: Path) -> None:
    ours = made(path)
    path.unlink()
    ours.close()


# -- who has it already ------------------------------------------------------------------------------------------------


def listening(path: Path, kind: socket.SocketKind, *, listens: bool = False) -> socket.socket:
    """A socket of a program that knows nothing of our locks."""
    theirs = socket.socket(socket.AF_UNIX, kind)
    theirs.bind(str(path))
    if listens:
        theirs.listen()
    return theirs


@pytest.mark.parametrize(
    ("their_kind", "listens"),
    [
        (socket.SOCK_STREAM, True),
        (socket.SOCK_STREAM, False),
        (socket.SOCK_DGRAM, False),
        (socket.SOCK_SEQPACKET, True),
    ],
)
@kinds
def test_a_live_socket_of_another_program_is_refused_and_stays_and_does_not_notice(
    path: Path, kind: socket.SocketKind, their_kind: socket.SocketKind, listens: bool
) -> None:
    with listening(path, their_kind, listens=listens) as theirs:
        found = identity(path)
        with pytest.raises(Unusable, match="in use by another program"):
            made(path, kind)
        assert identity(path) == found
        if listens:
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.accept()


@kinds
def test_our_own_live_socket_is_refused_and_goes_on(path: Path, kind: socket.SocketKind) -> None:
    with closing(made(path, kind)) as first:
        for other in KINDS:
            with pytest.raises(Unusable, match="in use by another process"):
                made(path, other)
        assert reaches(path, first)


CHILD = """
import sys, time
from pathlib import Path
from collector.sources.unix import UnixSocket
ours = UnixSocket(Path(sys.argv[1]), int(sys.argv[2]), mode=0o660, owner=None)
print("made", flush=True)
time.sleep(600)
"""


@kinds
def test_a_socket_of_another_process_is_its_own_until_it_is_killed(path: Path, kind: socket.SocketKind) -> None:
    command = [sys.executable, "-c", CHILD, str(path), str(int(kind))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"made\n"
            with pytest.raises(Unusable, match="in use by another process"):
                made(path, kind)
            assert path.is_socket()
        finally:
            child.send_signal(signal.SIGKILL)
    assert path.is_socket(), "nobody has tidied up"
    with closing(made(path, kind)) as ours:
        assert reaches(path, ours)


@kinds
def test_a_socket_that_another_program_left_is_replaced(path: Path, kind: socket.SocketKind) -> None:
    for their_kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        listening(path, their_kind).close()
        with closing(made(path, kind)) as ours:
            assert reaches(path, ours)


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(lambda path: path.write_bytes(b"content"), id="a file"),
        pytest.param(lambda path: path.mkdir(), id="a directory"),
        pytest.param(lambda path: path.symlink_to("elsewhere"), id="a link"),
        pytest.param(os.mkfifo, id="a pipe"),
    ],
)
def test_what_is_no_socket_is_refused_and_kept(path: Path, put: Callable[[Path], object]) -> None:
    put(path)
    found = identity(path)
    with pytest.raises(Unusable, match="is there and no socket"):
        made(path)
    assert identity(path) == found
    assert left(path.parent) == {path.name}


# -- where none can be made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/events.sock", "No such file or directory"),
        ("file/events.sock", "Not a directory"),
        ("a\0b", "null (byte|character)"),
    ],
)
def test_a_place_where_no_file_can_be_is_named_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unusable, match=reason) as caught:
        made(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert left(tmp_path) == {"file"}


@pytest.mark.parametrize("letter", ["x", "é"], ids=["x", "e with an accent"])
def test_a_path_may_be_so_long_and_no_longer_and_the_limit_is_named(tmp_path: Path, letter: str) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(tmp_path / "x"))
    longest = tmp_path / ("x" + letter * (room // len(letter.encode()))).ljust(1)
    with closing(made(longest)) as ours:
        assert reaches(longest, ours)
    for more in (1, 2, 4, 5, 6, 7, 40):
        too_long = longest.with_name(longest.name + letter * more)
        with pytest.raises(Unusable, match=f"allowed: {MAX_PATH_BYTES}") as caught:
            made(too_long)
        assert str(len(os.fsencode(too_long))) in str(caught.value)
    assert left(tmp_path) == set()


def test_what_a_crash_has_left_of_the_making_is_replaced(path: Path) -> None:
    listening(path.with_name(f".{path.name}{DRAFT_SUFFIX}"), socket.SOCK_DGRAM).close()
    with closing(made(path)) as ours:
        assert reaches(path, ours)
        assert left(path.parent) == {path.name}


def test_what_is_in_the_way_of_the_making_is_named(path: Path) -> None:
    in_the_way = path.with_name(f".{path.name}{DRAFT_SUFFIX}")
    in_the_way.mkdir()
    with pytest.raises(Unusable, match="Is a directory"):
        made(path)
    in_the_way.rmdir()
    made(path).close()


# -- the collector's ---------------------------------------------------------------------------------------------------


async def test_a_start_that_fails_leaves_no_socket_behind(tmp_path: Path) -> None:
    stream, datagram = tmp_path / "stream.sock", tmp_path / "datagram.sock"
    datagram.touch()
    settings = {"unix__stream": str(stream), "unix__datagram": str(datagram)}
    with pytest.raises(Unusable, match="is there and no socket"):
        await Collector(config(tmp_path, NOWHERE, **settings), listens=True).start()
    assert not stream.exists()
    datagram.unlink()
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s", **settings):
        assert stream.is_socket()
        assert datagram.is_socket()
    assert not stream.exists()
    assert not datagram.exists()


async def test_a_start_that_fails_does_not_say_that_a_part_has_died(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events.sock").touch()
    with pytest.raises(Unusable, match="is there and no socket"):
        await Collector(config(tmp_path, NOWHERE, unix__datagram=str(tmp_path / "events.sock")), listens=True).start()
    await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.getMessage() == "agent.task_died"]


TOKEN = "a-token-of-some-length"
BODY = {"timestamp": 1, "email": "person@example.com", "eventName": "page_viewed"}


@asynccontextmanager
async def sessions(path: Path, **settings: str) -> AsyncIterator[dict[str, tuple[aiohttp.ClientSession, str]]]:
    """Clients of one collector by the way they come, and the address each of them uses."""
    async with (
        embedded(path.parent, NOWHERE, stop__deadline="0s", unix__stream=str(path), **settings) as collector,
        aiohttp.ClientSession() as over_tcp,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as over_unix,
    ):
        address = f"http://{collector.http_address}"
        yield {"tcp": (over_tcp, address), "unix": (over_unix, address)}


async def post(client: tuple[aiohttp.ClientSession, str], **headers: str) -> int:
    session, address = client
    async with session.post(f"{address}/v1/events", json=BODY, headers=headers) as answer:
        return answer.status


async def test_http_over_the_socket_needs_no_token_where_tcp_does(path: Path) -> None:
    tokens = path.with_name("tokens")
    tokens.write_text(TOKEN, encoding="ascii")
    async with sessions(path, access__tokens_file=str(tokens)) as clients:
        assert await post(clients["tcp"]) == 401
        assert await post(clients["unix"]) == 200
        assert await post(clients["unix"], Authorization="Bearer of-something-else") == 200
        assert await post(clients["tcp"], Authorization=f"Bearer {TOKEN}") == 200


async def test_http_over_the_socket_may_name_any_host_where_tcp_may_not(path: Path) -> None:
    async with sessions(path) as clients:
        assert await post(clients["tcp"], Host="collector.example.com") == 421
        assert await post(clients["unix"], Host="collector.example.com") == 200


async def test_http_over_the_socket_is_the_same_http(path: Path) -> None:
    async with sessions(path) as clients:
        session, address = clients["unix"]
        async with session.post(f"{address}/v1/events", json=[BODY, BODY, {}]) as answer:
            said = await answer.json()
            assert (answer.status, said["accepted"], said["duplicates"], said["rejected"]) == (400, 1, 1, 1)
        async with session.get(f"{address}/metrics") as answer:
            assert 'collector_events_total{source="http",verdict="accepted"} 1.0' in await answer.text()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
        late.connect(str(path))
