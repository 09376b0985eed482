"""A request whose head has come before is answered as any other, though nobody parses it."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.sources.access import FIELDS as FIELDS_READ
from collector.sources.http1 import PIPELINE_HIGH_WATER
from collector.sources.known_heads import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADS, VARYING
from tests.patience import PATIENCE_SECONDS, until
from tests.sources.test_http1 import (
    BODY_SECONDS,
    FIELDS,
    GET,
    IDLE_SECONDS,
    LOOPS,
    Client,
    Site,
    chunked,
    on_both_loops,
    post,
    serving,
    settle,
    site_on,
)

HELD = post(b"1", "/held")


async def heard(client: Client, message: bytes) -> str:
    """The body that the application has seen."""
    return str((await client.ask(message)).said()["body"])


async def learn(site: Site, client: Client, message: bytes) -> None:
    """The head of the message has come twice, and is known from now on."""
    site.app.gate.set()
    for _ in range(2):
        assert (await client.ask(message)).status == 200
    site.app.gate.clear()


async def knows(site: Site, message: bytes) -> bool:
    """Whether the head is known once the message was answered."""
    client = await site.client()
    before = site.heads.found
    await learn(site, client, message)
    assert (await client.ask(message)).status == 200
    return site.heads.found == before + 1


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Messages with one head, whose bodies are all as long as it says."""
    size = draw(st.integers(1, 40))
    bodies = draw(st.lists(st.binary(min_size=size, max_size=size), min_size=3, max_size=5))
    fields = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode("latin-1")) for name, value in draw(FIELDS).items())
    target = "/" + draw(st.text("ab/?", max_size=4))
    head = b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (target.encode(), fields, size)
    return [head + body for body in bodies]


@pytest.mark.parametrize("loop_name", LOOPS)
def test_the_application_sees_the_same_of_a_known_head_as_of_one_that_is_parsed(loop_name: str) -> None:
    async def converse(site: Site, messages: list[bytes]) -> None:
        client, known = await site.client(), site.heads.found
        site.heads.use_limit(site.server.limits.head_bytes)
        answers = [await client.ask(message) for message in messages]
        assert site.heads.found >= known + len(messages) - 2  # it may have come before
        for message, answer in zip(messages, answers, strict=True):
            site.heads.use_limit(site.server.limits.head_bytes)
            parsed = await client.ask(message)
            assert (answer.status, answer.content, answer.is_last) == (parsed.status, parsed.content, parsed.is_last)
            assert answer.headers.keys() == parsed.headers.keys()
        client.writer.close()

    with site_on(loop_name) as (runner, site):

        @settings(max_examples=100)
        @given(messages=alike())
        def converses(messages: list[bytes]) -> None:
            runner.run(converse(site, messages))

        converses()


@on_both_loops
async def test_a_head_is_known_on_every_connection_of_the_server() -> None:
    async with serving() as site:
        one, other = await site.client(), await site.client()
        assert await heard(one, post(b"abc")) == "abc"
        assert await heard(other, post(b"abc")) == "abc"
        assert site.heads.found == 0
        assert await heard(other, post(b"xyz")) == "xyz"
        assert site.heads.found == 1
        site.heads.use_limit(site.server.limits.head_bytes)
        assert await heard(other, post(b"xyz")) == "xyz"
        assert site.heads.found == 1


@on_both_loops
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(GET, id="no post"),
        pytest.param(post(b"abc").replace(b"POST", b"PUT"), id="another method"),
        pytest.param(chunked(b"3\r\nabc\r\n0\r\n\r\n"), id="no length"),
        pytest.param(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", id="HTTP/1.0"),
        pytest.param(post(b"x" * (MAX_BODY_BYTES + 1), "/count"), id="a large body"),
        pytest.param(post(b"a", "/" + "a" * MAX_HEAD_BYTES), id="a large head"),
        pytest.param(post(b"abc", "/early"), id="what the application reads by itself"),
    ],
)
async def test_other_requests_are_parsed_each_time(message: bytes) -> None:
    async with serving() as site:
        assert not await knows(site, message)


@on_both_loops
@pytest.mark.parametrize("at", [1, 20, -4, -1])
async def test_a_message_in_two_packets_is_parsed(at: int) -> None:
    async with serving() as site:
        client = await site.client()
        message = post(b"abcd")
        await learn(site, client, message)
        await client.send_packets([message[:at], message[at:]])
        assert (await client.answer()).said()["body"] == "abcd"
        assert site.heads.found == 0
        assert await heard(client, message) == "abcd"
        assert site.heads.found == 1


@on_both_loops
async def test_two_messages_in_one_packet_are_parsed() -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, post(b"abc"))
        client.send(post(b"abc") + post(b"xyz"))
        assert [got.said()["body"] for got in await client.answers(2)] == ["abc", "xyz"]
        assert site.heads.found == 0


