"""The thin client in whole programs: copied into another project, forked, and at the end of the interpreter."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

import collector.client
from tests.patience import PATIENCE_SECONDS
from tests.test_client import listening, stored, url_of

START = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import usage_client
assert usage_client.__file__.startswith(sys.argv[1])
client = usage_client.Client(sys.argv[2])

def record(number, email="user@example.com"):
    assert client.record(email=email, event_name="saved", timestamp_ms=number)
"""


async def said(folder: Path, url: str, source: str) -> str:
    """What a program prints that has a copy of the client and nothing but the standard library."""
    copy = folder / "project"
    copy.mkdir()
    shutil.copyfile(collector.client.__file__, copy / "usage_client.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-W", "error", "-c", START + source, str(copy), url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaints = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert (process.returncode, complaints.decode()) == (0, "")
    return out.decode()


@pytest.mark.parametrize("scheme", ["http", "unix", "udp", "unixgram"])
async def test_a_copy_of_the_file_works_alone_and_the_end_of_the_program_sends_what_is_left(
    tmp_path: Path, scheme: str
) -> None:
    async with listening(tmp_path) as collector:
        source = """
for number in range(1000):
    record(number)
print("site" in sys.modules, [name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names])
"""
        printed = await said(tmp_path, url_of(collector, tmp_path, scheme), source)
        assert printed == "False ['__main__', 'usage_client']\n"
        await stored(collector, 1000)


@pytest.mark.parametrize("scheme", ["http", "unix", "udp", "unixgram"])
async def test_forked_children_start_afresh_and_the_parent_goes_on(tmp_path: Path, scheme: str) -> None:
    """Each process sends its own events once: no buffer is sent twice, no connection is shared, no thread missing."""
    async with listening(tmp_path) as collector:
        source = """
import stat
def is_socket(file):
    try:
        return stat.S_ISSOCK(os.fstat(file).st_mode)
    except OSError:
        return False
record(0)
assert client.flush(100)  # a connection is open, a thread runs
record(1)  # and this one waits
children = []
for number in range(1, 4):
    child = os.fork()
    if not child:
        assert client.counters == (0,) * 9, client.counters
        assert not any(map(is_socket, range(3, 100)))
        record(number * 10)
        assert client.flush(100)
        record(number * 10 + 1)
        assert client.close(20)
        assert client.counters.sent == 2
        if sys.argv[2].partition(":")[0] in ("http", "unix"):
            assert client.counters.accepted == 2, client.counters
        os._exit(0)
    children.append(child)
    record(number + 1)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert client.close(20)
print(client.counters.sent, client.counters.retries)
"""
        assert await said(tmp_path, url_of(collector, tmp_path, scheme), source) == "5 0\n"
        await stored(collector, 5 + 6)
        assert collector._queue.waiting_events == 11


async def test_a_fork_amid_requests_leaves_no_child_hanging(tmp_path: Path) -> None:
    """The thread holds its locks and buffers at any moment: a child must wait for none of them, and free none."""
    async with listening(tmp_path) as collector:
        source = """
import gc
for number in range(20):
    for part in range(200):
        record(number * 1000 + part)
    client.flush(0)
    child = os.fork()
    if not child:
        record(number * 1000 + 999)
        gc.collect()
        sys.exit(0)  # the interpreter's end sends it
    assert os.waitpid(child, 0)[1] == 0
"""
        await said(tmp_path, url_of(collector, tmp_path, "http"), source)
        await stored(collector, 20 * 201)
        assert collector._queue.waiting_events == 20 * 201


async def test_a_fork_amid_an_answer_leaves_no_child_hanging(tmp_path: Path) -> None:
    """What reads the answer holds a lock, which nobody frees in the child: the child must not ask for it."""
    is_forked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await is_forked.wait()
        writer.close()

    async with await asyncio.start_unix_server(serve, str(tmp_path / "slow.sock")):
        source = """
import gc, logging, time
logging.disable()
record(0)
def is_reading():
    frames = sys._current_frames()
    frame = frames.get(client._thread.ident)
    while frame is not None:
        if frame.f_code.co_name == "_post" and "response" in frame.f_locals:
            return True
        frame = frame.f_back
    return False
while not is_reading():
    time.sleep(0.01)
child = os.fork()
if not child:
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""
        try:
            await said(tmp_path, f"unix:{tmp_path / 'slow.sock'}", source)
        finally:
            is_forked.set()


@pytest.mark.parametrize("scheme", ["http", "unixgram"])
async def test_a_handler_of_signals_may_record_and_flush_whatever_it_interrupts(tmp_path: Path, scheme: str) -> None:
    async with listening(tmp_path) as collector:
        source = """
import signal
handled = 0

def handle(*_):
    global handled
    handled += 1
    record(handled)
    client.flush(0)

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while handled < 1000:
    client.flush(0)
signal.setitimer(signal.ITIMER_REAL, 0)
assert client.flush(100)
print(client.counters.sent == handled)
"""
        assert await said(tmp_path, url_of(collector, tmp_path, scheme), source) == "True\n"
        await stored(collector, 1000)


@pytest.mark.parametrize("scheme", ["http", "unix", "udp", "unixgram"])
async def test_the_end_of_a_child_of_multiprocessing_sends_what_is_left(tmp_path: Path, scheme: str) -> None:
    """Forked, it leaves by os._exit, past what atexit has."""
    async with listening(tmp_path) as collector:
        source = """
import multiprocessing

def work(start):
    for number in range(start, start + 100):
        record(number)

children = [multiprocessing.get_context("fork").Process(target=work, args=(start,)) for start in (0, 100)]
for child in children:
    child.start()
for child in children:
    child.join()
print([child.exitcode for child in children])
"""
        assert await said(tmp_path, url_of(collector, tmp_path, scheme), source) == "[0, 0]\n"
        await stored(collector, 200)


@pytest.mark.parametrize("scheme", ["http", "unix", "udp", "unixgram"])
async def test_what_is_recorded_when_no_thread_can_begin_any_more_is_sent_all_the_same(
    tmp_path: Path, scheme: str
) -> None:
    """As Python 3.12 has it while a program ends: a handler of atexit may record the first event."""
    async with listening(tmp_path) as collector:
        source = """
import threading

def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")

threading.Thread.start = refuse
for number in range(1000):
    record(number)
print(client.close(timeout_seconds=20), client.close(), client.record(email="", event_name=""), client.counters.sent)
"""
        assert await said(tmp_path, url_of(collector, tmp_path, scheme), source) == "True True False 1000\n"
        await stored(collector, 1000)


async def test_the_end_of_the_program_does_not_wait_long_for_a_collector_that_is_away(tmp_path: Path) -> None:
    source = "import logging\nlogging.disable()\nrecord(1)\n"
    async with asyncio.timeout(PATIENCE_SECONDS / 2):
        await said(tmp_path, f"unix:{tmp_path / 'nobody.sock'}", source)


async def test_a_closed_client_stays_closed_in_a_child_and_a_blocking_one_works_there(tmp_path: Path) -> None:
    async with listening(tmp_path) as collector:
        source = """
blocking = usage_client.Client(sys.argv[2], blocking=True)
same = {"email": "user@example.com", "event_name": "saved"}
assert blocking.record(timestamp_ms=1, **same)
assert client.close(1)
child = os.fork()
if not child:
    assert not client.record(timestamp_ms=2, **same)
    assert client.close(0)
    assert blocking.record(timestamp_ms=3, **same)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert blocking.record(timestamp_ms=4, **same)
assert blocking.counters.retries == 0
"""
        await said(tmp_path, url_of(collector, tmp_path, "unix"), source)
        await stored(collector, 3)
