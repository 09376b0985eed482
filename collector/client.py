"""Sends usage events to a collector on this machine. Needs the standard library only: this file can be copied.

    client = Client("http://127.0.0.1:8787")  # or unix:/run/collector/http.sock, udp://127.0.0.1:8787, unixgram:/…
    client.record(email="user@example.com", event_name="saved")

`record` puts the event into memory; a thread, started with the first event, sends what is there. Over `http:` and
`unix:` the collector acknowledges, and what it cannot take now is sent again until it does: doing that twice is
harmless, because it drops duplicates. Over `unixgram:` the thread waits for the collector. Over `udp:` nobody knows
whether a datagram arrived; only where the kernel says that nobody listens is it sent again.

A forked child starts afresh, with an empty buffer, and the parent goes on with its own. The interpreter's end, and that
of a child of multiprocessing, sends what is left. Who leaves otherwise by `os._exit`, or by a signal that nobody
handles, must call `close` before.
"""

import atexit
import contextlib
import errno
import http.client
import json
import logging
import os
import random
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

DEFAULT_PORT = 8787
LINGER_SECONDS = 0.1
"""How long an event waits for others to be sent with it."""
BATCH_EVENTS = 500
"""So many are not waited for: they go at once. No request holds more."""
DATAGRAM_BYTES = 8 * 1024
"""Events share a datagram up to this size. A larger event has one for itself."""
MAX_DATAGRAM_BYTES = 65_507
"""The collector takes no larger one, and UDP over IPv4 carries none (65,535 less the headers)."""
MAX_ANSWER_BYTES = 2**20
BACKOFF_BASE_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0
MAX_RETRY_AFTER_SECONDS = 600.0
EXIT_SECONDS = 2.0
"""How long the end of the interpreter waits for what is not sent yet."""
SAY_SECONDS = 10.0
"""The log is told of each kind of trouble at most this often, with counts."""

log = logging.getLogger(__name__)


class NotRecorded(Exception):
    """Why the collector has not stored an event; the message has the reason, without what the event says."""


class Rejected(NotRecorded):
    """This event will never succeed."""


class Retryable(NotRecorded):
    """The same may succeed later; `retry_after_seconds` is the collector's own wish."""

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unusable(NotRecorded):
    """A person must act first: a wrong token, or no collector at this address."""


class Counters(NamedTuple):
    """What has become of the events so far.

    recorded = sent + failed + waiting. Where the collector answers, sent = accepted + duplicates + rejected.
    """

    recorded: int
    """Taken by `record`."""
    sent: int
    """Answered by the collector, or given to the kernel as datagrams."""
    accepted: int
    duplicates: int
    rejected: int
    failed: int
    """Too large for a datagram."""
    waiting: int
    """In memory; after a `close` that came to its end too early they are lost."""
    dropped: int
    """Not recorded: the buffer was full, or the client closed."""
    retries: int
    """Attempts that will be repeated."""


class Sent(NamedTuple):
    """What became of the first `events` lines of those that were to be sent."""

    events: int
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    failed: int = 0
    reason: str = ""