@on_both_loops
async def test_the_end_of_a_head_is_none_by_itself() -> None:
    message = post(b"abcd")
    async with serving() as site:
        client, other = await site.client(), await site.client()
        for _ in range(3):
            await client.send_packets([message[:20], message[20:]])
            assert (await client.answer()).said()["body"] == "abcd"
        assert (await other.ask(message[20:])).status == 400


def traced(message: bytes, field: bytes) -> bytes:
    return message.replace(b"Host: h\r\n", b"Host: h\r\n" + field + b"\r\n")


@on_both_loops
@pytest.mark.parametrize(
    "field", [b"traceparent: 00-%d-01", b"Tracestate:a=%d,b=2 ", b"X-B3-TraceId: %d", b"idempotency-key: {%d}\r\nb3: 1"]
)
async def test_heads_that_differ_in_a_number_of_their_own_are_one(field: bytes) -> None:
    async with serving() as site:
        client = await site.client()
        for number in range(5):
            assert await heard(client, traced(post(b"abcd"), field % number)) == "abcd"
        assert await heard(client, post(b"abcd")) == "abcd"
        assert site.heads.found == 4
        assert await heard(client, traced(post(b"abcde"), field % 1)) == "abcde"
        assert await heard(client, traced(post(b"abcd"), b"x-other: 1")) == "abcd"
        assert site.heads.found == 4


@on_both_loops
@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"traceparent: 1\r\n 2", id="a value in two lines"),
        pytest.param(b"traceparent: 1\0", id="a zero"),
        pytest.param(b"traceparent: 1\r2", id="half a line end"),
        pytest.param(b"traceparent: 1\n2: 3\r", id="another line end"),
        pytest.param(b"traceparent : 1", id="a space before the colon"),
        pytest.param(b"traceparent", id="no value"),
        pytest.param(b"traceparent: 1\r\nHost: other", id="another host"),
        pytest.param(b"traceparent: 1\r\nTransfer-Encoding: chunked", id="another framing"),
        pytest.param(b"traceparent: " + 4096 * b"1", id="more than a head may have"),
    ],
)
async def test_what_is_wrong_with_such_a_field_or_behind_it_is_seen_each_time(field: bytes) -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, post(b"abcd"))
        got = await client.ask(traced(post(b"abcd"), field))
        assert got.status in {400, 431}
        assert got.is_last


@on_both_loops
async def test_such_a_field_is_none_before_the_request_line() -> None:
    async with serving() as site:
        client = await site.client()
        message = b"\r\n" + post(b"abcd")
        await learn(site, client, message)
        assert (await client.ask(b"\r\ntraceparent: 1" + message)).status == 400


@on_both_loops
async def test_empty_lines_between_known_requests_do_not_add_up() -> None:
    async with serving(head_bytes=1024) as site:
        client = await site.client()
        await learn(site, client, post(b"abcd"))
        for _ in range(600):
            await client.send_packets([b"\r\n", post(b"abcd")])
            assert (await client.answer()).status == 200
        assert site.heads.found == 600


@on_both_loops
async def test_a_head_is_too_large_also_where_it_is_so_for_such_a_field() -> None:
    async with serving(head_bytes=1024) as site:
        client = await site.client()
        await learn(site, client, post(b"abcd"))
        assert (await client.ask(traced(post(b"abcd"), b"traceparent: " + 1020 * b"1"))).status == 431


def test_no_field_that_is_read_may_vary() -> None:
    for name in {*FIELDS_READ, "content-type", "content-encoding", "content-length", "transfer-encoding", "connection"}:
        head = b"POST / HTTP/1.1\r\n%b: 1\r\n\r\n" % name.encode()
        assert VARYING.sub(b"", head) == head


@on_both_loops
async def test_a_body_in_chunks_is_not_known_by_how_long_it_was() -> None:
    head, coding = chunked(b""), b"4\r\nwxyz\r\n0\r\n\r\n"
    async with serving() as site:
        client = await site.client()
        for _ in range(3):
            assert await heard(client, head + coding) == "wxyz"
        assert (await client.ask(head + b"wxyz")).status == 400


@on_both_loops
async def test_empty_lines_before_a_head_are_none() -> None:
    async with serving() as site:
        client = await site.client()
        for _ in range(3):
            assert await heard(client, b"\r\n\r\n" + post(b"abcd")) == "abcd"
        assert (await client.ask(b"\r\n\r\n" + b"abc\0")).status == 400


@on_both_loops
async def test_who_wants_the_connection_closed_is_heard_each_time() -> None:
    message = post(b"abcd").replace(b"Host: h\r\n", b"Host: h\r\nConnection: close\r\n")
    async with serving() as site:
        for _ in range(3):
            client = await site.client()
            assert (await client.ask(message)).is_last
            assert await client.closed()


