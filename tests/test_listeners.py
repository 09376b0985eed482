"""Sockets that are bound already, by whoever passes them and keeps them."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.agent import Collector
from collector.config import Config
from collector.election import Delivery
from collector.errors import ConfigInvalid, Unusable
from tests.embedded import config, metric
from tests.patience import PATIENCE_SECONDS, until

NOWHERE = "http://127.0.0.1:1"


def event(number: int) -> dict[str, object]:
    return {"appId": "wiki", "timestamp": number, "email": "person@example.com", "eventName": "seen"}


class Holder:
    """Who binds sockets, passes copies of them and holds on to them, as systemd does."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.stream_file, self.datagram_file = folder / "http.sock", folder / "events.sock"
        self._sockets: list[socket.socket] = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            self._bind(socket.AF_INET, kind, (host, 0))
        self._bind(socket.AF_UNIX, socket.SOCK_STREAM, str(self.stream_file))
        self._bind(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.datagram_file))
        self.tcp_port, self.udp_port = (self._sockets[place].getsockname()[1] for place in (0, 1))

    def passed(self, *places: int) -> list[socket.socket]:
        return [self._sockets[place].dup() for place in places or range(4)]

    def send(self, first: int, count: int) -> None:
        """So many events over UDP, and as many over the Unix socket."""
        for kind, address in (
            (socket.AF_INET, ("127.0.0.1", self.udp_port)),
            (socket.AF_UNIX, str(self.datagram_file)),
        ):
            with socket.socket(kind, socket.SOCK_DGRAM) as sender:
                for number in range(first, first + count):
                    sender.sendto(msgspec.json.encode(event(number + 1000 * (kind == socket.AF_UNIX))), address)

    def close(self) -> None:
        for held in self._sockets:
            held.close()

    def _bind(self, family: int, kind: int, address: object) -> None:
        made = socket.socket(family, kind)
        made.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            made.listen()
        self._sockets.append(made)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with contextlib.closing(Holder(tmp_path)) as holder:
        yield holder


def listening(folder: Path, sockets: list[socket.socket], settings: Config | None = None) -> Collector:
    return Collector(
        settings or config(folder, NOWHERE, stop__deadline="0s"),
        listens=True,
        sockets=sockets,
        delivery=Delivery.EXCLUSIVE,
    )


async def post(number: int, url: str, path: Path | None = None) -> int:
    connector = aiohttp.TCPConnector() if path is None else aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"{url}/v1/events", json=event(number)) as answer,
    ):
        return answer.status


async def test_passed_sockets_take_the_place_of_all_that_are_configured(tmp_path: Path, holder: Holder) -> None:
    (tmp_path / "other").mkdir()
    settings = config(tmp_path, NOWHERE, unix__stream=str(tmp_path / "other" / "http.sock"), stop__deadline="0s")
    async with listening(tmp_path, holder.passed(), settings) as collector:
        assert collector.http_address == ("127.0.0.1", holder.tcp_port)
        assert collector.udp_address == ("127.0.0.1", holder.udp_port)
        assert await post(1, f"http://{collector.http_address}") == 200
        assert await post(2, "http://collector", holder.stream_file) == 200
        holder.send(10, 3)
        await until(lambda: metric(collector, "waiting_events") == 8)
    assert list((tmp_path / "other").iterdir()) == []


async def test_what_is_sent_between_two_processes_waits_for_the_second(tmp_path: Path, holder: Holder) -> None:
    async with listening(tmp_path, holder.passed()) as first:
        holder.send(0, 2)
        await until(lambda: metric(first, "waiting_events") == 4)
    assert holder.stream_file.is_socket()
    assert holder.datagram_file.is_socket()
    holder.send(10, 5)
    with socket.create_connection(("127.0.0.1", holder.tcp_port)) as early:
        body = msgspec.json.encode(event(99))
        early.sendall(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        early.sendall(b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        async with listening(tmp_path, holder.passed()) as second:
            await until(lambda: metric(second, "waiting_events") == 15)
        early.settimeout(PATIENCE_SECONDS)
        assert early.recv(4096).startswith(b"HTTP/1.1 200 ")


async def test_several_sockets_of_a_kind_are_all_served(tmp_path: Path, holder: Holder) -> None:
    (tmp_path / "second").mkdir()
    with contextlib.closing(Holder(tmp_path / "second")) as other:
        async with listening(tmp_path, [*holder.passed(), *other.passed()]) as collector:
            for number, port in enumerate((holder.tcp_port, other.tcp_port)):
                assert await post(number, f"http://127.0.0.1:{port}") == 200
            holder.send(10, 1)
            other.send(20, 1)
            await until(lambda: metric(collector, "waiting_events") == 6)


async def test_without_a_tcp_socket_there_is_none(tmp_path: Path, holder: Holder) -> None:
    async with listening(tmp_path, holder.passed(2)) as collector:
        with pytest.raises(Unusable, match="does not listen"):
            _ = collector.http_address
        assert await post(1, "http://collector", holder.stream_file) == 200


@pytest.mark.parametrize(
    ("place", "settings", "reason"),
    [
        (0, {}, r"TCP at '0\.0\.0\.0:\d+' can be reached from other machines; give access\.tokens_file"),
        (1, {}, r"UDP at '0\.0\.0\.0:\d+' can be reached from other machines; datagrams carry no token"),
        (1, {"access__tokens_file": "tokens"}, "datagrams carry no token"),
        (0, {"access__tokens_file": "tokens"}, None),
        (0, {"access__allow_unauthenticated": "true"}, None),
        (1, {"access__allow_unauthenticated": "true"}, None),
    ],
)
async def test_the_same_rules_hold_for_passed_sockets_as_for_our_own(
    tmp_path: Path, place: int, settings: dict[str, str], reason: str | None
) -> None:
    (tmp_path / "tokens").write_text("first-token-0123456789\n")
    settings = {name: str(tmp_path / value) if value == "tokens" else value for name, value in settings.items()}
    with contextlib.closing(Holder(tmp_path, "0.0.0.0")) as holder:  # noqa: S104 - that is the point
        passed = holder.passed(place)
        collector = listening(tmp_path, passed, config(tmp_path, NOWHERE, stop__deadline="0s", **settings))
        if reason is None:
            async with collector:
                pass
        else:
            with pytest.raises(ConfigInvalid, match=reason):
                await collector.start()
            passed[0].close()


async def test_a_socket_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as strange:
        strange.bind(str(tmp_path / "strange"))
        with pytest.raises(Unusable, match="SOCK_SEQPACKET"):
            await listening(tmp_path, [strange]).start()


async def test_a_small_buffer_of_a_passed_socket_is_said_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Holder(tmp_path)) as holder:
        [udp] = holder.passed(1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with listening(tmp_path, [udp]):
            pass
    [said] = [record for record in caplog.records if record.getMessage() == "udp.receive_buffer_capped"]
    assert vars(said)["remedy"] == "ReceiveBuffer= in the .socket unit"
