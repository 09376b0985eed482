"""Events in datagrams: over UDP, where nobody waits for an answer, and over a Unix socket, where senders may wait.

A datagram holds one event, an array of events, or one event a line. What was read is stored in the order of arrival,
many datagrams to a commit. What is not read yet waits in the kernel: while the queue is slow, or has no room, nothing
more is read. The kernel then makes senders to a Unix socket wait; datagrams over UDP it drops, and counts.

There is no answer, so every loss is counted and said in the log: datagrams that are malformed or too large, what the
kernel dropped, what a full queue did not take.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from pathlib import Path

from collector.clock import Clock
from collector.config.kinds import Address
from collector.errors import CollectorError, QueueBusy, QueueFull, Retryable
from collector.intake import Intake, Report
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics, Verdicts
from collector.sources.receiver import Receiver

log = get_logger(__name__)

MAX_DATAGRAM_BYTES = 65_535
"""No UDP datagram is larger (RFC 768). A larger one on a Unix socket is refused."""

DRAIN_DATAGRAMS = 1024
"""Read in one go before others get their turn: about 2 ms of work."""

STORE_DATAGRAMS = 8192
"""Put into the queue at once: some 20 ms of work, during which nobody else gets a turn."""

HELD_SENDER_DATAGRAMS = 8
"""After so many from a Unix socket their sender was probably made to wait, and sends on as soon as they are read."""
HELD_SENDER_LOOKS = 4
"""So often in vain we then look for more before others get their turn: until then the sender would wait again, which
costs it and us more than to look (123,000/s without, 177,000/s with it)."""

MAX_UNSTORED_BYTES = 8 * 2**20
"""Datagrams in memory that are not stored yet: above it nothing more is read. About 40,000 events, or 0.2 s."""

RETRY_SECONDS = 0.05
"""How long to wait before offering datagrams again to a queue that is busy or full."""

SAY_SECONDS = 10.0
"""What was lost is said at most this often, with counts."""

LOOK_SECONDS = 1.0
"""How often the kernel's count is looked at while datagrams come; it is also with each scrape of the metrics."""

STOP_SECONDS = 2.0
"""How long a stop goes on reading from senders who do not stop."""

SO_MEMINFO, SK_MEMINFO_DROPS = 55, 8  # of Linux: what a socket has of memory, and has dropped (sock_diag(7))
_MEMORY = struct.Struct("=9I")
_let_others_run = getattr(os, "sched_yield", lambda: None)  # such as a sender who has to share this processor
SO_RCVBUFFORCE = 33  # of Linux: as SO_RCVBUF, above the limit, for who may administer the network (socket(7))
MAX_RECEIVE_BUFFER_BYTES = 2**30 - 1  # of Linux: it keeps twice the size in an int, and gives who asks for more this

UNIX_QUEUE_LIMIT = Path("/proc/sys/net/unix/max_dgram_qlen")
UNIX_QUEUE_DATAGRAMS = 512
"""With so many, senders over a Unix socket came from two thirds of UDP's speed to all of it (bench/README.md). systemd
sets so many when it boots a machine; what a container has is its own, and the kernel's default."""


def bind_udp(listen: Address, *, receive_buffer_bytes: int) -> socket.socket:
    """A bound UDP socket; says so where the kernel grants it less memory than asked for. Raises OSError."""
    ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
    )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.bind(address)
        try:
            bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
        except OSError:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    except OSError:
        bound.close()
        raise
    say_if_small(bound, receive_buffer_bytes, f"sysctl -w net.core.rmem_max={receive_buffer_bytes}")
    return bound


def say_if_small(bound: socket.socket, receive_buffer_bytes: int, remedy: str) -> None:
    """Says so where less kernel memory than that waits for datagrams."""
    granted = receive_buffer_size(bound)
    if granted < min(receive_buffer_bytes, MAX_RECEIVE_BUFFER_BYTES):
        log.warning("udp.receive_buffer_capped", asked_bytes=receive_buffer_bytes, granted_bytes=granted, remedy=remedy)


