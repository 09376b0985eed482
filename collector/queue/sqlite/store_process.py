"""The store in a process of its own, which has nothing to do but to write.

Parent and child talk over a pair of Unix sockets, in frames: four bytes of length, one byte of kind, a payload.
Operations and what became of them are MessagePack, which costs a third of a microsecond each; all else comes once a
second at most, and is pickled.

    parent                              child
    OPERATIONS, as each turn of         reads all that has come, commits it in groups
    the loop has brought them           COMMIT, once for each group
    OPEN, STEP                          ANSWER

The child is forked before the parent has a loop or threads, closes what it has inherited of files and sockets, and
shares most of the parent's memory. Signals that end a program are its parent's to heed. When that is gone the kernel
kills it, and with it what was not acknowledged; where it dies itself, whatever was asked of it fails, and so does the
agent.
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec

from collector.clock import Clock
from collector.errors import CollectorError, QueueBroken, QueueUnavailable
from collector.observe.logs import get_logger, say_left_out
from collector.queue.sqlite.operations import Done, Operation
from collector.queue.sqlite.step_thread import resolve
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.writer import MAX_GROUP_BYTES, Commit, T, Take, make_commit

log = get_logger(__name__)

HEADER = struct.Struct("<IB")

ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals that are sent to whole groups of processes."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""

RECEIVE_BYTES = 2**18
"""The child always has room for so much of a frame, which is more than a body of a thousand events."""
SOCKET_BYTES = 2**20
"""Asked for; the kernel gives as much as net.core.wmem_max allows. What does not fit waits in the parent's memory."""


class Kind(IntEnum):
    """What a frame's payload is."""

    OPERATIONS = 1
    """A list of operations."""
    COMMIT = 2
    """Seconds, and a Done for each operation; the store is not in trouble."""
    OPEN = 3
    """Pickled: the arguments of a Store."""
    STEP = 4
    """Pickled: what is to be called with the store."""
    ANSWER = 5
    """Pickled: what that has returned, or raised, and the store's trouble."""
    FAILURE = 6
    """Pickled: a Commit that is not plainly done, and the store's trouble."""


_encode = msgspec.msgpack.Encoder().encode
_decode_operations = msgspec.msgpack.Decoder(list[Operation]).decode
_decode_commit = msgspec.msgpack.Decoder(tuple[float, list[Done]]).decode


def _frame(kind: Kind, payload: bytes) -> bytes:
    return b"".join((HEADER.pack(len(payload), kind), payload))


class _Frames:
    """What has come of a stream of frames, and is not taken yet."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Each frame that is complete with this."""
        received = self._received
        received += data
        while len(received) >= HEADER.size:
            length, kind = HEADER.unpack_from(received)
            end = HEADER.size + length
            if len(received) < end:
                break
            payload = bytes(memoryview(received)[HEADER.size : end])
            del received[:end]
            yield Kind(kind), payload


