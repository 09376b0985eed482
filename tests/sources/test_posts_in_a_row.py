"""Posts that come in one turn of the loop are taken together, and each hears what it would hear by itself."""

import asyncio
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.bodies import BodyFormat, BodyParser
from collector.errors import DiskFull, QueueFull
from collector.intake import SORTED_EVENTS, Intake
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Verdict
from collector.queue.sqlite.drafts import tell_apart
from collector.sources.answers import Answers
from collector.sources.http_body import Memory
from collector.sources.http_message import Answer, Refusal
from collector.sources.whole_posts import WholePosts

Put = Callable[[Sequence[Batch]], asyncio.Future[Sequence[Verdict]]]


class Remembering:
    """A queue that tells events apart as the real one does."""

    def __init__(self) -> None:
        self.puts: list[Sequence[Batch]] = []
        self.lines: list[tuple[str, bytes]] = []
        self._known: set[bytes] = set()

    def put(self, batches: Sequence[Batch]) -> asyncio.Future[Sequence[Verdict]]:
        self.puts.append(batches)
        verdicts = []
        for batch in batches:
            verdict, new = tell_apart(batch, self._known)
            verdicts.append(verdict)
            self.lines += [(batch.app_id, line) for line in new.split(b"\n") if line]
        told: asyncio.Future[Sequence[Verdict]] = asyncio.get_running_loop().create_future()
        told.set_result(verdicts)
        return told


class Site:
    """Posts on their way to a queue, and what their senders have heard."""

    def __init__(self, put: Put, *, batch_events: int = 1000, held_bytes: int = 2**20) -> None:
        self.metrics = Metrics()
        self.memory = Memory(held_bytes)
        queue = type("Queue", (), {"put": staticmethod(put)})()
        parser = BodyParser(max_events=5, keep_fields=["size"], max_kept_bytes=20)
        self.intake = Intake(
            queue,
            default_app="wiki",
            parser=parser,
            batch_events=batch_events,
            max_event_bytes=2**16,
            metrics=self.metrics,
        )
        self.posts = WholePosts(self.intake, self.memory, Answers(self.metrics))
        self.heard: dict[int, Answer | None] = {}

    def add(self, number: int, body: bytes, body_format: BodyFormat = BodyFormat.JSON) -> None:
        def answered(answer: Answer | None) -> None:
            assert number not in self.heard
            self.heard[number] = answer

        self.posts.add(body, body_format, "erp" if body_format is BodyFormat.ENVELOPE else None, answered)

    async def told(self) -> list[tuple[int, object]]:
        """Status and content of each answer, by the posts' numbers."""
        for _ in range(5):
            await asyncio.sleep(0)
        assert self.memory.held_bytes == 0
        answers = [self.heard[number] for number in sorted(self.heard)]
        return [(each.status, json.loads(bytes(each.content))) for each in answers if each is not None]  # type: ignore[arg-type]

    def counted(self) -> dict[str, float]:
        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name.startswith(("collector_events", "collector_refusals", "collector_unknown"))
            or sample.name == "collector_acknowledgement_seconds_count"
        }


def body(number: int, **fields: object) -> bytes:
    return json.dumps(
        {"timestamp": number, "email": "person@example.com", "eventName": "saved"} | fields, ensure_ascii=False
    ).encode()


def answer(accepted: int = 0, duplicates: int = 0) -> dict[str, object]:
    return {"accepted": accepted, "duplicates": duplicates, "rejected": 0, "errors": []}


async def test_posts_of_one_turn_are_put_together_and_each_hears_of_its_own_event() -> None:
    queue = Remembering()
    site = Site(queue.put)
    bodies = [body(1), body(2, appId="crm"), body(1), body(3, appId="wiki"), body(2, appId="crm"), body(4)]
    for number, each in enumerate(bodies):
        site.add(number, each)
    known = {2, 4}
    assert await site.told() == [(200, answer(number not in known, number in known)) for number in range(len(bodies))]
    assert [[(batch.app_id, batch.events) for batch in put] for put in queue.puts] == [[("wiki", 4), ("crm", 2)]]
    site.add(7, body(5))
    await site.told()
    assert len(queue.puts) == 2


