"""Datagrams received many at a time are those that were sent, in their order, with recvmmsg and without."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.sources import receiver
from collector.sources.receiver import PLACES, Receiver

MOST_BYTES = 20

needs_recvmmsg = pytest.mark.skipif(receiver._recvmmsg is None, reason="needs recvmmsg(2)")


@pytest.fixture(params=[pytest.param("many", marks=needs_recvmmsg), "one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    way: str = request.param
    if way == "one":
        monkeypatch.setattr(receiver, "_recvmmsg", None)
    return way


both_ways = pytest.mark.usefixtures("way")


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def udp_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    ours.bind(("127.0.0.1", 0))
    theirs.connect(ours.getsockname())
    return ours, theirs


def all_of(receives: Receiver) -> Iterator[list[bytes]]:
    while datagrams := receives.receive():
        yield datagrams


@needs_recvmmsg
@given(is_udp=st.booleans(), sent=st.lists(st.binary(max_size=MOST_BYTES), max_size=10), rounds=st.integers(1, 3))
def test_what_was_sent_comes_whole_and_in_order(is_udp: bool, sent: list[bytes], rounds: int) -> None:
    ours, theirs = udp_pair() if is_udp else unix_pair()
    with ours, theirs:
        receives = Receiver(ours, MOST_BYTES)
        for _ in range(rounds):  # the places are used again
            for datagram in sent:
                theirs.send(datagram)
            assert receives.receive() == sent
            assert receives.receive() == []


def test_more_than_there_are_places_for_come_one_after_another(way: str) -> None:
    ours, theirs = udp_pair()
    sent = [str(number).encode() for number in range(2 * PLACES + 1)]
    with ours, theirs:
        for datagram in sent:
            theirs.send(datagram)
        lots = list(all_of(Receiver(ours, MOST_BYTES)))
    assert [datagram for lot in lots for datagram in lot] == sent
    assert [len(lot) for lot in lots] == ([PLACES, PLACES, 1] if way == "many" else [1] * len(sent))


def test_no_more_come_than_were_asked_for(way: str) -> None:
    ours, theirs = unix_pair()
    with ours, theirs:
        for _ in range(5):
            theirs.send(b"some")
        received = [len(Receiver(ours, MOST_BYTES).receive(2)) for _ in range(3)]
    assert received == ([2, 2, 1] if way == "many" else [1, 1, 1])


@both_ways
def test_one_that_is_too_long_is_cut_and_its_neighbours_are_whole() -> None:
    ours, theirs = unix_pair()
    with ours, theirs:
        for length in (3, MOST_BYTES + 10, MOST_BYTES):
            theirs.send(b"x" * length)
        lengths = [len(datagram) for lot in all_of(Receiver(ours, MOST_BYTES)) for datagram in lot]
    assert lengths == [3, MOST_BYTES, MOST_BYTES]


@both_ways
def test_an_error_of_the_socket_is_raised_once() -> None:
    ours, theirs = udp_pair()
    with ours, theirs:
        ours.connect(theirs.getsockname())
        theirs.close()
        ours.send(b"to nobody")
        receives = Receiver(ours, MOST_BYTES)
        with pytest.raises(ConnectionRefusedError):
            receives.receive()
        assert receives.receive() == []


@both_ways
def test_nothing_waits_where_nothing_came() -> None:
    ours, theirs = unix_pair()
    with ours, theirs:
        ours.setblocking(True)
        assert Receiver(ours, MOST_BYTES).receive() == []