class StoreProcess(asyncio.Protocol):
    """A `Writer`: the parent's end. Made by `fork`."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel
        self._frames = _Frames()
        self._given: list[Operation] = []  # in this turn of the loop
        self._uncommitted = 0  # operations that were given and not heard of
        self._steps: deque[tuple[asyncio.Future[Any], Take[Any] | None]] = deque()
        self._end: str | None = None  # of the child
        self._is_open = False
        self._gone = asyncio.Event()
        self._committed: Callable[[Commit], None]
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop
        self.trouble: CollectorError | None = None

    @classmethod
    def fork(cls) -> "StoreProcess":
        """The child is there and waits. There must be no other thread yet, no event loop, and no connection to a queue.

        Raises QueueUnavailable where the system has no room for it.
        """
        parent = os.getpid()
        with contextlib.ExitStack() as ends:
            try:
                ours, theirs = map(ends.enter_context, socket.socketpair())
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
                heeded = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the child ignores them
                try:
                    pid = os.fork()
                    if pid == 0:
                        _live(theirs, parent)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, heeded)
            except OSError as error:
                raise QueueUnavailable(f"no process can be started to write the queue: {error.strerror}") from error
            ends.pop_all()
        theirs.close()
        ours.setblocking(False)
        return cls(ours, pid)

    async def open(
        self, directory: Path, *, batch_events: int, clock: Clock, committed: Callable[[Commit], None]
    ) -> None:
        """See `Writer.open`."""
        self._loop = asyncio.get_running_loop()
        self._committed = committed
        await self._loop.create_connection(lambda: self, sock=self._channel)
        await self._ask(Kind.OPEN, pickle.dumps((directory, batch_events, clock)), None)
        self._is_open = True

    def give(self, operation: Operation) -> None:
        """See `Writer.give`."""
        if self._end is not None:
            raise QueueBroken(self._end)
        if not self._given:
            self._loop.call_soon(self._send_given)
        self._given.append(operation)
        self._uncommitted += 1

    def run(self, step: Callable[[Store], T], take: Take[T] | None = None) -> asyncio.Future[T]:
        """See `Writer.run`."""
        self._send_given()
        return self._ask(Kind.STEP, pickle.dumps(step), take)

    async def close(self) -> None:
        """See `Writer.close`."""
        try:
            if self._is_open and self._end is None:
                await self.run(Store.close)
        finally:
            self._is_open = False
            if self._transport is None:
                self._channel.close()
                _end(self.pid)
            elif self._end is None:
                self._transport.write_eof()
                await self._gone.wait()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        for kind, payload in self._frames.feed(data):
            if kind is Kind.COMMIT:
                seconds, done = _decode_commit(payload)
                self.trouble = None
                self._hear(Commit(done, seconds))
            elif kind is Kind.FAILURE:
                commit, self.trouble = pickle.loads(payload)  # noqa: S301 - from a process that we have forked
                self._hear(commit)
            else:
                result, failure, self.trouble = pickle.loads(payload)  # noqa: S301 - the same
                self._answer(result, failure)

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio.BaseProtocol. The child has ended, is about to, or is of no use any more."""
        self._end = f"the process that writes the queue has ended{_end(self.pid)}; start the collector again"
        self.trouble = QueueBroken(self._end)
        if self._is_open:
            log.error("queue.writer_died", error=self._end)
        if self._uncommitted:
            self._hear(Commit([QueueBroken(self._end)] * self._uncommitted, 0.0))
        while self._steps:
            self._answer(None, QueueBroken(self._end))
        self._gone.set()

    # Steps

    def _send_given(self) -> None:
        if self._given and self._transport is not None and self._end is None:
            self._transport.write(_frame(Kind.OPERATIONS, _encode(self._given)))
            self._given = []

    def _ask(self, kind: Kind, payload: bytes, take: Take[T] | None) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = self._loop.create_future()
        if self._transport is None or self._end is not None:
            answer.set_exception(QueueBroken(self._end or "the queue is not open"))
        else:
            self._steps.append((answer, take))
            self._transport.write(_frame(kind, payload))
        return answer

    def _hear(self, commit: Commit) -> None:
        self._uncommitted -= len(commit.results)
        self._committed(commit)

    def _answer(self, result: object, failure: BaseException | None) -> None:
        resolve(*self._steps.popleft(), result, failure)


def _end(pid: int) -> str:
    """How a child has ended, for people; one that has not is killed: nothing is acknowledged that it may still do."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):  # it has been reaped for us, where SIGCHLD is ignored
        return ""
    code = os.waitstatus_to_exitcode(status)
    return f" by signal {-code}" if code < 0 else f" with status {code}"


def _live(channel: socket.socket, parent: int) -> NoReturn:
    """The child's life."""
    status = 1
    try:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        _die_with(parent)
        gc.freeze()  # what it shares with the parent is never looked at again, and so stays shared
        _close_all_but(channel.fileno())
        with contextlib.suppress(RuntimeError, OSError):  # there is no standard error
            faulthandler.enable()  # where it was, when a watchdog's SIGABRT comes
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("queue-writer", encoding="ascii")  # `ps` and `top` tell it apart
        with contextlib.suppress(ConnectionError):  # the parent died with an answer on its way
            _Child(channel).serve()
        status = 0
    except BaseException as error:
        log.critical("queue.writer_failed", exc_info=error)
    finally:
        os._exit(status)