class Client:
    """Records events at the collector that `url` names. Every method may be called from any thread.

    `max_events` bounds what waits in memory, each as its JSON and 40 bytes: 10,000 ordinary events take 1.3 MB, and
    17 MB with the longest that a collector takes by default. `blocking` is for scripts: `record` then returns
    when the event is on the collector's disk (`http:` and `unix:` only). `timeout_seconds` is for one answer; a
    blocking `record` also tries again for so long.
    Raises ValueError for what cannot be.
    """

    def __init__(
        self,
        url: str = f"http://127.0.0.1:{DEFAULT_PORT}",
        *,
        token: str | None = None,
        max_events: int = 10_000,
        blocking: bool = False,
        timeout_seconds: float = 10.0,
    ) -> None:
        if not max_events >= 1:
            raise ValueError(f"max_events: {max_events!r}; expected at least 1")
        if not 0 < timeout_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout_seconds: {timeout_seconds!r}; expected a time in which an answer can come")
        self._url = url
        self._token = token
        self._room = max_events
        self._blocking = blocking
        self._timeout_seconds = timeout_seconds
        self._begin()
        if blocking and isinstance(self._transport, _Datagrams):
            raise ValueError("url: nobody acknowledges datagrams; blocking needs http: or unix:")
        _all.add(self)

    def record(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> bool:
        """Whether the event was taken: into memory, stamped now where it has no time, never waiting for anything.

        False when `max_events` wait, or after `close`. Where the client is `blocking`: True, once it is on disk; raises
        Rejected, Retryable or Unusable with the reason. Raises TypeError; all else is the collector's to judge.
        """
        if not isinstance(email, str):
            raise TypeError(f"email: expected text, not {type(email).__name__}")
        if not isinstance(event_name, str):
            raise TypeError(f"event_name: expected text, not {type(event_name).__name__}")
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        elif not isinstance(timestamp_ms, int):
            raise TypeError(f"timestamp_ms: expected whole milliseconds, not {type(timestamp_ms).__name__}")
        if app_id is not None and not isinstance(app_id, str):
            raise TypeError(f"app_id: expected text, not {type(app_id).__name__}")
        line = _line(timestamp_ms, email, event_name, app_id)
        if self._blocking:
            return self._record_now(line)
        waiting = self._waiting
        if len(waiting) >= self._room:
            return self._drop()
        waiting.append(line)
        if not self._some.is_set:
            self._wake()
        if len(waiting) >= BATCH_EVENTS and not self._hurry.is_set:
            self._hurry.set()
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Whether everything that was recorded before has been sent; False when the time is over."""
        if self._waiting:
            self._wake()
            self._hurry.set()
        with self._progress:
            goal = self._settled + len(self._waiting)
            patience_seconds = min(timeout_seconds, threading.TIMEOUT_MAX)
            self._progress.wait_for(lambda: self._settled >= goal or self._is_over, patience_seconds)
            return self._settled >= goal

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Whether everything recorded was sent in this time; nothing more is taken. Closing again is harmless."""
        with self._progress:
            if self._closing.is_set:
                return not self._waiting
            self._room = 0  # `record` finds no room
            self._give_up_at = time.monotonic() + timeout_seconds
            self._closing.set()
        self._some.set()
        self._hurry.set()
        self._work_here(timeout_seconds)
        is_done = self.flush(timeout_seconds)
        if self._thread is not None and is_done:
            self._thread.join(1.0)  # it has nothing left to do but to close its connection
        if self._blocking and self._sending.acquire(timeout=timeout_seconds):
            self._transport.close()
            self._sending.release()
        if not is_done:
            log.warning("usage events were not sent before the end: %d", len(self._waiting))
        return is_done

    @property
    def counters(self) -> Counters:
        """What has become of the events so far, in this process."""
        with self._progress:
            waiting = len(self._waiting)
            return Counters(
                recorded=self._settled + waiting,
                sent=self._settled - self._failed,
                accepted=self._accepted,
                duplicates=self._duplicates,
                rejected=self._rejected,
                failed=self._failed,
                waiting=waiting,
                dropped=self._dropped,
                retries=self._retries,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._url!r})"

    def _begin(self) -> None:
        """Everything that belongs to one process: for a new client, and again in a forked child."""
        self._waiting: deque[bytes] = deque()
        self._some = _Bell()  # something waits
        self._hurry = _Bell()  # do not linger
        self._closing = _Bell()
        if not self._room:  # the parent had closed it
            self._closing.set()
        self._progress = threading.Condition()
        self._sending = threading.Lock()  # of a blocking client: one request at a time
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._give_up_at = float("inf")
        self._settled = self._accepted = self._duplicates = self._rejected = self._failed = 0
        self._dropped = self._dropped_said = self._retries = self._failures_in_row = 0
        self._say_at: dict[str, float] = {}
        self._transport = _transport(self._url, self._token, self._timeout_seconds)

    def _forget(self) -> None:
        """This is a forked child: what was begun belongs to the parent."""
        self._transport.abandon()
        self._begin()

    def _wake(self) -> None:
        """The thread runs and knows that something waits."""
        with self._progress:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="collector-client", daemon=True)
                if self._thread is None:  # a signal's handler that has come in between has not made one
                    self._thread = thread
                    try:
                        thread.start()
                    except RuntimeError:  # no more threads, or the interpreter ends: the next event tries again
                        self._thread = None
                        return
                    _close_before_a_child_ends()
        self._some.set()

    def _drop(self) -> bool:
        with self._progress:
            self._dropped += 1
        return False

    def _record_now(self, line: bytes) -> bool:
        if self._closing.is_set:
            raise Unusable("the client is closed")
        give_up_at = time.monotonic() + self._timeout_seconds
        failures = 0
        while True:
            try:
                sent = self._send_now(line, give_up_at)
            except Retryable as error:
                failures += 1
                pause_seconds = _pause_seconds(failures, error)
                with self._progress:
                    self._retries += 1
                if time.monotonic() + pause_seconds >= give_up_at:
                    raise
                time.sleep(pause_seconds)
            else:
                self._settle(sent, waiting=0)
                if sent.rejected:
                    raise Rejected(sent.reason)
                return True

    def _send_now(self, line: bytes, give_up_at: float) -> Sent:
        if not self._sending.acquire(timeout=max(0.0, give_up_at - time.monotonic())):
            raise Retryable("other events of this client are still being sent")
        try:
            return self._transport.send([line])
        finally:
            self._sending.release()

    def _work(self) -> None:
        """The thread: until the client is closed, sends what waits."""
        while not self._may_end():
            self._some.wait()
            self._hurry.wait(LINGER_SECONDS)
            self._some.clear()  # before looking, so that whoever comes after it wakes this thread again
            self._hurry.clear()
            left = len(self._waiting)
            while left > 0 and not self._may_end():
                left -= self._try_to_send()
        self._transport.close()
        with self._progress:
            self._is_over = True
            self._progress.notify_all()

    def _work_here(self, timeout_seconds: float) -> None:
        """Where no thread can begin, as at a program's end with Python 3.12, who closes sends what waits."""
        with self._progress:
            if self._waiting:
                self._wake()
            if not self._waiting or self._thread is not None:
                return
            self._thread = threading.current_thread()
            self._transport = _transport(self._url, self._token, min(self._timeout_seconds, timeout_seconds))
        self._work()
        self._thread = None

    def _may_end(self) -> bool:
        return self._closing.is_set and (not self._waiting or time.monotonic() >= self._give_up_at)

    def _try_to_send(self) -> int:
        """Sends some of what waits; how many events need not be thought of any more. Pauses where it was in vain."""
        try:
            # By index: others append meanwhile, and a deque lets nobody iterate then.
            sent = self._transport.send([self._waiting[at] for at in range(min(len(self._waiting), BATCH_EVENTS))])
        except Exception as error:  # noqa: BLE001 - whatever it is, later events must not go the same way
            self._failures_in_row += 1
            with self._progress:
                self._retries += 1
            reason = str(error) if isinstance(error, NotRecorded) else f"an error of the client: {error!r}"
            self._say("usage events wait: %s (waiting %d, dropped %d)", reason, len(self._waiting), self._dropped)
            self._pause(_pause_seconds(self._failures_in_row, error))
            return 0
        self._failures_in_row = 0
        self._settle(sent, waiting=sent.events)
        dropped = self._dropped
        if dropped > self._dropped_said and self._say("usage events found no room: %d dropped so far", dropped):
            self._dropped_said = dropped
        return sent.events

    def _settle(self, sent: Sent, *, waiting: int) -> None:
        """Counts what was sent; the first `waiting` events are no longer in memory."""
        with self._progress:
            for _ in range(waiting):
                self._waiting.popleft()
            self._settled += sent.events
            self._accepted += sent.accepted
            self._duplicates += sent.duplicates
            self._rejected += sent.rejected
            self._failed += sent.failed
            self._progress.notify_all()
        if sent.reason and not self._blocking:
            counts = (self._rejected, self._failed)
            self._say("usage events were refused: %s (rejected %d, failed %d)", sent.reason, *counts)

    def _pause(self, seconds: float) -> None:
        if not self._closing.is_set:
            self._closing.wait(seconds)  # whoever closes gets one attempt at once
        else:
            time.sleep(max(0.0, min(seconds, self._give_up_at - time.monotonic())))

    def _say(self, message: str, *values: object) -> bool:
        """Whether it was said; each message is at most every SAY_SECONDS."""
        now = time.monotonic()
        if now < self._say_at.get(message, 0.0):
            return False
        self._say_at[message] = now + SAY_SECONDS
        log.warning(message, *values)
        return True


