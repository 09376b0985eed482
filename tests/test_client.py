"""The thin client against a real collector: every way in, and what it does when the collector cannot or does not."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from collector.agent import Collector
from collector.client import BATCH_EVENTS, MAX_RETRY_AFTER_SECONDS, Client, Counters, Rejected, Retryable, Unusable
from tests.embedded import embedded
from tests.patience import PATIENCE_SECONDS, until

NOWHERE = "http://127.0.0.1:9"


@asynccontextmanager
async def listening(folder: Path, **settings: str) -> AsyncIterator[Collector]:
    """A collector with every door open, which delivers nothing."""
    doors = {
        "udp__listen": "127.0.0.1:0",
        "unix__stream": str(folder / "http.sock"),
        "unix__datagram": str(folder / "datagrams.sock"),
        "stop__deadline": "100ms",
    }
    async with embedded(folder, NOWHERE, **(doors | settings)) as collector:
        yield collector


def url_of(collector: Collector, folder: Path, scheme: str) -> str:
    return {
        "http": f"http://{collector.http_address}",
        "unix": f"unix:{folder / 'http.sock'}",
        "udp": f"udp://{collector.udp_address}",
        "unixgram": f"unixgram:{folder / 'datagrams.sock'}",
    }[scheme]


async def stored(collector: Collector, events: int) -> None:
    """Returns when so many events wait in the queue."""
    await until(lambda: collector._queue.waiting_events >= events)


async def flushed(client: Client) -> bool:
    return await asyncio.to_thread(client.flush, PATIENCE_SECONDS)


def unused_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def closed(client: Client, timeout_seconds: float = PATIENCE_SECONDS) -> bool:
    return await asyncio.to_thread(client.close, timeout_seconds)


def balanced(counters: Counters) -> bool:
    return counters.recorded == counters.sent + counters.failed + counters.waiting


# -- every scheme ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "unix", "udp", "unixgram"])
async def test_what_is_recorded_arrives_once_however_often_it_is_sent(tmp_path: Path, scheme: str) -> None:
    async with listening(tmp_path) as collector:
        client = Client(url_of(collector, tmp_path, scheme))
        for number in range(1200):
            assert client.record(email="user@example.com", event_name="säved", timestamp_ms=number)
        assert client.record(email="user@example.com", event_name="säved", timestamp_ms=1)
        assert client.record(email="user@example.com", event_name="säved", timestamp_ms=1, app_id="other")
        assert await flushed(client)
        await stored(collector, 1201)
        assert await closed(client)
        counters = client.counters
        assert balanced(counters)
        assert (counters.recorded, counters.sent, counters.waiting, counters.dropped) == (1202, 1202, 0, 0)
        if scheme in {"http", "unix"}:
            assert (counters.accepted, counters.duplicates, counters.rejected) == (1201, 1, 0)
        assert collector._queue.waiting_events == 1201


@pytest.mark.parametrize("scheme", ["http", "unix"])
async def test_a_blocking_record_returns_when_the_event_is_stored_and_raises_the_reason(
    tmp_path: Path, scheme: str
) -> None:
    async with listening(tmp_path) as collector:
        with Client(url_of(collector, tmp_path, scheme), blocking=True) as client:
            assert await asyncio.to_thread(client.record, email="user@example.com", event_name="saved")
            assert collector._queue.waiting_events == 1
            with pytest.raises(Rejected, match=r"^email: expected text of 3 to 320 characters with an @ inside$"):
                await asyncio.to_thread(client.record, email="nobody", event_name="saved")
            assert client.counters[:5] == (2, 2, 1, 0, 1)
        with pytest.raises(Unusable, match="closed"):
            client.record(email="user@example.com", event_name="saved")


async def test_an_event_without_a_time_is_stamped_at_the_call(tmp_path: Path) -> None:
    async with listening(tmp_path) as collector:
        client = Client(url_of(collector, tmp_path, "http"))
        before = time.time_ns() // 10**6
        client.record(email="user@example.com", event_name="saved")
        after = time.time_ns() // 10**6
        assert await flushed(client)
        for now in range(before, after + 1):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=now)
        assert await closed(client)
        assert client.counters.duplicates == 1


async def test_many_threads_record_and_the_books_agree(tmp_path: Path) -> None:
    async with listening(tmp_path) as collector:
        client = Client(url_of(collector, tmp_path, "unix"), max_events=1000)
        taken: list[bool] = []

        def work(thread: int) -> None:
            taken.extend(
                client.record(email=f"user{thread}@example.com", event_name="saved", timestamp_ms=number)
                for number in range(2000)
            )

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert await closed(client)
        counters = client.counters
        assert counters.recorded == counters.accepted == taken.count(True)
        assert counters.dropped == taken.count(False)


# -- what is not an event, and what the collector does not take --------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"email": b"user@example.com"}, "email: expected text, not bytes"),
        ({"event_name": None}, "event_name: expected text, not NoneType"),
        ({"timestamp_ms": 1.5}, "timestamp_ms: expected whole milliseconds, not float"),
        ({"app_id": 7}, "app_id: expected text, not int"),
    ],
)
def test_a_value_of_a_wrong_type_raises_at_once_and_names_the_field(fields: dict[str, object], said: str) -> None:
    with Client() as client:
        with pytest.raises(TypeError, match=said):
            client.record(**({"email": "user@example.com", "event_name": "saved"} | fields))  # type: ignore[arg-type]
        assert client.counters.recorded == 0


async def test_events_that_are_none_cost_the_others_nothing_and_the_log_has_no_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(tmp_path, events__max_event_bytes="8KiB") as collector:
        client = Client(url_of(collector, tmp_path, "http"))
        for number in range(100):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
        client.record(email="private person", event_name="saved")
        client.record(email="us\ud800er@example.com", event_name="saved")
        client.record(email="user@example.com", event_name="saved", timestamp_ms=2**70)
        client.record(email="user@example.com", event_name="saved", timestamp_ms=10**5000)
        client.record(email="user@example.com", event_name="s" * 100_000)
        client.record(email="user@example.com", event_name="saved", timestamp_ms=100)
        assert await closed(client)
        assert client.counters.rejected == 5
        assert client.counters.sent == 106
        assert collector._queue.waiting_events == 101
    assert "usage events were refused: " in caplog.text
    assert "expected" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize("scheme", ["udp", "unixgram"])
async def test_an_event_that_fits_no_datagram_fails_and_the_others_go(tmp_path: Path, scheme: str) -> None:
    async with listening(tmp_path) as collector:
        client = Client(url_of(collector, tmp_path, scheme))
        client.record(email="user@example.com", event_name="s" * 70_000)
        client.record(
            email="user@example.com", event_name="s" * 1000, app_id="a" * 60_000
        )  # goes, and is rejected there
        client.record(email="user@example.com", event_name="saved")
        assert await closed(client)
        await stored(collector, 1)
        assert (client.counters.sent, client.counters.failed) == (2, 1)
        assert balanced(client.counters)


# -- a collector that is away, or strange ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["unix", "unixgram", "http", "udp"])
async def test_what_was_recorded_while_the_collector_was_away_arrives_when_it_is_back(
    tmp_path: Path, scheme: str
) -> None:
    kinds = {"http": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    port = unused_port(kinds[scheme]) if scheme in kinds else 0
    url = {
        "http": f"http://127.0.0.1:{port}",
        "udp": f"udp://127.0.0.1:{port}",
        "unix": f"unix:{tmp_path / 'http.sock'}",
        "unixgram": f"unixgram:{tmp_path / 'datagrams.sock'}",
    }[scheme]
    client = Client(url)
    for number in range(50):
        assert client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
    await until(lambda: client.counters.retries >= 2)
    assert client.counters.waiting == 50
    settings = {f"{scheme}__listen": f"127.0.0.1:{port}"} if port else {}
    async with listening(tmp_path, **settings) as collector:
        assert await flushed(client)
        await stored(collector, 50)
    assert await closed(client)


GOOD = b'{"accepted":%d,"duplicates":0,"rejected":0,"errors":[]}'


def http(status: int, body: bytes, *, more: bytes = b"", length: int | None = None) -> bytes:
    announced = len(body) if length is None else length
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n%b\r\n%b" % (status, announced, more, body)


@asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that gives these answers in turn, then good ones; its URL, and how many events each request had.

    An answer that is no HTTP or has `X-Close` is the last on its connection.
    """
    script = list(answers)
    requests: list[int] = []
    connections: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                events = (await reader.readexactly(size)).count(b"\n") + 1
                requests.append(events)
                answer = script.pop(0) if script else http(200, GOOD % events)
                writer.write(answer)
                if not answer.startswith(b"HTTP/1.1 ") or b"X-Close" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}", requests
        await asyncio.wait_for(asyncio.gather(*filter(None, connections)), PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nX-Close: 1\r\n\r\n{",
        http(200, b"<html>a captive portal</html>"),
        http(200, b"[" * 100_000),
        http(200, b'{"accepted":7,"duplicates":0,"rejected":0,"errors":[]}'),
        http(200, b'{"accepted":true,"duplicates":0,"rejected":0,"errors":[]}'),
        http(200, b'{"accepted":1,"duplicates":0,"rejected":0,"errors":[{}]}'),
        http(200, b'{"accepted":2,"duplicates":-1,"rejected":0,"errors":[]}'),
        http(200, b" " * 2**21 + GOOD % 1),
        http(400, b"Bad Request"),
        http(404, b""),
        http(301, b"", more=b"Location: http://127.0.0.1:1/\r\n"),
        http(503, b"", more=b"Retry-After: 999999999\r\n"),
        http(503, b"", more=b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n"),
    ],
    ids=range(15),
)
async def test_no_answer_settles_an_event_but_a_good_one(answer: bytes) -> None:
    async with scripted(answer) as (url, requests):
        client = Client(url)
        client.record(email="user@example.com", event_name="saved")
        await until(lambda: client.counters.retries == 1)
        assert await closed(client)  # which cuts the pause short, however long it is
        assert client.counters[:3] == (1, 1, 1)
        assert requests == [1, 1]


async def test_a_connection_that_was_closed_while_idle_is_opened_again_at_once() -> None:
    async with scripted(http(200, GOOD % 1, more=b"X-Close: 1\r\n")) as (url, requests):
        client = Client(url)
        for number in range(2):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
            assert await flushed(client)
        assert client.counters.retries == 0
        assert await closed(client)
        assert requests == [1, 1]


@pytest.mark.parametrize(("asked", "seconds"), [(b"1", 1), (b"999999999", MAX_RETRY_AFTER_SECONDS)])
async def test_a_retry_after_is_waited_for_within_reason(asked: bytes, seconds: float) -> None:
    full = b'{"accepted":0,"duplicates":0,"rejected":0,"errors":[{"reason":"full"}]}'
    async with scripted(http(503, full, more=b"Retry-After: %b\r\n" % asked)) as (url, requests):
        with (
            Client(url, blocking=True, timeout_seconds=0.5) as client,
            pytest.raises(Retryable, match="answered 503: full") as raised,
        ):
            await asyncio.to_thread(client.record, email="user@example.com", event_name="saved")
        assert raised.value.retry_after_seconds == seconds
        assert requests == [1]


async def test_an_event_that_is_too_large_is_found_by_halves() -> None:
    async with scripted(*[http(413, b"")] * 3) as (url, requests):
        client = Client(url)
        for number in range(4):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
        assert await flushed(client)
        assert requests == [4, 2, 1, 3]
        assert (client.counters.sent, client.counters.accepted, client.counters.rejected) == (4, 3, 1)
        assert await closed(client)


async def test_a_token_is_sent_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery\n")
    tokens.chmod(0o600)
    async with listening(tmp_path, access__tokens_file=str(tokens)) as collector:
        url = url_of(collector, tmp_path, "http")
        wrong = Client(url, token="wrong-horse-battery", blocking=True)
        with pytest.raises(Unusable, match="answered 401: expected Bearer") as raised:
            await asyncio.to_thread(wrong.record, email="user@example.com", event_name="saved")
        right = Client(url, token="correct-horse-battery")
        right.record(email="user@example.com", event_name="saved")
        assert await closed(right)
        assert await closed(wrong)
        assert right.counters.accepted == 1
        assert "horse" not in f"{raised.value}{right!r}{caplog.text}"


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_a_full_buffer_refuses_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(f"http://127.0.0.1:{unused_port(socket.SOCK_STREAM)}", max_events=100)
    taken = [client.record(email="user@example.com", event_name="saved") for _ in range(150)]
    assert taken == [True] * 100 + [False] * 50
    await until(lambda: client.counters.retries >= 1)
    assert not await asyncio.to_thread(client.flush, 0.01)
    assert not await closed(client, 0.01)
    counters = client.counters
    assert (counters.recorded, counters.waiting, counters.dropped) == (100, 100, 50)
    assert "the collector does not answer: Connection refused (waiting 100, dropped 50)" in caplog.text
    assert "usage events were not sent before the end: 100" in caplog.text


async def test_what_was_dropped_is_said_once_the_collector_has_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(tmp_path) as collector:
        client = Client(url_of(collector, tmp_path, "http"), max_events=100)
        for number in range(150):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
        assert await flushed(client)
        await until(lambda: "usage events found no room: 50 dropped so far" in caplog.text)
        assert await closed(client)


async def test_flush_and_close_return_in_time_from_a_collector_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=PATIENCE_SECONDS)
        client.record(email="user@example.com", event_name="saved")
        connection, _ = await asyncio.to_thread(silent.accept)
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            assert not await asyncio.to_thread(client.flush, 0.01)
            assert not await closed(client, 0.01)
            assert not await closed(client)
        connection.close()
    assert client._thread is not None
    await asyncio.to_thread(client._thread.join, PATIENCE_SECONDS)


