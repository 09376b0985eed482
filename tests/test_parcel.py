"""Whatever is refused, each event of a lease is delivered, buried or returned: one of these, and once."""

from hypothesis import given
from hypothesis import strategies as st

from collector.errors import Retryable
from collector.parcel import SUSPICIOUS_BURIALS, Outcome, Parcel
from collector.queue.base import Lease


def sent(
    events: int, *, bad: set[int], at_once: int, named: bool = False, failing_request: int = 0, others: bool = True
) -> tuple[Outcome, list[int], list[range]]:
    """What comes of a lease, what upstream took of it, and the requests; `others` tells whether anything else is taken.

    A request with bad events is refused as a whole, or only those where they are `named`.
    """
    parcel = Parcel(Lease("wiki", 1, 1, events, b"\n".join(b"%d" % number for number in range(events))))
    taken: list[int] = []
    requests: list[range] = []
    while True:
        part = parcel.next_part(at_once)
        if part is None:
            if not parcel.is_in_doubt:
                return parcel.outcome, taken, requests
            parcel.others_are_taken = others
            if not others:
                return parcel.nothing_but_refusals(), taken, requests
            continue
        requests.append(part)
        assert [int(line) for line in parcel.lines_of(part).split(b"\n")] == list(part)
        if len(requests) == failing_request:
            return parcel.left_off(part, Retryable("503")), taken, requests
        guilty = [position for position, number in enumerate(part) if number in bad]
        if guilty and not named:
            parcel.refused(part, "no such day")
        else:
            parcel.taken(part, dict.fromkeys(guilty, "no such day"))
            taken += [number for number in part if number not in bad]


SIZES = st.integers(1, 300)


@given(SIZES, st.sets(st.integers(0, 299)), SIZES, st.booleans(), st.integers(0, 40))
def test_each_event_ends_in_one_place(
    events: int, bad: set[int], at_once: int, named: bool, failing_request: int
) -> None:
    outcome, taken, requests = sent(events, bad=bad, at_once=at_once, named=named, failing_request=failing_request)
    buried = [burial.position for burial in outcome.buried]
    assert sorted([*taken, *buried, *outcome.returned]) == list(range(events))
    assert outcome.delivered == len(taken)
    assert bad.issuperset(buried)
    assert (outcome.failure is not None) == (0 < failing_request <= len(requests))
    assert max(map(len, requests)) <= at_once


@given(st.integers(SUSPICIOUS_BURIALS, 300), SIZES)
def test_where_nothing_at_all_is_taken_nothing_is_buried(events: int, at_once: int) -> None:
    outcome, taken, requests = sent(events, bad=set(range(events)), at_once=at_once, others=False)
    assert (outcome.delivered, outcome.buried, taken) == (0, [], [])
    assert outcome.returned == list(range(events))
    assert "every one of 50 events" in str(outcome.failure)
    assert len(requests) <= 4 * SUSPICIOUS_BURIALS + events / at_once + 1