class _Bell:
    """Wakes one thread. A signal's handler may ring it amid a ringing, where a threading.Event would wait for ever."""

    def __init__(self) -> None:
        self.is_set = False
        self._words: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        self.is_set = True
        if self._words.empty():
            self._words.put(None)

    def clear(self) -> None:
        self.is_set = False
        while not self._words.empty():
            self._words.get()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Returns when it is set, when the time is over, or for nothing."""
        if not self.is_set:
            with contextlib.suppress(Empty):
                self._words.get(timeout=timeout_seconds)


class _Http:
    """NDJSON posted over one connection: each line is judged on its own, so one odd event never costs the others.

    As with `_Datagrams`, `send` says what became of the first lines, at least one, or raises with none of them
    settled, and opens what it needs. `abandon` is for a forked child: the parent's connection stays as it is.
    """

    def __init__(self, connection: http.client.HTTPConnection, token: str | None) -> None:
        self._connection = connection
        self._headers = {"Content-Type": "application/x-ndjson"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def send(self, lines: Sequence[bytes]) -> Sent:
        status, retry_after, answer = self._post(b"\n".join(lines))
        report = _report(answer)
        reason = f"the collector answered {status}"
        if report and report[3]:
            reason += f": {report[3]}"
        if status == 413 and len(lines) > 1:
            return self.send(lines[: len(lines) // 2])
        if status == 413:
            return Sent(1, rejected=1, reason=reason)
        if status in {200, 400} and report and sum(report[:3]) == len(lines):
            return Sent(len(lines), *report[:3], reason=report[3])
        if status in {408, 425, 429} or status >= 500:
            raise Retryable(reason, retry_after_seconds=retry_after)
        raise Unusable(reason if status != 200 else f"{reason} with something else than a collector does")

    def close(self) -> None:
        self._connection.close()

    def abandon(self) -> None:
        _abandon(self._connection.sock)

    def _post(self, body: bytes) -> tuple[int, float, bytes]:
        """Status, Retry-After in seconds, body. A connection that was closed while idle is opened again at once."""
        while True:
            is_reused = self._connection.sock is not None
            try:
                self._connection.request("POST", "/v1/events", body, self._headers)
                response = self._connection.getresponse()
                answer = response.read(MAX_ANSWER_BYTES)
                if not response.isclosed():
                    self.close()  # there is more, or less than was announced
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if not (is_reused and isinstance(error, ConnectionError)):
                    raise Retryable(f"the collector does not answer: {_said(error)}") from error
            else:
                return response.status, _seconds(response.headers.get("Retry-After", "")), answer


class _Datagrams:
    """Events in datagrams, one a line."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._socket: socket.socket | None = None

    def send(self, lines: Sequence[bytes]) -> Sent:
        datagram, count = _packed(lines)
        if count == 1 and len(datagram) > MAX_DATAGRAM_BYTES:
            return Sent(1, failed=1, reason=f"too large for a datagram with {len(datagram)} bytes")
        try:
            if self._socket is None:
                self._socket = self._connect()
            self._socket.send(datagram)
            # Where nobody listens on this machine, the kernel knows as soon as it has sent (ICMP port unreachable).
            if problem := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(problem, os.strerror(problem))  # noqa: TRY301 - the kernel's other way to say the same
        except OSError as error:
            self.close()
            if error.errno == errno.EMSGSIZE:  # some systems and networks carry less
                return self.send(lines[: count // 2]) if count > 1 else Sent(1, failed=1, reason=_said(error))
            raise Retryable(f"the collector does not listen: {_said(error)}") from error
        return Sent(count)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def abandon(self) -> None:
        _abandon(self._socket)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix stream socket."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path, self._timeout_seconds = path, timeout_seconds

    def connect(self) -> None:
        self.sock = _connected(socket.AF_UNIX, socket.SOCK_STREAM, self._path, self._timeout_seconds)


def _transport(url: str, token: str | None, timeout_seconds: float) -> "_Http | _Datagrams":
    """The way that `url` names. Raises ValueError, which never shows the token or the address."""
    scheme, _, rest = url.partition(":")
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("token: expected visible ASCII characters")
    if token is not None and scheme not in {"http", "unix"}:
        raise ValueError(f"token: nobody reads one over {scheme[:20]}:")
    if scheme in {"unix", "unixgram"}:
        path = rest.removeprefix("//")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"url: expected {scheme}: and the absolute path of a socket")
        if scheme == "unix":
            return _Http(_UnixConnection(path, timeout_seconds), token)
        return _Datagrams(lambda: _connected(socket.AF_UNIX, socket.SOCK_DGRAM, path, timeout_seconds))
    if scheme not in {"http", "udp"}:
        raise ValueError("url: expected http:, unix:, udp: or unixgram:")
    parts = urlsplit(url)
    host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    if not host or not port or parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"url: expected {scheme}://HOST:PORT and nothing else")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("url: its host cannot be one") from None
    if scheme == "http":
        return _Http(http.client.HTTPConnection(host, port, timeout=timeout_seconds), token)
    return _Datagrams(lambda: _udp(host, port))