async def test_a_blocking_record_does_not_wait_longer_for_others_than_for_its_own_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", blocking=True, timeout_seconds=0.05)
        with client._sending, pytest.raises(Retryable, match="other events"):
            client.record(email="user@example.com", event_name="saved")
        assert client.flush(float("inf"))
        assert await closed(client)


async def test_closing_twice_is_harmless_and_nothing_is_taken_afterwards(tmp_path: Path) -> None:
    async with listening(tmp_path) as collector:
        client = Client(url_of(collector, tmp_path, "unix"))
        client.record(email="user@example.com", event_name="saved")
        assert await closed(client)
        assert await closed(client)
        assert not client.record(email="user@example.com", event_name="saved")
        assert client.counters[:3] == (1, 1, 1)
        assert client.counters.dropped == 1
        assert client.flush(0)


async def test_no_thread_runs_before_the_first_event() -> None:
    before = threading.active_count()
    with Client() as client:
        assert client.flush(0)
        assert threading.active_count() == before


async def test_many_events_share_a_request_and_a_few_do_not_wait_long() -> None:
    async with scripted() as (url, requests):
        client = Client(url)
        for number in range(BATCH_EVENTS * 3):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
        await until(lambda: client.counters.waiting == 0)
        client.record(email="user@example.com", event_name="saved")
        await until(lambda: client.counters.waiting == 0)
        assert await closed(client)
        assert sum(requests) == BATCH_EVENTS * 3 + 1
        assert max(requests) == BATCH_EVENTS
        assert len(requests) <= 6


