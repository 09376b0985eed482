"""Programs that fork while their collector runs: what the child has of it, and what it may do."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from collector import forks
from collector.agent import Collector
from collector.sources.unix import UnixSocket
from tests.embedded import config as embedded_config
from tests.programs import NOWHERE, ended, program, waiting

HEAD = """
import asyncio, contextlib, socket
import uvloop
from collector import Collector
from collector.config import load

def config(**settings):
    return load(environment=dict(os.environ) | {f"COLLECTOR_{name}".upper(): value for name, value in settings.items()})

@contextlib.contextmanager
def child():
    \"\"\"A forked child that lives, and does nothing, for the length of the block.\"\"\"
    (word, to_child) = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(to_child)
        os.read(word, 1)
        os._exit(0)
    try:
        yield
    finally:
        os.close(to_child)
        os.waitpid(pid, 0)
"""


def another_thread_may_fork() -> bool:
    def begin_and_leave_off() -> bool:
        may = bool(forks._forking.acquire(blocking=False))
        if may:
            forks._forking.release()
        return may

    with ThreadPoolExecutor(1) as other:
        return other.submit(begin_and_leave_off).result()


async def test_nobody_forks_while_something_is_had_that_a_child_would_not_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(
        embedded_config(tmp_path, NOWHERE, stop__deadline="0s", unix__stream=str(tmp_path / "http.sock")), listens=True
    )
    role, found = collector._queue._flusher_role, {}  # type: ignore[attr-defined]  # of SqliteQueue

    def watch(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def look(*arguments: Any) -> Any:
            found[name] = another_thread_may_fork()
            return call(*arguments)

        monkeypatch.setattr(owner, name, look)

    for owner, name in (
        (role, "acquire"),
        (role, "release"),
        (collector._listeners.http, "start"),
        (UnixSocket, "close"),
    ):
        watch(owner, name)
    async with collector:
        assert another_thread_may_fork()
    assert found == dict.fromkeys(["acquire", "start", "close", "release"], False)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_listens_is_the_parents_alone_and_can_be_had_again_after_its_stop(tmp_path: Path, loop: str) -> None:
    source = f"""
async def main():
    async with Collector(config(http__listen="127.0.0.1:0", udp__listen="127.0.0.1:0"), listens=True) as collector:
        http, udp = collector.http_address, collector.udp_address
        reader, writer = await asyncio.open_connection(*http)
        writer.write(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        alive = contextlib.ExitStack()
        alive.enter_context(child())
        second, second_writer = await asyncio.open_connection(*http)  # the parent's listens as before
        second_writer.write(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        assert (await second.readline()).startswith(b"HTTP/1.1 200 ")
    with alive:
        await asyncio.wait_for(reader.read(), 100)  # up to its end, that comes though the child lives
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(http):
            raise AssertionError("somebody listens")
        writer.close()
        second_writer.close()
        async with Collector(config(http__listen=str(http), udp__listen=str(udp)), listens=True) as collector:
            assert (collector.http_address, collector.udp_address) == (http, udp)

with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
    runner.run(main())
"""
    files = {f"unix__{kind}": str(tmp_path / f"{kind}.sock") for kind in ("stream", "datagram")}
    ended(program(tmp_path, HEAD + source, **files))


def test_sockets_that_were_passed_are_the_childs_too(tmp_path: Path) -> None:
    source = """
bound = socket.create_server(("127.0.0.1", 0))
address = bound.getsockname()
word, to_child = os.pipe()

async def serve_in_child():
    async with Collector(config(), listens=True, sockets=[bound]):
        await asyncio.to_thread(os.read, word, 1)

def fork():
    pid = os.fork()
    if not pid:
        asyncio.run(serve_in_child())
        os._exit(0)
    return pid

async def main():
    async with Collector(config(), listens=True, sockets=[bound]):
        pid = await asyncio.to_thread(fork)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    os.write(to_child, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer.close()

asyncio.run(main())
"""
    ended(program(tmp_path, HEAD + source))


@pytest.mark.parametrize(
    "use", ["await made.start()", "running.record_nowait(email='user@example.com', event_name='saved')"]
)
def test_a_collector_of_the_parent_says_in_a_child_whose_it_is(tmp_path: Path, use: str) -> None:
    source = f"""
made = Collector(config())

async def main():
    async with Collector(config()) as running:
        pid = os.fork()
        if not pid:
            try:
                {use}
            except Unusable as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)

asyncio.run(main())
"""
    said = ended(program(tmp_path, f"from collector import Unusable\n{HEAD}{source}"))
    assert said == "this Collector belongs to the process that made it; make another one after a fork\n"


def test_a_stop_in_a_child_stops_nothing_of_its_parent(tmp_path: Path) -> None:
    source = """
async def main():
    async with Collector(config(http__listen="127.0.0.1:0"), listens=True) as collector:
        pid = os.fork()
        if not pid:
            await collector.stop()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        reader, writer = await asyncio.open_unix_connection(os.environ["COLLECTOR_UNIX__STREAM"])
        writer.write(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()

asyncio.run(main())
"""
    ended(program(tmp_path, HEAD + source, unix__stream=str(tmp_path / "stream.sock")))


def test_a_child_records_though_its_parent_is_the_one_that_listens(tmp_path: Path) -> None:
    source = """
with SyncCollector(config(), listens=True) as collector:
    record(1)
    pid = os.fork()
    if not pid:
        record(2)
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert Path(os.environ["COLLECTOR_UNIX__STREAM"]).is_socket()
"""
    files = {"unix__stream": str(tmp_path / "stream.sock")}
    ended(program(tmp_path, HEAD + source, http__listen="127.0.0.1:0", **files))
    assert waiting(tmp_path) == 2


def test_a_handler_of_signals_may_fork_amid_a_fork(tmp_path: Path) -> None:
    source = """
def fork():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)

def fork_amid_a_fork(line):
    left = line

    def trace(frame, event, _):
        nonlocal left
        if event == "line" and frame.f_code.co_filename != "<string>":
            left -= 1
            if left == 0:
                fork()  # as a handler would
        return trace

    sys.settrace(trace)
    fork()
    sys.settrace(None)
    return left <= 0

forks = 0
while fork_amid_a_fork(forks + 1):
    forks += 1
    record(forks)
print(forks)
"""
    forks = int(ended(program(tmp_path, source)))
    assert waiting(tmp_path) == forks > 15
