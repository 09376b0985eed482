"""The store in a process of its own keeps the queue's contract; and what becomes of either without the other."""

import asyncio
import errno
import logging
import os
import pickle
import select
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.cli.run import _configure
from collector.config.model import Log
from collector.errors import ChunkFailed, CollectorError, DiskFull, QueueBroken, QueueUnavailable
from collector.queue.base import Batch, Queue, Verdict
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.store_process import Kind, StoreProcess, _frame, _Frames
from collector.queue.sqlite.writer import Commit
from tests.fake_clock import FakeClock
from tests.patience import PATIENCE_SECONDS, until
from tests.queue.contract import QueueContract, lease, lease_all, numbers_of
from tests.queue.samples import batch, child, hear, remembered, roomy, sqlite_queue, tell, waiting_numbers

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


Opener = Callable[..., Awaitable[SqliteQueue]]


def writer_of(queue: SqliteQueue) -> StoreProcess:
    assert isinstance(queue._writer, StoreProcess)
    return queue._writer


def state_of(process: int) -> str:
    """What the kernel says it does: R runs, S sleeps, T is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]


@pytest.fixture
async def open_queue(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Opener]:
    """Opens queues that processes of their own write, and closes them at the test's end."""
    queues: list[SqliteQueue] = []

    async def open_one(*, in_one_process: bool = False) -> SqliteQueue:
        clock.advance(0.001)  # no two lives of a queue share an instant
        writer = None if in_one_process else StoreProcess.fork()
        queue = sqlite_queue(tmp_path, max_bytes=10**8, max_uncommitted_bytes=10**8, clock=clock, writer=writer)
        queues.append(queue)
        await queue.open()
        return queue

    yield open_one
    for queue in queues:
        await queue.close()


@pytest.fixture
async def queue(open_queue: Opener) -> SqliteQueue:
    return await open_queue()


class TestSqliteQueueInTwoProcesses(QueueContract):
    """As SqliteQueue in one."""

    test_the_backlog_says_since_when_the_oldest_waits = None  # type: ignore[assignment]  # the child's clock is a copy

    @pytest.fixture
    async def queue(self, open_queue: Opener) -> Queue:
        queue = await open_queue()
        queue.use_limits(roomy())
        return queue


async def test_what_was_put_is_there_in_the_next_life(queue: SqliteQueue, open_queue: Opener, tmp_path: Path) -> None:
    assert await queue.put([batch("wiki", [1, 2, 3])]) == [Verdict(3)]
    await queue.close()
    assert waiting_numbers(tmp_path, "wiki") == [1, 2, 3]
    again = await open_queue()
    assert await again.put([batch("wiki", [2, 4])]) == [Verdict(1, (0,))]


async def test_puts_larger_than_the_sockets_between_the_processes_arrive_in_order(queue: SqliteQueue) -> None:
    large = [Batch("wiki", batch("wiki", [number]).keys, b'"%s"' % (b"x" * 2**21)) for number in range(5)]
    small = [batch("chat", range(number, number + 5)) for number in range(100, 200, 5)]
    puts = [queue.put([each]) for pair in zip(large, small, strict=False) for each in pair]
    puts += [queue.put([each]) for each in small[5:]]
    assert await asyncio.gather(*puts) == [[Verdict(1)], [Verdict(5)]] * 5 + [[Verdict(5)]] * 15
    assert queue.uncommitted_bytes == 0
    assert numbers_of(*await lease_all(queue, "chat")) == list(range(100, 200))


async def test_what_comes_while_a_commit_runs_is_one_next_commit(queue: SqliteQueue) -> None:
    writer = writer_of(queue)
    commits, heard = [], writer._committed

    def committed(commit: Commit) -> None:
        commits.append(len(commit.results))
        heard(commit)

    writer._committed = committed
    os.kill(writer.pid, signal.SIGSTOP)
    puts = [queue.put([batch("wiki", [number])]) for number in range(3)]
    await asyncio.sleep(0)  # that turn's are sent
    puts += [queue.put([batch("wiki", [number])]) for number in range(3, 9)]
    await asyncio.sleep(0)
    os.kill(writer.pid, signal.SIGCONT)
    assert await asyncio.gather(*puts) == [[Verdict(1)]] * 9
    assert commits == [9]


