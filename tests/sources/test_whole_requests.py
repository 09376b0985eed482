"""A small post that needs no task gets none, however it comes; and is answered as the same application's others are."""

import pytest

from collector.sources.http_message import ClientGone
from collector.sources.known_heads import MAX_BODY_BYTES
from tests.patience import until
from tests.sources.test_http1 import GET, Client, chunked, on_both_loops, post, serving, settle

MESSAGE = post(b"abcd")
NUMBERED = MESSAGE.replace(b"Host: h\r\n", b"Host: h\r\nX-Number: %d\r\n")
CLOSING = MESSAGE.replace(b"Host: h\r\n", b"Host: h\r\nConnection: close\r\n")
EXPECTING = MESSAGE.replace(b"Host: h\r\n", b"Host: h\r\nExpect: 100-continue\r\n")


@on_both_loops
@pytest.mark.parametrize(
    ("packets", "begun"),
    [
        pytest.param([MESSAGE], b"", id="at once"),
        pytest.param([MESSAGE[:-4], MESSAGE[-4:]], b"", id="head and body"),
        pytest.param([MESSAGE[at : at + 1] for at in range(len(MESSAGE))], b"", id="byte by byte"),
        pytest.param([MESSAGE + GET[:5]], GET[:5], id="some of the next behind it"),
        pytest.param([chunked(b"4\r\nabcd\r\n0\r\n\r\n")], b"", id="chunked"),
        pytest.param([EXPECTING], b"", id="without waiting to be told to continue"),
        pytest.param([CLOSING], b"", id="the last"),
    ],
)
async def test_a_small_post_needs_no_task(packets: list[bytes], begun: bytes) -> None:
    async with serving() as site:
        client = await site.client()
        await client.send_packets(packets)
        got = await client.answer()
        assert (got.said()["body"], got.is_last, site.app.begun) == ("abcd", packets == [CLOSING], 1)
        if not got.is_last:
            assert (await client.ask(GET.removeprefix(begun))).status == 200
            assert (await client.ask(MESSAGE)).said()["body"] == "abcd"


@on_both_loops
async def test_nor_do_posts_of_which_each_has_a_head_of_its_own() -> None:
    async with serving() as site:
        client = await site.client()
        for number in range(5):
            assert (await client.ask(NUMBERED % number)).said()["headers"]["x-number"] == str(number)
        assert (site.app.begun, site.heads.found, site.only._task) == (5, 0, None)


@on_both_loops
@pytest.mark.parametrize(
    ("packets", "answers"),
    [
        pytest.param([GET], 1, id="no post"),
        pytest.param([MESSAGE.replace(b"HTTP/1.1", b"HTTP/1.0")], 1, id="HTTP/1.0"),
        pytest.param([post(b"abcd", "/early")], 1, id="what the application reads by itself"),
        pytest.param([post(b"x" * (MAX_BODY_BYTES + 1))], 1, id="a large body"),
        pytest.param([chunked(b"4\r\nabcd\r\n"), b"0\r\n\r\n"], 1, id="a body that may become large"),
        pytest.param([MESSAGE + MESSAGE], 2, id="several at once"),
        pytest.param([EXPECTING[:-4], EXPECTING[-4:]], 2, id="who waits to be told to continue"),
    ],
)
async def test_others_are_answered_by_a_task(packets: list[bytes], answers: int) -> None:
    async with serving() as site:
        client = await site.client()
        await client.send_packets(packets)
        assert {(await client.answer()).status for _ in range(answers)} <= {100, 200}
        assert site.app.begun == 0


@on_both_loops
@pytest.mark.parametrize("cut", [0, -1], ids=["whole", "its end to come"])
async def test_one_too_many_is_refused_and_its_connection_goes_on(cut: int) -> None:
    message = post(b"1", "/held")
    async with serving(requests_in_flight=1) as site:
        one, other = await site.client(), await site.client()
        other.send(MESSAGE[:cut])
        await settle()
        one.send(message)
        await settle()
        assert site.server.in_flight == 1
        other.send(MESSAGE[cut:])
        got = await other.answer()
        assert (got.status, got.said()["label"], got.is_last) == (503, "requests_in_flight", False)
        site.app.gate.set()
        assert (await one.answer()).status == 200
        assert (await other.ask(MESSAGE)).status == 200


@on_both_loops
async def test_a_length_may_have_any_number_of_zeros_before_it() -> None:
    async with serving(head_bytes=16 * 1024) as site:
        client = await site.client()
        await client.send_packets([MESSAGE[:-5].replace(b"4\r\n", 5000 * b"0" + b"4\r\n") + b"\nab", b"cd"])
        assert (await client.answer()).said()["body"] == "abcd"


@on_both_loops
@pytest.mark.parametrize("leaves", [Client.end, Client.reset])
async def test_what_is_behind_an_answer_that_ends_the_connection_is_not_served(leaves: object) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + post(b"abcd", "/early")[:-2])
        await settle()
        site.app.gate.set()
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await client.reader.read() == b"xy"
        assert callable(leaves)
        leaves(client)
        await until(lambda: site.server.connections == 0)
        assert site.app.served == 1


@on_both_loops
@pytest.mark.parametrize("leaves", [Client.end, Client.reset])
async def test_whose_body_does_not_come_is_as_gone_as_any_other(leaves: object) -> None:
    async with serving() as site:
        client = await site.client()
        client.send(MESSAGE[:-1])
        await settle()
        assert site.only._task is None
        assert callable(leaves)
        leaves(client)
        await until(lambda: len(site.app.failures) == 1)
        assert isinstance(site.app.failures[0], ClientGone)