def say_if_short() -> None:
    """Says so where few datagrams wait in a Unix socket before their sender does: each such wait costs two switches.

    The kernel's default is 10, and a socket has what was in force when it was made (unix(7)).
    """
    with contextlib.suppress(OSError, ValueError):
        allowed = int(UNIX_QUEUE_LIMIT.read_text(encoding="ascii"))
        if allowed < UNIX_QUEUE_DATAGRAMS:
            log.info(
                "unix.datagram_queue_short",
                datagrams=allowed,
                meaning="a sender waits for us after so many, and is a quarter slower than it could be",
                remedy=f"sysctl -w net.unix.max_dgram_qlen={UNIX_QUEUE_DATAGRAMS}, then start the collector again",
            )


def receive_buffer_size(bound: socket.socket) -> int:
    """Bytes of kernel memory that wait for datagrams; the kernel says twice what it was asked for (socket(7))."""
    return bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


class DatagramSource:
    """Reads one bound datagram socket. `start` it in the loop that will serve it.

    `holds_senders` says that what is not read makes senders wait: nothing is dropped then because the queue is full.
    """

    def __init__(self, name: str, intake: Intake, *, holds_senders: bool, clock: Clock, metrics: Metrics) -> None:
        self._name = name
        self._intake = intake
        self._holds_senders = holds_senders
        self._clock = clock
        self._verdicts = Verdicts(metrics.events, name)
        self._refusals = metrics.refusals
        self._socket: socket.socket
        self._receiver: Receiver
        self._unstored: list[bytes] = []
        self._unstored_bytes = 0
        self._storing: asyncio.Task[None] | None = None
        self._is_reading = False
        self._is_stopping = False
        self._is_lent = False
        self._kernel_drops = 0
        self._look_at = 0.0
        self._lost: Counter[str] = Counter()
        self._sample = ""
        self._saying: asyncio.TimerHandle | None = None

    @property
    def unstored_bytes(self) -> int:
        """Bytes of datagrams in memory whose events are not stored yet."""
        return self._unstored_bytes

    def start(self, bound: socket.socket, *, is_lent: bool = False) -> None:
        """Events that come over `bound` are stored from now on.

        One that `is_lent` stays open elsewhere: what was not read from it when this stops, whoever is next will read.
        """
        self._socket, self._is_lent = bound, is_lent
        self._receiver = Receiver(bound, MAX_DATAGRAM_BYTES + 1)
        self._read_on()

    async def stop(self) -> None:
        """The socket is closed; what had come is stored, or counted as lost where the queue does not take it now."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._pause()
        if not self._is_lent:
            with contextlib.suppress(OSError):  # UDP has no such thing
                self._socket.shutdown(socket.SHUT_RD)  # who sends to a Unix socket learns it; what waits there stays
        if self._storing is not None:
            await self._storing
        deadline = self._clock.monotonic() + STOP_SECONDS
        while not self._is_lent and self._drain() and self._clock.monotonic() < deadline:
            await self._store_until_none()
        await self._store_until_none()
        self.count_kernel_drops()
        self._socket.close()
        self._say()

    def count_kernel_drops(self) -> int:
        """How many datagrams the kernel has dropped on this socket so far; those that are new are said."""
        drops = _dropped_by_kernel(self._socket)
        if drops > self._kernel_drops:
            self._lose("kernel_drop", drops - self._kernel_drops, "the receive buffer was full")
            self._kernel_drops = drops
        return self._kernel_drops

    def _read_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._on_readable)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def _on_readable(self) -> None:
        count = self._drain()
        looks = HELD_SENDER_LOOKS if self._holds_senders and count >= HELD_SENDER_DATAGRAMS else 0
        while looks and count < DRAIN_DATAGRAMS:
            _let_others_run()
            more = self._drain()
            count += more
            looks = HELD_SENDER_LOOKS if more else looks - 1
        if self._unstored and self._storing is None:
            self._storing = asyncio.get_running_loop().create_task(self._store_until_none())

    def _drain(self) -> int:
        """Reads what is there, up to a limit; how many datagrams that were."""
        room = MAX_UNSTORED_BYTES - self._unstored_bytes
        count = 0
        try:
            while count < DRAIN_DATAGRAMS and room >= 0:
                datagrams = self._receiver.receive(1 + room // MAX_DATAGRAM_BYTES)
                if not datagrams:
                    break
                count += len(datagrams)
                size = sum(map(len, datagrams))
                if size > MAX_DATAGRAM_BYTES:  # one of them may be too large
                    datagrams = [datagram for datagram in datagrams if self._is_sound(datagram)]
                    size = sum(map(len, datagrams))
                self._unstored += datagrams
                self._unstored_bytes += size
                room -= size
        except OSError as error:  # an ICMP answer to something that this socket never sent, for one
            self._lose("receive_failed", 1, str(error))
        if room < 0:
            self._pause()
        return count

    def _is_sound(self, datagram: bytes) -> bool:
        if len(datagram) <= MAX_DATAGRAM_BYTES:
            return True
        self._lose("too_large", 1, f"larger than {MAX_DATAGRAM_BYTES} bytes")
        return False

    async def _store_until_none(self) -> None:
        while self._unstored:
            await self._store_some()
            if not self._is_stopping:
                self._read_on()
            if self._clock.monotonic() >= self._look_at:
                self._look_at = self._clock.monotonic() + LOOK_SECONDS
                self.count_kernel_drops()
        self._storing = None

    async def _store_some(self) -> None:
        datagrams, self._unstored = self._unstored[:STORE_DATAGRAMS], self._unstored[STORE_DATAGRAMS:]
        try:
            await self._store(datagrams)
        finally:
            self._unstored_bytes -= sum(map(len, datagrams))

    async def _store(self, datagrams: list[bytes]) -> None:
        """Stores all in their order: at once where the queue has room for that, else in parts as large as it takes.

        What has come together may be more than the queue ever takes at once, however often it is asked.
        """
        report = Report()
        size = len(datagrams)
        while datagrams:
            part = datagrams[:size]
            try:
                await self._intake.take_datagrams(part, report)
            except Retryable as error:
                if isinstance(error, QueueFull | QueueBusy) and len(part) > 1:
                    size = len(part) // 2
                    await asyncio.sleep(0)  # each try parses the part again
                    continue
                if self._is_stopping or not (self._holds_senders or isinstance(error, QueueBusy)):
                    self._lose("queue_refused", len(datagrams), str(error))
                    break
                size = 1  # to ask again costs little then
                await self._clock.sleep(RETRY_SECONDS)
                continue
            except CollectorError as error:
                self._lose("queue_refused", len(datagrams), str(error))
                break
            except Exception:
                log.exception("datagrams.crashed", source=self._name)
                self._lose("crashed", len(part), "an error of the collector")
            datagrams = datagrams[len(part) :]
            size *= 2
        self._verdicts.count(report.accepted, report.duplicates, report.rejected)
        if report.rejected:
            self._lose("rejected_event", report.rejected, _without_values(report.errors[0].reason), counted=True)

    def _lose(self, reason: str, count: int, sample: str, *, counted: bool = False) -> None:
        """Counts a loss, and says it together with others of the next seconds."""
        if not counted:
            self._refusals.labels(self._name, reason).inc(count)
        self._lost[reason] += count
        self._sample = sample
        if self._saying is None and not self._is_stopping:
            self._saying = asyncio.get_running_loop().call_later(SAY_SECONDS, self._say)

    def _say(self) -> None:
        if self._saying is not None:
            self._saying.cancel()
            self._saying = None
        if self._lost:
            log.error("datagrams.lost", source=self._name, **self._lost, latest_reason=self._sample)
            self._lost.clear()


def _without_values(reason: str) -> str:
    """What of a rejection's reason may stand in a log: what was expected, not what somebody sent."""
    _, expected, what = reason.rpartition("; expected ")
    return f"expected {what}" if expected else reason.partition(":")[0]


def _dropped_by_kernel(bound: socket.socket) -> int:
    """How many datagrams the kernel has dropped on a UDP socket since it was made; 0 for others, and elsewhere."""
    if bound.family not in {socket.AF_INET, socket.AF_INET6}:
        return 0
    try:
        return int(_MEMORY.unpack(bound.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMORY.size))[SK_MEMINFO_DROPS])
    except (OSError, struct.error):
        return 0