@pytest.mark.parametrize("ends", ["a full batch", "a flush", "a close"])
async def test_nothing_lingers_behind(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    monkeypatch.setattr("collector.client.LINGER_SECONDS", 3600.0)
    async with scripted() as (url, _):
        client = Client(url)
        for number in range(BATCH_EVENTS if ends == "a full batch" else 1):
            client.record(email="user@example.com", event_name="saved", timestamp_ms=number)
        if ends == "a flush":
            assert await flushed(client)
        if ends != "a close":
            await until(lambda: client.counters.waiting == 0)
        assert await closed(client)
        assert client.counters.waiting == 0


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("https://127.0.0.1:8787", {}, "url: expected http:, unix:, udp: or unixgram:"),
        ("127.0.0.1:8787", {}, "url: expected http:, unix:, udp: or unixgram:"),
        ("http://127.0.0.1:8787/v1/events", {}, "url: expected http://HOST:PORT and nothing else"),
        ("http://user:secret@127.0.0.1", {}, "url: expected http://HOST:PORT and nothing else"),
        ("udp://", {}, "url: expected udp://HOST:PORT and nothing else"),
        ("http://127.0.0.1:0", {}, "url: expected http://HOST:PORT and nothing else"),
        ("http://a..b", {"blocking": True}, "url: its host cannot be one"),
        ("unix:relative.sock", {}, "url: expected unix: and the absolute path of a socket"),
        ("unixgram://relative.sock", {}, "url: expected unixgram: and the absolute path of a socket"),
        ("udp://127.0.0.1:8787", {"blocking": True}, "url: nobody acknowledges datagrams"),
        ("udp://127.0.0.1:8787", {"token": "secret"}, "token: nobody reads one over udp:"),
        ("http://127.0.0.1:8787", {"token": "secret\r\nX: y"}, "token: expected visible ASCII characters"),
        ("http://127.0.0.1:8787", {"timeout_seconds": 0}, "timeout_seconds: 0; expected a time"),
        ("http://127.0.0.1:8787", {"timeout_seconds": -1}, "timeout_seconds: -1; expected a time"),
        ("http://127.0.0.1:8787", {"timeout_seconds": float("nan")}, "timeout_seconds: nan; expected a time"),
        ("http://127.0.0.1:8787", {"timeout_seconds": float("inf")}, "timeout_seconds: inf; expected a time"),
        ("http://127.0.0.1:8787", {"max_events": 0}, "max_events: 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused_and_no_secret_shown(url: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        Client(url, **options)  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["udp", "http"])
async def test_an_ipv6_address_is_one_too(tmp_path: Path, scheme: str) -> None:
    settings = {"udp__listen": "[::1]:0", "http__listen": "[::1]:0"}
    async with listening(tmp_path, **settings) as collector:
        client = Client(url_of(collector, tmp_path, scheme))
        client.record(email="user@example.com", event_name="saved")
        assert await closed(client)
        await stored(collector, 1)