@pytest.mark.parametrize(("batch_events", "puts"), [(2, 150), (1000, 2)])
async def test_a_row_is_as_long_as_a_batch_that_keeps_its_order(batch_events: int, puts: int) -> None:
    queue = Remembering()
    site = Site(queue.put, batch_events=batch_events)
    for number in range(300):
        site.add(number, body(299 - number if number != 298 else 200))
    assert SORTED_EVENTS < 300
    assert await site.told() == [(200, answer(number != 298, number == 298)) for number in range(300)]
    assert len(queue.puts) == puts


SOUND = st.builds(body, st.integers(0, 3), appId=st.sampled_from(["wiki", "crm"])) | st.builds(body, st.integers(0, 3))
OTHER = st.sampled_from(
    [
        body(1, size=1),
        body(1, size="x" * 30),
        body(1, colour="red"),
        body(1, appId=""),
        body(1, appId=".."),
        body(1, email="nobody"),
        body(1).replace(b"person@", b"person"),
        body(1) + b"\n" + body(2),
        b"[" + body(1) + b"]",
        b'{"events":[' + body(1) + b"," + body(3) + b"]}",
        b" " + body(1) + b" ",
        body(1)[:-1],
        b'{"timestamp":1,"email":{"x":"}',
        b'"}',
        b"{}",
        b"",
        b"\xff",
        body(1).replace(b"saved", b"\xff"),
        b"\n".join(map(body, range(9))),
    ]
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(SOUND, st.just(BodyFormat.JSON)) | st.tuples(SOUND | OTHER, st.sampled_from(BodyFormat)), max_size=8
    )
)
def test_whatever_comes_in_one_turn_is_judged_stored_counted_and_answered_as_one_by_one(
    posts: list[tuple[bytes, BodyFormat]],
) -> None:
    async def told(*, together: bool) -> tuple[list[tuple[int, object]], list[tuple[str, bytes]], dict[str, float]]:
        queue = Remembering()
        site = Site(queue.put)
        for number, (each, body_format) in enumerate(posts):
            site.add(number, each, BodyFormat.JSON if body_format is BodyFormat.NDJSON else body_format)
            if not together:
                await site.told()
        return await site.told(), sorted(queue.lines), site.counted()

    assert asyncio.run(told(together=True)) == asyncio.run(told(together=False))


async def test_where_the_commit_fails_each_post_is_refused_for_that() -> None:
    failing: asyncio.Future[Sequence[Verdict]] = asyncio.get_running_loop().create_future()
    site = Site(lambda _: failing)
    for number in range(3):
        site.add(number, body(number))
    await asyncio.sleep(0)
    assert (site.heard, site.memory.held_bytes) == ({}, 3 * len(body(0)))
    failing.set_exception(DiskFull("no space left", retry_after_seconds=7))
    refusal = answer() | {"errors": [{"reason": "no space left"}]}
    assert await site.told() == [(507, refusal)] * 3
    assert site.counted()["collector_refusals_total[('reason', 'unavailable'), ('source', 'http')]"] == 3
    assert site.heard[0] is not None
    assert b"Retry-After: 7" in site.heard[0].headers


@pytest.mark.parametrize(("error", "status"), [(QueueFull("full"), 503), (ZeroDivisionError(), 500)])
async def test_where_the_queue_takes_none_each_post_is_refused_for_that(error: Exception, status: int) -> None:
    def put(_batches: Sequence[Batch]) -> asyncio.Future[Sequence[Verdict]]:
        raise error

    site = Site(put)
    for number in range(3):
        site.add(number, body(number))
    assert [got for got, _ in await site.told()] == [status] * 3


async def test_who_is_not_told_any_more_hears_of_that() -> None:
    waiting: asyncio.Future[Sequence[Verdict]] = asyncio.get_running_loop().create_future()
    site = Site(lambda _: waiting)
    site.add(0, body(0))
    site.add(1, body(1))
    site.add(2, b'{"events":[' + body(2) + b"]}", BodyFormat.ENVELOPE)
    await asyncio.sleep(0)
    waiting.cancel()
    assert await site.told() == []
    assert site.heard == {0: None, 1: None, 2: None}


async def test_what_memory_has_no_room_for_is_refused_at_once_and_costs_the_others_nothing() -> None:
    site = Site(Remembering().put, held_bytes=2 * len(body(0)))
    site.add(0, body(0))
    site.add(1, body(1))
    with pytest.raises(Refusal, match=r"http\.max_held_bytes"):
        site.add(2, body(2))
    assert await site.told() == [(200, answer(1))] * 2