async def test_a_writer_that_is_stopped_amid_a_frame_reads_on_when_it_goes_on(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(queue)
    transport = writer._transport
    assert transport is not None
    with monkeypatch.context() as patch:
        given: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        patch.setattr(writer, "_transport", Mock(write=given.set_result))
        put = asyncio.ensure_future(queue.put([batch("wiki", range(20))]))
        frame = await given
    transport.write(frame[:-100])
    for _ in range(3):
        await until(lambda: state_of(writer.pid) == "S")  # it has read what there is, and waits for the rest
        os.kill(writer.pid, signal.SIGSTOP)
        await until(lambda: state_of(writer.pid) == "T")  # or the one signal would take the other away
        os.kill(writer.pid, signal.SIGCONT)
    transport.write(frame[-100:])
    assert await put == [Verdict(20)]


async def test_a_step_runs_after_the_puts_before_it_and_is_heard_of_in_its_turn(queue: SqliteQueue) -> None:
    heard: list[object] = []
    first = asyncio.ensure_future(queue.put([batch("wiki", [1])]))
    first.add_done_callback(lambda _: heard.append("first"))
    keys = writer_of(queue).run(Store.remembered_keys, take=heard.append)
    second = asyncio.ensure_future(queue.put([batch("wiki", [2])]))
    second.add_done_callback(lambda _: heard.append("second"))
    assert await keys == 1
    await asyncio.gather(first, second)
    assert sorted(map(str, heard)) == ["1", "first", "second"]
    assert heard.index(1) < heard.index("second")


async def test_what_a_step_raises_reaches_its_caller_and_the_next_one_runs(queue: SqliteQueue) -> None:
    writer = writer_of(queue)
    failing, following = writer.run(_fail), writer.run(Store.remembered_keys)
    assert await following == 0
    with pytest.raises(DiskFull, match="no room for tests") as raised:
        await failing
    assert raised.value.retry_after_seconds == 2.5


async def test_a_cancelled_caller_stops_neither_its_put_nor_its_step(queue: SqliteQueue, tmp_path: Path) -> None:
    put, step = queue.put([batch("wiki", [1])]), writer_of(queue).run(Store.remembered_keys)
    put.cancel()
    step.cancel()
    await queue.round_trip()
    assert waiting_numbers(tmp_path, "wiki") == [1]
    assert queue.waiting_events == 1


async def test_a_full_disk_is_the_queues_trouble_until_there_is_room_again(
    queue: SqliteQueue, clock: FakeClock
) -> None:
    await writer_of(queue).run(_let_it_grow_no_more)
    with pytest.raises(DiskFull):
        await queue.put([Batch("wiki", batch("wiki", [1]).keys, b'"%s"' % (b"x" * 2**20))])
    assert isinstance(queue.trouble, DiskFull)
    await writer_of(queue).run(_let_it_grow)
    maintaining = asyncio.create_task(queue.maintain())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while queue.trouble is not None:
            clock.advance(1)
            await asyncio.sleep(0.01)
    maintaining.cancel()
    assert await queue.put([batch("wiki", [1])]) == [Verdict(1)]


async def test_a_file_of_another_program_is_refused_and_no_process_is_left(tmp_path: Path, open_queue: Opener) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else" * 100)
    with pytest.raises(QueueBroken, match="is not a database"):
        await open_queue()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 - it does not wait


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_that_are_sent_to_all_do_not_end_who_writes(queue: SqliteQueue, number: signal.Signals) -> None:
    os.kill(writer_of(queue).pid, number)
    assert await queue.put([batch("wiki", [1])]) == [Verdict(1)]


async def test_who_writes_shares_no_socket_or_file_of_its_parent(open_queue: Opener, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "open").open("w") as file:
        queue = await open_queue()
        folder = Path(f"/proc/{writer_of(queue).pid}/fd")
        held = {link.readlink().name for link in folder.iterdir() if int(link.name) > 2}
        assert "open" not in held
        assert f"socket:[{os.fstat(server.fileno()).st_ino}]" not in held
        assert os.fstat(file.fileno()).st_ino
        assert (folder.parent / "comm").read_text() == "queue-writer\n"


async def test_a_process_that_cannot_be_started_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(QueueUnavailable, match="no process can be started to write the queue: Resource temporarily"):
        StoreProcess.fork()


async def test_a_defect_says_where_it_was_and_an_error_that_does_not_travel_what_it_was(queue: SqliteQueue) -> None:
    with pytest.raises(KeyError) as raised:
        await writer_of(queue).run(_break)
    assert "in _break" in "".join(raised.value.__notes__)
    with pytest.raises(CollectorError, match="ChunkFailed: half of it"):
        await writer_of(queue).run(_fail_oddly)
    assert await writer_of(queue).run(Store.remembered_keys) == 0


async def test_a_reload_of_the_log_is_in_force_there_too(queue: SqliteQueue) -> None:
    await writer_of(queue).run(partial(_configure, log=Log(level="error"), level=None))
    assert await writer_of(queue).run(_log_level) == logging.ERROR


async def test_a_process_that_is_never_opened_ends_when_it_is_closed() -> None:
    writer = StoreProcess.fork()
    await writer.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(writer.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait


async def test_where_who_writes_dies_nothing_is_acknowledged_and_the_queue_says_so(
    queue: SqliteQueue, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(queue)
    await queue.put([batch("wiki", [1])])
    os.kill(writer.pid, signal.SIGSTOP)
    waiting: list[Awaitable[object]] = [queue.put([batch("wiki", [2])]), queue.round_trip()]
    os.kill(writer.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_SECONDS):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [QueueBroken, QueueBroken]
    assert "the process that writes the queue has ended by signal 9" in str(outcomes[0])
    assert queue.uncommitted_bytes == 0
    assert isinstance(queue.trouble, QueueBroken)
    with pytest.raises(QueueBroken, match="signal 9"):
        await queue.put([batch("wiki", [3])])
    with pytest.raises(QueueBroken, match="signal 9"):
        await queue.round_trip()
    assert "queue.writer_died" in caplog.text


async def test_where_who_writes_dies_maintenance_ends_with_it(queue: SqliteQueue, clock: FakeClock) -> None:
    maintaining = asyncio.create_task(queue.maintain())
    os.kill(writer_of(queue).pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not maintaining.done():
            clock.advance(1)
            await asyncio.sleep(0.01)
    assert isinstance(maintaining.exception(), QueueBroken)


async def test_who_takes_delivery_over_waits_for_the_last_settlements_of_a_parent_that_died(
    queue: SqliteQueue, open_queue: Opener
) -> None:
    queue.take_flusher_role()
    await queue.put([batch("wiki", [1, 2, 3])])
    await queue.refresh()
    standby = await open_queue(in_one_process=True)
    os.kill(writer_of(queue).pid, signal.SIGSTOP)
    settling = asyncio.ensure_future(queue.settle(await lease(queue, "wiki")))
    queue._flusher_role.release()  # as the kernel does where the parent dies
    standby.take_flusher_role()
    with pytest.raises(QueueUnavailable, match="is its settler"):
        await standby.refresh()
    os.kill(writer_of(queue).pid, signal.SIGCONT)
    await settling
    await queue.close()
    await standby.refresh()
    assert (list(standby.backlog()), standby.waiting_events) == ([], 0)


PARENT = """
import asyncio, sys
from pathlib import Path
from collector.clock import Clock
from collector.queue.base import Batch
from collector.queue.sqlite.operations import Put
from collector.queue.sqlite.store_process import StoreProcess
from tests.queue.samples import batch

async def main(writer):
    heard = asyncio.Event()
    await writer.open(Path(sys.argv[1]), batch_events=10, clock=Clock(), committed=lambda _: heard.set())
    writer.give(Put.of([batch("wiki", [1])]))
    await heard.wait()
    print(writer.pid, flush=True)
    sys.stdin.readline()
    for number in range(2, 2000):
        writer.give(Put.of([batch("wiki", [number])]))
    await asyncio.sleep(3600)

asyncio.run(main(StoreProcess.fork()))
"""


@pytest.mark.parametrize("state", ["busy", "idle", "stopped"])
def test_where_its_parent_dies_who_writes_ends_too(tmp_path: Path, state: str) -> None:
    with child(PARENT, tmp_path) as parent:
        pid = int(hear(parent))
        writer = os.pidfd_open(pid)
        if state == "busy":
            tell(parent)
        elif state == "stopped":
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        readable, _, _ = select.select([writer], [], [], PATIENCE_SECONDS)  # once the process has ended
        os.close(writer)
        assert readable
    numbers = waiting_numbers(tmp_path, "wiki")
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(remembered(tmp_path)) == len(numbers)


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40))), st.lists(st.integers(0, 100)))
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(
    frames: list[tuple[Kind, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(_frame(kind, payload) for kind, payload in frames)
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    came: list[tuple[Kind, bytes]] = []
    received, start = _Frames(), 0
    for end in ends:
        came += received.feed(stream[start:end])
        start = end
    assert came == frames


def _log_level(_store: Store) -> int:
    return logging.getLogger("collector").level


def _break(_store: Store) -> None:
    raise KeyError("a defect")


def _fail_oddly(_store: Store) -> None:
    raise ChunkFailed("half of it", done=1, last=2)


def _fail(_store: Store) -> None:
    raise DiskFull("no room for tests", retry_after_seconds=2.5)


def _let_it_grow_no_more(store: Store) -> None:
    (pages,) = store._execute("PRAGMA page_count").fetchone()
    store._execute(f"PRAGMA max_page_count = {pages + 10}").fetchone()


def _let_it_grow(store: Store) -> None:
    store._execute(f"PRAGMA max_page_count = {2**30}").fetchone()


def test_the_errors_of_a_store_are_the_same_in_the_other_process() -> None:
    for error in (DiskFull("full", retry_after_seconds=3.0), QueueBroken("broken"), CollectorError("other")):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