@on_both_loops
async def test_a_body_that_looks_like_a_request_is_none() -> None:
    async with serving() as site:
        client = await site.client()
        for body in (post(b"abc"), GET + b"\r\n\r\n" * 8, b"\r\n\r\n" * 4):
            for _ in range(3):
                assert await heard(client, post(body)) == body.decode()
        assert site.heads.found == 3


@on_both_loops
async def test_what_comes_behind_a_known_one_is_answered_behind_it() -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, HELD)
        await client.send_packets([HELD, post(b"2"), GET])
        assert site.heads.found == 1
        site.app.gate.set()
        assert [got.said()["body"] for got in await client.answers(3)] == ["1", "2", ""]
        assert await heard(client, HELD) == "1"


@on_both_loops
async def test_a_stop_waits_for_a_known_one_and_closes_behind_it() -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, HELD)
        client.send(HELD)
        await settle()
        site.listener.close()
        stop = asyncio.create_task(site.server.stop(PATIENCE_SECONDS))
        await settle()
        assert not stop.done()
        site.app.gate.set()
        got = await client.answer()
        assert (got.status, got.is_last) == (200, True)
        assert await client.closed()
        await stop


@on_both_loops
async def test_during_a_stop_a_known_one_is_answered_and_is_the_last() -> None:
    async with serving() as site:
        busy, fresh = await site.client(), await site.client()
        await learn(site, busy, post(b"1"))
        busy.send(post(b"1", "/gated"))
        await settle()
        site.listener.close()
        stop = asyncio.create_task(site.server.stop(PATIENCE_SECONDS))
        await settle()
        got = await fresh.ask(post(b"2"))
        assert (got.said()["body"], got.is_last) == ("2", True)
        assert await fresh.closed()
        site.app.gate.set()
        assert (await busy.answer()).is_last
        await stop


@on_both_loops
@pytest.mark.parametrize("leaves", [Client.end, Client.reset])
async def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(leaves: object) -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, HELD)
        client.send(HELD)
        await settle()
        assert callable(leaves)
        leaves(client)
        await until(lambda: site.only._is_deaf)
        assert site.server.in_flight == 1
        site.app.gate.set()
        if leaves is Client.end:
            assert (await client.answer()).is_last
        await until(lambda: site.server.connections == 0)


@on_both_loops
async def test_a_known_one_counts_among_the_requests_in_flight() -> None:
    async with serving(requests_in_flight=1) as site:
        one, other = await site.client(), await site.client()
        await learn(site, one, HELD)
        one.send(HELD)
        await settle()
        assert site.server.in_flight == 1
        got = await other.ask(HELD)
        assert (got.status, got.said()["label"]) == (503, "requests_in_flight")
        site.app.gate.set()
        assert (await one.answer()).status == 200


@on_both_loops
async def test_no_known_one_is_late_while_we_work_and_the_connection_is_idle_behind_it() -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, HELD)
        client.send(HELD)
        await settle()
        await site.later(10 * BODY_SECONDS)
        site.app.gate.set()
        assert (await client.answer()).status == 200
        await site.later(IDLE_SECONDS - 2)
        assert site.server.connections == 1
        await site.later(4)
        assert await client.closed()


@on_both_loops
async def test_a_client_that_reads_no_answers_is_read_no_further_and_cut_off() -> None:
    message = post(b"x" * (MAX_BODY_BYTES // 4))
    async with serving() as site:
        client = await site.client(receive_bytes=4096)
        client.send(message)
        await until(lambda: site.app.served == 1)
        client.send(message)
        await until(lambda: site.app.served == 2)
        while not site.only._is_paused:
            client.send(message)
            await settle()
        assert site.heads.found > 1
        assert len(site.only._requests) <= PIPELINE_HIGH_WATER + 1
        await site.later(IDLE_SECONDS + 2)
        await until(lambda: site.server.connections == 0)


@on_both_loops
async def test_so_many_heads_are_known_and_no_more() -> None:
    async with serving() as site:
        client = await site.client()
        for number in range(MAX_HEADS + 3):
            await learn(site, client, post(b"ab", f"/{number}"))
        assert len(site.server.known_heads._known) <= MAX_HEADS
        assert await heard(client, post(b"cd", f"/{MAX_HEADS + 2}")) == "cd"
        assert site.heads.found == 1


@on_both_loops
async def test_heads_that_never_come_again_drive_out_none_that_do() -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, post(b"ab"))
        for number in range(MAX_HEADS + 3):
            assert await heard(client, post(b"ab", f"/{number}")) == "ab"
        assert site.heads.found == 0
        assert await heard(client, post(b"cd")) == "cd"
        assert site.heads.found == 1


@on_both_loops
async def test_when_the_program_ends_before_the_answer_the_connection_ends_with_it() -> None:
    async with serving() as site:
        client = await site.client()
        await learn(site, client, HELD)
        client.send(HELD)
        await settle()
        assert site.app.pending is not None
        site.app.pending.cancel()
        await client.gone()
        await until(lambda: site.server.connections == 0)