def _die_with(parent: int) -> None:
    with contextlib.suppress(AttributeError):  # elsewhere than on Linux it ends when it next reads or answers
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _close_all_but(descriptor: int) -> None:
    """Closes what was inherited, but for the standard streams."""
    others: Iterable[int] = range(os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(OSError):
        others = [int(each.name) for each in Path("/dev/fd").iterdir()]
    for other in others:
        if other > 2 and other != descriptor:
            with contextlib.suppress(OSError):  # the one by which the list was read
                os.close(other)


class _Child:
    """What the child does."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._given: deque[Operation] = deque()
        self._given_bytes = 0
        self._store: Store

    def serve(self) -> None:
        """Until the parent's end is closed."""
        for kind, payload in self._arrivals():
            if kind is Kind.OPERATIONS:
                operations = _decode_operations(payload)
                self._given.extend(operations)
                self._given_bytes += sum([operation.bytes for operation in operations])
                if self._given_bytes < MAX_GROUP_BYTES:
                    continue
            self._commit_given()
            if kind in {Kind.OPEN, Kind.STEP}:
                self._answer(kind, payload)
                say_left_out()  # there are steps once a second

    def _arrivals(self) -> Iterator[tuple[Kind | None, memoryview]]:
        """Each frame, and None wherever no more has come so far. A payload lasts until the next is asked for."""
        header = memoryview(bytearray(HEADER.size))
        room = memoryview(bytearray(RECEIVE_BYTES))
        while True:
            try:
                size = self._channel.recv_into(header, flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                yield None, room[:0]
                size = self._channel.recv_into(header)
            if not size or not self._fill(header[size:]):
                return
            length, kind = HEADER.unpack(header)
            payload = room[:length] if length <= RECEIVE_BYTES else memoryview(bytearray(length))
            if not self._fill(payload):
                return
            yield Kind(kind), payload

    def _fill(self, view: memoryview) -> bool:
        """Waits for so many bytes; whether they came before the end."""
        while view:
            size = self._channel.recv_into(view, flags=socket.MSG_WAITALL)  # fewer when we were stopped meanwhile
            if not size:
                return False
            view = view[size:]
        return True

    def _commit_given(self) -> None:
        while self._given:
            commit = make_commit(self._store.transact, self._given)
            trouble = self._store.trouble
            if trouble is None and all(type(result) is Done for result in commit.results):
                frame = _frame(Kind.COMMIT, _encode((commit.seconds, commit.results)))
            else:
                results = [_portable(each) if isinstance(each, BaseException) else each for each in commit.results]
                frame = _frame(Kind.FAILURE, pickle.dumps((Commit(results, commit.seconds), trouble)))
            self._channel.sendall(frame)
            if self._store.is_crowded:
                self._store.make_room()
        self._given_bytes = 0

    def _answer(self, kind: Kind, payload: memoryview) -> None:
        result: Any = None
        failure: BaseException | None = None
        asked = pickle.loads(payload)  # noqa: S301 - from the process that has forked us
        try:
            if kind is Kind.OPEN:
                directory, batch_events, clock = asked
                self._store = Store(directory, batch_events=batch_events, clock=clock)
            else:
                result = asked(self._store)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            failure = _portable(error)
        trouble = self._store.trouble if failure is None or kind is Kind.STEP else None
        self._channel.sendall(_frame(Kind.ANSWER, pickle.dumps((result, failure, trouble))))


def _portable(error: BaseException) -> BaseException:
    """The same for the other process. What nobody foresaw says where it was raised."""
    try:
        if not isinstance(error, CollectorError) and not hasattr(error, "__notes__"):
            error.add_note("In the process that writes the queue:\n" + "".join(traceback.format_exception(error)))
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - an error that takes more than its message
        return CollectorError(f"{type(error).__name__}: {error}")
    return error