def _udp(host: str, port: int) -> socket.socket:
    ((family, kind, _, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return _connected(family, kind, address, None)


def _connected(family: int, kind: int, address: Any, timeout_seconds: float | None) -> socket.socket:
    connected = socket.socket(family, kind)
    try:
        connected.settimeout(timeout_seconds)
        connected.connect(address)
    except OSError:
        connected.close()
        raise
    return connected


def _abandon(inherited: socket.socket | None) -> None:
    """A forked child's descriptor is closed, without a word to the other side and without any lock of the object."""
    if inherited is not None and inherited.fileno() >= 0:
        os.close(inherited.detach())


def _line(timestamp_ms: int, email: str, event_name: str, app_id: str | None) -> bytes:
    """The event as JSON: bytes that the garbage collector need not look at, while they wait."""
    try:
        line = f'{{"timestamp":{timestamp_ms:d},"email":{_quoted(email)},"eventName":{_quoted(event_name)}'
    except ValueError:  # an integer of thousands of digits
        return b'"a timestamp of too many digits"'  # is rejected, with this as what was sent
    return (line + "}" if app_id is None else f'{line},"appId":{_quoted(app_id)}}}').encode()


def _packed(lines: Sequence[bytes]) -> tuple[bytes, int]:
    """The first lines, as many as share a datagram; how many these are."""
    count = size = 0
    for line in lines:
        size += len(line) + 1
        if count and size > DATAGRAM_BYTES:
            break
        count += 1
    return b"\n".join(lines[:count]), count


def _report(answer: bytes) -> tuple[int, int, int, str] | None:
    """Accepted, duplicates, rejected and the first reason of a collector's answer; None for any other."""
    try:
        fields = json.loads(answer)
        counts = [fields[name] for name in ("accepted", "duplicates", "rejected")]
        reason = str(fields["errors"][0]["reason"]) if fields["errors"] else ""
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    return counts[0], counts[1], counts[2], _without_value(reason)


def _without_value(reason: str) -> str:
    """What of a reason may stand in a log: the field and what was expected, not what somebody sent."""
    before, expected, what = reason.rpartition("; expected ")
    field = before.partition(":")[0]
    named = f"{field}: " if field in {"timestamp", "email", "eventName", "appId"} else ""
    return f"{named}expected {what[:200]}" if expected else reason.partition(":")[0][:200]


def _seconds(retry_after: str) -> float:
    """A Retry-After of seconds, within reason; 0 for none and for dates."""
    is_number = retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10
    return min(float(retry_after), MAX_RETRY_AFTER_SECONDS) if is_number else 0.0


def _pause_seconds(failures: int, error: Exception) -> float:
    """How long to wait after so many failures in a row: exponential with full jitter, on top of a Retry-After."""
    ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(failures - 1, 30))
    asked_seconds = error.retry_after_seconds if isinstance(error, Retryable) else 0.0
    return asked_seconds + ceiling * random.random()  # noqa: S311 - spreads, protects nothing


def _said(error: Exception) -> str:
    """An error without addresses and content."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


_all: weakref.WeakSet[Client] = weakref.WeakSet()


def _close_all() -> None:
    give_up_at = time.monotonic() + EXIT_SECONDS
    for client in list(_all):
        client.close(max(0.0, give_up_at - time.monotonic()))


def _close_before_a_child_ends() -> None:
    """Where this is a child of multiprocessing: it leaves by os._exit, past atexit, but ends its finalizers before."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=0)


def _forget_all() -> None:
    for client in list(_all):
        client._forget()  # noqa: SLF001 - of this module


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):  # a copy of this file may run where there is no fork
    os.register_at_fork(after_in_child=_forget_all)
