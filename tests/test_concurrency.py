"""The limit stays within its bounds whatever comes, and settles where a server does its best."""

import heapq
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.concurrency import FIRST_LIMIT, LOWEST_LIMIT, AdaptiveLimit

WORK_SECONDS = 0.1

Work = Callable[[random.Random], float]


def even(_rng: random.Random) -> float:
    return WORK_SECONDS


def uneven(rng: random.Random) -> float:
    return max(WORK_SECONDS / 5, rng.gauss(WORK_SECONDS, WORK_SECONDS / 4))


class Settled(NamedTuple):
    rate: float
    """Answers a second."""
    lowest: int
    highest: int


class Server:
    """Works on `capacity` requests at a time and lets the others wait, in virtual time; always as many as the limit."""

    def __init__(self, limit: AdaptiveLimit, capacity: int, work: Work = even) -> None:
        self.limit = limit
        self.work = work
        self._workers = [0.0] * capacity
        self._under_way: list[tuple[float, float, int]] = []
        self._now = 0.0
        self._rng = random.Random(capacity)

    def serve(self, answers: int, *, events: Callable[[], int] = lambda: 1000) -> Settled:
        """What came of so many answers."""
        began, limits = self._now, []
        for _ in range(answers):
            while len(self._under_way) < self.limit.limit:
                token = self.limit.began(len(self._under_way) + 1)
                done = max(heapq.heappop(self._workers), self._now) + self.work(self._rng)
                heapq.heappush(self._workers, done)
                heapq.heappush(self._under_way, (done, self._now, token))
            self._now, sent, token = heapq.heappop(self._under_way)
            self.limit.answered(token, seconds=self._now - sent, events=events())
            limits.append(self.limit.limit)
        return Settled(answers / (self._now - began), min(limits), max(limits))


@pytest.mark.parametrize("work", [even, uneven])
@pytest.mark.parametrize("capacity", [1, 3, 6, 10, 30])
def test_it_settles_where_the_server_does_its_best_and_little_waits_there(capacity: int, work: Work) -> None:
    server = Server(AdaptiveLimit(256), capacity, work)
    server.serve(5_000)
    settled = server.serve(5_000)
    assert settled.rate > 0.95 * capacity / WORK_SECONDS
    assert settled.highest <= 3 * capacity + 8


def test_a_server_that_bears_more_than_is_allowed_gets_what_is_allowed() -> None:
    server = Server(AdaptiveLimit(16), 100)
    server.serve(500)
    settled = server.serve(500)
    assert settled.rate == pytest.approx(16 / WORK_SECONDS, rel=0.05)
    assert settled.lowest == settled.highest == 16


@pytest.mark.parametrize("factor", [0.3, 1.8, 3.0, 20.0])
def test_a_server_that_becomes_slower_or_quicker_by_itself_is_used_to_the_full_again(factor: float) -> None:
    server = Server(AdaptiveLimit(256), 6)
    server.serve(2_000)
    server.work = lambda _rng: WORK_SECONDS * factor
    server.serve(2_000)
    settled = server.serve(2_000)
    assert settled.rate > 0.95 * 6 / (WORK_SECONDS * factor)
    assert settled.highest <= 3 * 6 / min(1, factor) + 8


def test_small_requests_that_are_answered_sooner_do_not_make_large_ones_look_slow() -> None:
    limit = AdaptiveLimit(16)
    rng = random.Random(1)
    for _ in range(500):
        token, events = limit.began(limit.limit), rng.choice([1, 10, 1000])
        limit.answered(token, seconds=0.01 + events / 1000, events=events)
    assert limit.limit == 16


def test_it_does_not_grow_where_it_is_not_used_up() -> None:
    limit = AdaptiveLimit(16)
    for _ in range(100):
        limit.answered(limit.began(FIRST_LIMIT - 1), seconds=1.0, events=1)
    assert limit.limit == FIRST_LIMIT


def test_requests_that_fail_together_lower_it_once() -> None:
    limit = AdaptiveLimit(100)
    while limit.limit < 100:
        limit.answered(limit.began(limit.limit), seconds=1.0, events=1)
    together = [limit.began(number) for number in range(100)]
    for token in together:
        limit.failed(token)
    assert limit.limit == 40
    limit.failed(limit.began(1))
    assert limit.limit == 16


def test_answers_to_what_was_sent_before_it_was_lowered_do_not_raise_it() -> None:
    limit = AdaptiveLimit(100)
    tokens = [limit.began(number) for number in range(1, FIRST_LIMIT + 1)]
    limit.failed(tokens.pop())
    for token in tokens:
        limit.answered(token, seconds=1.0, events=1)
    assert limit.limit == LOWEST_LIMIT


@given(
    st.integers(LOWEST_LIMIT, 256),
    st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.integers(1, 1000), st.integers(0, 3)), max_size=300),
)
def test_whatever_comes_it_stays_within_its_bounds(maximum: int, attempts: list[tuple[bool, float, int, int]]) -> None:
    limit = AdaptiveLimit(maximum)
    tokens = [limit.began(1)]
    for fails, seconds, events, back in attempts:
        before = limit.limit
        tokens.append(limit.began(limit.limit))
        token = tokens[max(0, len(tokens) - 1 - back)]
        if fails:
            limit.failed(token)
            assert limit.limit <= before
        else:
            limit.answered(token, seconds=seconds, events=events)
            assert limit.limit <= before + 1
        assert LOWEST_LIMIT <= limit.limit <= maximum
