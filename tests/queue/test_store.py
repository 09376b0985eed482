"""What a transaction stores, refuses and counts; the file is read back beside the store and believed alone."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from collector.errors import CollectorError, DiskFull, QueueUnavailable
from collector.events import event_key
from collector.queue.base import Batch, Burial, Verdict
from collector.queue.sqlite import recent_keys
from collector.queue.sqlite.database import FILE_NAME, RETRY_AFTER_SECONDS
from collector.queue.sqlite.operations import Done, Put, Settle, Waiting
from collector.queue.sqlite.store import Store
from tests.fake_clock import START_MS, FakeClock
from tests.queue.samples import EAGER, EMAIL, batch, batches, key, line, opened, remembered, stored, waiting_numbers

BATCH_EVENTS = 10
APPS = ("wiki", "crm", "chat")
Opener = Callable[[], Store]


class WallClock(FakeClock):
    """Its wall time is what a test sets it to."""

    wall_ms = START_MS

    def now_us(self) -> int:
        return self.wall_ms * 1000


@pytest.fixture
def wall_clock() -> WallClock:
    return WallClock()


@pytest.fixture
def open_store(tmp_path: Path, wall_clock: WallClock) -> Iterator[Opener]:
    """Opens stores on the test's directory, and closes them at its end."""
    with ExitStack() as stack:

        def open_one() -> Store:
            return stack.enter_context(closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=wall_clock)))

        yield open_one


@pytest.fixture
def store(open_store: Opener) -> Store:
    return open_store()


def transact(store: Store, *operations: Put | Settle) -> list[Done]:
    """What became of operations that are expected to go through together."""
    results = store.transact(operations)
    for result in results:
        if isinstance(result, CollectorError):
            raise result
    return [result for result in results if isinstance(result, Done)]


def put(store: Store, *batches: Batch) -> list[Verdict]:
    """The verdicts of one put in a transaction of its own."""
    (done,) = transact(store, Put.of(batches))
    return list(done.verdicts)


def settlement(
    store: Store, app_id: str, events: int, *, rest: Sequence[int] = (), dead: Sequence[Burial] = ()
) -> Settle:
    """Ends a lease of an app's first segments, as many as hold `events`; `rest` and `dead` name positions in it."""
    taken: list[bytes] = []
    segments = []
    for segment, text in store._execute(
        "SELECT segment, lines FROM segment JOIN app ON segment >> 40 = app WHERE name = ? ORDER BY segment", (app_id,)
    ):
        if len(taken) >= events:
            break
        segments.append(segment)
        taken += text.split(b"\n")
    return Settle(
        app_id,
        segments[0],
        segments[-1],
        len(taken),
        dead=[(burial, taken[burial.position]) for burial in dead],
        rest_events=len(rest),
        rest_lines=b"\n".join(taken[position] for position in rest),
    )


def dead_letters(directory: Path) -> list[tuple[str, int, str, bytes]]:
    with opened(directory) as connection:
        return connection.execute(
            "SELECT name, buried_ms, reason, line FROM dead JOIN app USING (app) ORDER BY dead"
        ).fetchall()


# Verdicts


@pytest.mark.parametrize(
    ("before", "puts", "verdicts", "waiting"),
    [
        pytest.param([], [[[1, 2, 3]]], [[Verdict(3)]], [1, 2, 3], id="all new"),
        pytest.param([1, 2, 3], [[[1, 2, 3]]], [[Verdict(0, (0, 1, 2))]], [1, 2, 3], id="all known"),
        pytest.param([2], [[[1, 2, 3]]], [[Verdict(2, (1,))]], [2, 1, 3], id="one known"),
        pytest.param([], [[[1, 2, 1, 1]]], [[Verdict(2, (2, 3))]], [1, 2], id="twice inside a batch"),
        pytest.param([2], [[[2, 1, 2, 1]]], [[Verdict(1, (0, 2, 3))]], [2, 1], id="known, and twice inside a batch"),
        pytest.param([], [[[1, 2], [2, 3]]], [[Verdict(2), Verdict(1, (0,))]], [1, 2, 3], id="across batches"),
        pytest.param([], [[[1, 2]], [[2, 3]]], [[Verdict(2)], [Verdict(1, (0,))]], [1, 2, 3], id="across puts"),
        pytest.param(
            [4], [[[1]], [[4], [1, 5]]], [[Verdict(1)], [Verdict(0, (0,)), Verdict(1, (0,))]], [4, 1, 5], id="all of it"
        ),
    ],
)
def test_each_event_is_new_once_however_it_comes_again(
    tmp_path: Path,
    store: Store,
    before: list[int],
    puts: list[list[list[int]]],
    verdicts: list[list[Verdict]],
    waiting: list[int],
) -> None:
    if before:
        put(store, batch("wiki", before))
    done = transact(store, *(Put.of([batch("wiki", numbers) for numbers in batches]) for batches in puts))
    assert [each.verdicts for each in done] == verdicts
    assert waiting_numbers(tmp_path, "wiki") == waiting


def test_an_event_stays_known_after_its_delivery_its_burial_and_a_reopen(
    tmp_path: Path, open_store: Opener, wall_clock: WallClock
) -> None:
    store = open_store()
    put(store, batch("wiki", [1, 2, 3]))
    transact(store, settlement(store, "wiki", 3, rest=[2], dead=[Burial(1, "no")]))
    assert put(store, batch("wiki", [1, 2, 3])) == [Verdict(0, (0, 1, 2))]
    store.close()
    wall_clock.wall_ms += 1
    assert put(open_store(), batch("wiki", [1, 2, 3, 4])) == [Verdict(1, (0, 1, 2))]
    assert waiting_numbers(tmp_path, "wiki") == [3, 4]


def test_who_puts_most_of_a_segment_is_told_its_number(store: Store) -> None:
    def segments(*batches: Batch) -> Sequence[int]:
        (done,) = transact(store, Put.of(batches))
        return done.segments

    wiki, crm = 1 << 40, 2 << 40
    assert segments(batch("wiki", [0])) == ()  # the number costs more than it saves
    assert segments(batch("wiki", range(1, 10))) == [wiki + 2]
    mixed = [batch("wiki", range(10, 15)), batch("crm", range(9)), batch("wiki", range(15, 20)), batch("wiki", [])]
    assert segments(*mixed) == [wiki + 3, crm + 1, wiki + 3, 0]
    assert segments(batch("wiki", range(19, 29)), batch("crm", range(9, 19))) == [wiki + 4, crm + 2]
    assert segments(batch("wiki", range(29))) == ()
    assert segments(batch("wiki", range(29, 39))) == [wiki + 5]


@pytest.mark.parametrize(
    "other",
    [
        event_key("crm", 1, EMAIL, "opened"),
        event_key("wiki", 2, EMAIL, "opened"),
        event_key("wiki", 1, "Someone@example.com", "opened"),
        event_key("wiki", 1, EMAIL, "opened "),
    ],
    ids=["app", "timestamp", "email", "event name"],
)
def test_an_event_that_differs_in_one_part_of_the_key_is_new(store: Store, other: bytes) -> None:
    put(store, batch("wiki", [1]))
    assert put(store, Batch("wiki", other, b"{}")) == [Verdict(1)]


@pytest.mark.parametrize("timestamp", [-(2**63), -1, 0, 2**63 - 1])
def test_the_outermost_timestamps_are_told_apart_and_remembered(store: Store, timestamp: int) -> None:
    neighbours = [timestamp, max(timestamp - 1, -(2**63)), min(timestamp + 1, 2**63 - 1)]
    put(store, batch("wiki", dict.fromkeys(neighbours)))
    assert put(store, batch("wiki", [timestamp])) == [Verdict(0, (0,))]


def test_a_put_of_known_events_alone_stores_nothing(tmp_path: Path, store: Store) -> None:
    put(store, batch("wiki", [1, 2]))
    before = stored(tmp_path)
    assert transact(store, Put.of([batch("wiki", [2, 1])])) == [Done([Verdict(0, (0, 1))], 0)]
    assert stored(tmp_path) == before


# Segments


@given(sizes=st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=40)
def test_segments_hold_at_most_a_batch_unless_a_single_batch_is_larger_and_keep_the_order(
    sizes: list[list[int]],
) -> None:
    directory = Path(tempfile.mkdtemp())
    with closing(Store(directory, batch_events=BATCH_EVENTS, clock=FakeClock())) as store:
        puts, begin, whole = [], 0, {0}
        for batch_sizes in sizes:
            batches = []
            for size in batch_sizes:
                batches.append(batch("wiki", range(begin, begin + size)))
                begin += size
                whole.add(begin)
            puts.append(Put.of(batches))
        store.transact(puts)
        share = stored(directory)["wiki"]
    assert share.numbers == list(range(begin))
    end = 0
    for events in share.segments:
        end += events
        assert events <= BATCH_EVENTS or {end - events, end} <= whole
    assert all(a + b > BATCH_EVENTS for a, b in pairwise(share.segments))
    shutil.rmtree(directory)


def test_apps_of_one_transaction_have_segments_of_their_own(tmp_path: Path, store: Store) -> None:
    store.transact([Put.of([batch("wiki", [1]), batch("crm", [1]), batch("wiki", [2])]), Put.of([batch("crm", [2])])])
    assert {app_id: (share.numbers, share.segments) for app_id, share in stored(tmp_path).items()} == {
        "wiki": ([1, 2], [2]),
        "crm": ([1, 2], [2]),
    }


# Counters and verdicts against a model


Numbers = st.lists(st.integers(0, 60), min_size=1, max_size=25)
Puts = st.lists(st.lists(st.tuples(st.sampled_from(APPS), Numbers), min_size=1, max_size=3), max_size=3)


class StoreModel(RuleBasedStateMachine):
    """The store beside a set of known keys and a list of waiting events for each app."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.clock = WallClock()
        self.known: set[bytes] = set()
        self.waiting: dict[str, list[int]] = {}
        self.dead: list[tuple[str, str, bytes]] = []
        self.latest_ms = START_MS
        self.patches = ExitStack()

    @initialize(keeps_recent=st.booleans())
    def begin(self, keeps_recent: bool) -> None:
        if keeps_recent:
            self.patches.enter_context(mock.patch.multiple(recent_keys, **EAGER))
        self.open()

    def open(self) -> None:
        self.store = Store(self.directory, batch_events=BATCH_EVENTS, clock=self.clock)

    @rule(
        puts=Puts,
        app_id=st.sampled_from(APPS),
        events=st.integers(1, 40),
        seed=st.integers(0, 99),
        settle_first=st.booleans(),
        passed_ms=st.sampled_from([0, 0, 1, 5000, -5000]),
    )
    def transact(
        self,
        puts: list[list[tuple[str, list[int]]]],
        app_id: str,
        events: int,
        seed: int,
        settle_first: bool,
        passed_ms: int,
    ) -> None:
        self.clock.wall_ms += passed_ms
        operations: list[Put | Settle] = [
            Put.of([batch(app_id, numbers) for app_id, numbers in batches]) for batches in puts
        ]
        settlements = [self._settlement(app_id, events, seed)] if self.waiting.get(app_id) else []
        expected: list[list[Verdict]] = [[self._expect(*each) for each in batches] for batches in puts]
        if settlements:  # of what was there before this transaction
            operations.insert(0 if settle_first else len(operations), settlements[0])
            expected.insert(0 if settle_first else len(expected), [])
        assert [list(done.verdicts) for done in transact(self.store, *operations)] == expected
        if self.store.is_crowded:
            self.store.make_room()

    @rule(app_id=st.sampled_from(APPS), numbers=Numbers)
    def another_process_puts(self, app_id: str, numbers: list[int]) -> None:
        expected = self._expect(app_id, numbers)
        with closing(Store(self.directory, batch_events=BATCH_EVENTS, clock=self.clock)) as other:
            assert put(other, batch(app_id, numbers)) == [expected]

    @rule()
    def keys_enter_the_tree(self) -> None:
        self.store.enter_recent_keys()

    @rule()
    def die(self) -> None:
        self.store._recent.forget()  # what is on disk is all there is
        self.store.close()
        self.open()

    @rule(share=st.floats(0, 1), step=st.integers(1, 50))
    def prune(self, share: float, step: int) -> None:
        before = remembered(self.directory)
        with opened(self.directory) as connection:
            (kept_from,) = connection.execute("SELECT min(stamp) FROM recent_keys").fetchone()
        stamps = sorted(before.values())
        cut = stamps[int(share * (len(stamps) - 1))] if stamps else 0
        if kept_from is not None:
            cut = min(cut, kept_from)  # what has not entered the tree for good is not forgotten
        after: bytes | None = b""
        while after is not None:
            after = self.store.prune(after, step, cut * 1_000_000)
        self.known -= {key for key, stamp in before.items() if stamp < cut}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.clock.wall_ms = self.latest_ms = self.latest_ms + 3_600_000
        self.open()

    @invariant()
    def the_file_is_what_the_model_says(self) -> None:
        keys = remembered(self.directory)
        assert set(keys) == self.known
        assert self.store.remembered_keys() == len(self.known)
        shares = stored(self.directory)
        assert {app_id: share.numbers for app_id, share in shares.items()} == self.waiting
        for app_id, share in shares.items():
            assert (share.counted_events, share.counted_bytes) == (share.events, share.bytes), app_id
            assert share.counted_dead == share.dead
        assert sorted((waiting.app_id, waiting.events) for waiting in self.store.apps()) == sorted(
            (app_id, len(numbers)) for app_id, numbers in self.waiting.items()
        )
        assert [(name, reason, text) for name, _, reason, text in dead_letters(self.directory)] == self.dead

    def teardown(self) -> None:
        self.store.close()
        self.patches.close()
        shutil.rmtree(self.directory)

    def _expect(self, app_id: str, numbers: list[int]) -> Verdict:
        duplicates = []
        for position, number in enumerate(numbers):
            if key(app_id, number) in self.known:
                duplicates.append(position)
            else:
                self.known.add(key(app_id, number))
                self.waiting.setdefault(app_id, []).append(number)
        return Verdict(len(numbers) - len(duplicates), tuple(duplicates))

    def _settlement(self, app_id: str, events: int, seed: int) -> Settle:
        plain = settlement(self.store, app_id, events)
        fate = random.Random(seed).choices(["delivered", "rest", "dead"], k=plain.events)
        rest = [position for position, what in enumerate(fate) if what == "rest"]
        dead = [Burial(position, f"refused at {position}") for position, what in enumerate(fate) if what == "dead"]
        leased, later = self.waiting[app_id][: plain.events], self.waiting[app_id][plain.events :]
        self.dead += [(app_id, burial.reason, line(app_id, leased[burial.position])) for burial in dead]
        self.waiting[app_id] = [leased[position] for position in rest] + later
        return settlement(self.store, app_id, events, rest=rest, dead=dead)


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


# Stamps


@pytest.mark.parametrize("passed_ms", [0, 5, 3_600_000, -3_600_000])
def test_what_is_known_stays_known_whatever_the_clock_does(
    tmp_path: Path, store: Store, wall_clock: WallClock, passed_ms: int
) -> None:
    put(store, batch("wiki", [0]))
    wall_clock.wall_ms += passed_ms
    assert put(store, batch("wiki", [0, 1]), batch("crm", [0])) == [Verdict(1, (0,)), Verdict(1)]
    stamps = remembered(tmp_path)
    assert stamps[key("wiki", 0)] == START_MS // 1000
    assert stamps[key("wiki", 1)] == stamps[key("crm", 0)] == (START_MS + max(0, passed_ms)) // 1000


# What does not fit


def cap_pages(store: Store, spare: int) -> None:
    """The file may grow by `spare` pages and no more, as on a disk that is about to be full."""
    (pages,) = store._execute("PRAGMA page_count").fetchone()
    store._execute(f"PRAGMA max_page_count = {pages + spare}").fetchone()


LARGE = batches("new", range(5_000))


def test_a_full_disk_stores_nothing_of_a_group_and_says_so_to_every_put(tmp_path: Path, store: Store) -> None:
    put(store, batch("wiki", [1, 2]))
    before = stored(tmp_path), remembered(tmp_path)
    cap_pages(store, 5)
    results = store.transact([Put.of([batch("wiki", [3])]), Put.of(LARGE)])
    assert [type(result) for result in results] == [DiskFull, DiskFull]
    assert (stored(tmp_path), remembered(tmp_path)) == before


def test_settlements_go_through_on_a_full_disk_beside_puts_that_do_not(tmp_path: Path, store: Store) -> None:
    put(store, batch("wiki", range(20)))
    cap_pages(store, 5)
    results = store.transact(
        [
            Put.of(LARGE),
            settlement(store, "wiki", 20, rest=[3, 4], dead=[Burial(7, "no")]),
            Put.of([batch("crm", [1])]),
        ]
    )
    assert [type(result) for result in results] == [DiskFull, Done, DiskFull]
    assert {app_id: share.numbers for app_id, share in stored(tmp_path).items()} == {"wiki": [3, 4]}
    assert len(remembered(tmp_path)) == 20


def test_a_disk_that_has_room_again_takes_the_same_events_as_new_ones(tmp_path: Path, store: Store) -> None:
    cap_pages(store, 80)  # the keys fit and so does the first app's segment; then there is no room
    with pytest.raises(DiskFull) as refusal:
        put(store, batch("early", [1]), *LARGE)
    assert refusal.value.retry_after_seconds == RETRY_AFTER_SECONDS
    assert (stored(tmp_path), remembered(tmp_path)) == ({}, {})
    with pytest.raises(DiskFull):  # not even what would fit: the room that is left is for settlements
        put(store, batch("other", [2]))
    cap_pages(store, 5)
    store.recover()
    assert isinstance(store.trouble, DiskFull)
    cap_pages(store, 10_000)
    store.recover()
    assert store.trouble is None
    # The first app was added in the transaction that is undone; another takes its number, which nothing may confuse.
    assert put(store, batch("other", [2])) == [Verdict(1)]
    assert put(store, batch("early", [1]), *LARGE) == [Verdict(1), *[Verdict(1000)] * 5]
    assert {app_id: share.numbers for app_id, share in stored(tmp_path).items()} == {
        "other": [2],
        "early": [1],
        "new": list(range(5_000)),
    }


def test_a_lock_that_another_process_keeps_is_unavailable_with_nothing_stored(tmp_path: Path, store: Store) -> None:
    put(store, batch("wiki", range(3)))
    ending = settlement(store, "wiki", 3)
    store._execute("PRAGMA busy_timeout = 0")
    with opened(tmp_path) as other:
        other.execute("BEGIN IMMEDIATE")
        results = store.transact([Put.of([batch("wiki", [3])]), ending])
        assert [type(result) for result in results] == [QueueUnavailable, QueueUnavailable]
        other.execute("ROLLBACK")
    assert waiting_numbers(tmp_path, "wiki") == [0, 1, 2]
    put_done, settle_done = transact(store, Put.of([batch("wiki", [3])]), ending)
    assert (put_done.verdicts, settle_done.verdicts) == ([Verdict(1)], ())
    assert waiting_numbers(tmp_path, "wiki") == [3]


# Settling


def test_burying_keeps_line_reason_app_and_time(tmp_path: Path, store: Store, wall_clock: WallClock) -> None:
    put(store, batch("wiki", [1, 2, 3]), batch("crm", [1]))
    wall_clock.wall_ms += 60_000
    transact(
        store,
        settlement(store, "wiki", 3, dead=[Burial(2, "400: não é um evento"), Burial(0, "")]),
        settlement(store, "crm", 1, dead=[Burial(0, "gone")]),
    )
    assert dead_letters(tmp_path) == [
        ("wiki", START_MS + 60_000, "400: não é um evento", line("wiki", 3)),
        ("wiki", START_MS + 60_000, "", line("wiki", 1)),
        ("crm", START_MS + 60_000, "gone", line("crm", 1)),
    ]
    assert {app_id: share.counted_dead for app_id, share in stored(tmp_path).items()} == {"wiki": 2, "crm": 1}


def test_what_is_put_back_keeps_its_place_and_its_age(tmp_path: Path, store: Store, wall_clock: WallClock) -> None:
    put(store, batch("wiki", [1, 2]))
    wall_clock.wall_ms += 1000
    put(store, batch("wiki", [3, 4]))
    wall_clock.wall_ms += 1000
    put(store, batch("wiki", [5, 6]))
    transact(store, settlement(store, "wiki", 4, rest=[1, 3]))
    assert waiting_numbers(tmp_path, "wiki") == [2, 4, 5, 6]
    (waiting,) = store.apps()
    assert waiting == Waiting("wiki", 4, batch("wiki", [2, 4]).bytes + batch("wiki", [5, 6]).bytes, START_MS * 1000, 0)


def test_the_apps_are_known_with_what_waits_and_since_when(open_store: Opener, wall_clock: WallClock) -> None:
    store = open_store()
    assert store.apps() == []
    put(store, batch("wiki", [1]))
    wall_clock.wall_ms += 500
    put(store, batch("crm", [1, 2]), batch("wiki", [2]))
    put(store, batch("chat", [1]))
    transact(store, settlement(store, "chat", 1))
    for each in (store, open_store()):
        assert {waiting.app_id: (waiting.events, waiting.bytes, waiting.oldest_stamp) for waiting in each.apps()} == {
            "wiki": (2, batch("wiki", [1, 2]).bytes, START_MS * 1000),
            "crm": (2, batch("crm", [1, 2]).bytes, (START_MS + 500) * 1000),
            "chat": (0, 0, None),
        }


def test_commits_of_others_are_noticed_and_those_of_its_own_are_not(open_store: Opener) -> None:
    store, other = open_store(), open_store()
    before = store.foreign_commits()
    put(store, batch("wiki", [1]))
    assert store.foreign_commits() == before
    put(other, batch("wiki", [2]))
    assert store.foreign_commits() != before


# Forgetting


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_pruning_forgets_exactly_what_is_older_than_the_cut_and_counts_it(
    tmp_path: Path, store: Store, wall_clock: WallClock, step: int
) -> None:
    for second in range(5):
        wall_clock.wall_ms = START_MS + 1000 * second
        put(store, batch("wiki", range(second, 40, 5)))  # old and new keys are neighbours
    before = remembered(tmp_path)
    cut = (START_MS + 2000) * 1000
    after: bytes | None = b""
    steps = 0
    while after is not None:
        kept = len(remembered(tmp_path))
        after = store.prune(after, step, cut)
        assert kept - len(remembered(tmp_path)) <= step
        steps += 1
    assert remembered(tmp_path) == {each: stamp for each, stamp in before.items() if stamp * 1_000_000 >= cut}
    assert store.remembered_keys() == 24
    assert steps == 40 // step + 1
    assert stored(tmp_path)["wiki"].events == 40  # what waits is not touched


def test_a_pruned_key_is_new_again_and_its_neighbours_are_not(store: Store, wall_clock: WallClock) -> None:
    put(store, batch("wiki", [1, 3]))
    wall_clock.wall_ms += 1000
    put(store, batch("wiki", [2]))
    assert store.prune(b"", 100, (START_MS + 1000) * 1000) is None
    assert put(store, batch("wiki", [1, 2, 3])) == [Verdict(2, (1,))]
    assert store.remembered_keys() == 3


@pytest.mark.parametrize("after_ms", [0, 1, 999])
def test_no_key_is_forgotten_before_its_time_however_its_stamp_is_rounded(
    store: Store, wall_clock: WallClock, after_ms: int
) -> None:
    wall_clock.wall_ms = START_MS + after_ms
    put(store, batch("wiki", [1]))
    store.prune(b"", 100, (START_MS + after_ms) * 1000)
    assert store.remembered_keys() == 1
    store.prune(b"", 100, (START_MS + after_ms + 1000) * 1000)
    assert store.remembered_keys() == 0


def test_keys_from_before_version_3_have_their_stamp_in_microseconds_and_are_forgotten_in_their_time(
    tmp_path: Path, store: Store
) -> None:
    put(store, batch("wiki", range(4)))
    with opened(tmp_path) as other:
        for number in range(3):
            stamp = (START_MS + number) * 1000
            other.execute("UPDATE seen SET stamp = ? WHERE key = ?", (stamp, key("wiki", number)))
    store.prune(b"", 100, (START_MS + 1) * 1000)
    assert set(remembered(tmp_path)) == {key("wiki", number) for number in (1, 2, 3)}
    store.prune(b"", 100, (START_MS + 1000) * 1000)
    assert remembered(tmp_path) == {}


@pytest.mark.parametrize("sizes", [[1], [7, 3], [10, 10, 1], [6, 6, 6]])
@pytest.mark.parametrize("apps", [("wiki",), ("wiki", "crm")])
def test_new_events_of_any_number_of_batches_and_apps_make_full_segments_and_are_all_known(
    tmp_path: Path, store: Store, sizes: Sequence[int], apps: Sequence[str]
) -> None:
    put(store, *(batch(app_id, [10**6]) for app_id in apps))  # the apps are known
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    batches = [
        batch(app_id, range(start, start + size)) for start, size in zip(starts, sizes, strict=True) for app_id in apps
    ]
    assert put(store, *batches) == [Verdict(each.events) for each in batches]
    assert set(remembered(tmp_path)) == {key(app, n) for app in apps for n in (*range(sum(sizes)), 10**6)}
    for app_id in apps:
        assert sorted(stored(tmp_path)[app_id].numbers) == [*range(sum(sizes)), 10**6]
        assert max(stored(tmp_path)[app_id].segments) <= BATCH_EVENTS
    assert put(store, *batches) == [Verdict(0, tuple(range(each.events))) for each in batches]


def test_an_event_twice_among_new_ones_of_several_segments_is_stored_once(tmp_path: Path, store: Store) -> None:
    put(store, batch("wiki", [10**6]), batch("crm", [10**6]))
    verdicts = put(store, batch("wiki", range(10)), batch("crm", range(5)), batch("wiki", range(9, 15)))
    assert verdicts == [Verdict(10), Verdict(5), Verdict(5, (0,))]
    assert sorted(stored(tmp_path)["wiki"].numbers) == [*range(15), 10**6]


def test_among_many_events_those_that_are_known_are_found_wherever_they_stand(tmp_path: Path, store: Store) -> None:
    old = [0, 1, 999, 1000, 1001, 1999, 2000, 2499]
    put(store, batch("wiki", old))
    batches = [batch("wiki", range(start, start + 10)) for start in range(0, 2500, 10)]
    again = batch("wiki", range(2495, 2505))
    verdicts = put(store, *batches, again)
    assert sum(verdict.accepted for verdict in verdicts) == 2500 - len(old) + 5
    assert [10 * at + place for at, verdict in enumerate(verdicts[:-1]) for place in verdict.duplicates] == old
    assert verdicts[-1] == Verdict(5, (0, 1, 2, 3, 4))
    assert sorted(stored(tmp_path)["wiki"].numbers) == list(range(2505))
    assert set(remembered(tmp_path)) == {key("wiki", number) for number in range(2505)}


def test_a_file_of_an_earlier_version_is_taken_over_only_by_who_is_alone(tmp_path: Path, open_store: Opener) -> None:
    other = open_store()
    with opened(tmp_path) as connection:
        connection.execute("PRAGMA user_version = 2")  # as if the other one were of that version
    with pytest.raises(QueueUnavailable, match=r"schema version 2, .* stop every process"):
        open_store()
    assert put(other, batch("wiki", [1])) == [Verdict(1)]  # who has it goes on


def test_one_store_at_a_time_settles_for_who_delivers(open_store: Opener) -> None:
    store, other = open_store(), open_store()
    store.settle_alone(0)
    store.settle_alone(0)  # it does already
    with pytest.raises(QueueUnavailable, match="is its settler"):
        other.settle_alone(0)
    store.let_settle()
    other.settle_alone(0)
    other.close()
    store.settle_alone(0)


def test_pruning_that_another_process_locks_out_forgets_nothing_and_can_be_repeated(
    tmp_path: Path, store: Store
) -> None:
    put(store, batch("wiki", [1, 2]))
    store._execute("PRAGMA busy_timeout = 0")
    with opened(tmp_path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailable):
            store.prune(b"", 100, (START_MS + 1000) * 1000)
        other.execute("ROLLBACK")
    assert store.remembered_keys() == 2
    assert store.prune(b"", 100, (START_MS + 1000) * 1000) is None
    assert (store.remembered_keys(), remembered(tmp_path)) == (0, {})


# Giving space back


def test_free_pages_go_back_to_the_file_system_in_small_steps(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.queue.sqlite.store.VACUUM_PAGES", 4)
    put(store, *(batch("wiki", range(begin, begin + 100)) for begin in range(0, 10_000, 100)))
    transact(store, settlement(store, "wiki", 10_000))

    def pages() -> int:
        return int(store._execute("PRAGMA page_count").fetchone()[0])

    full = pages()
    store.shrink()
    assert full - 8 <= pages() <= full - 4  # what is given back at once is bounded, and not one page alone
    for _ in range(full):
        store.shrink()
    left = pages()
    assert left < full * 0.8
    assert int(store._execute("PRAGMA freelist_count").fetchone()[0]) <= max(16 * 4, left // 5)
    store.close()
    assert (tmp_path / FILE_NAME).stat().st_size == left * 4096


def test_a_step_of_giving_back_ends_when_its_time_is_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.queue.sqlite.store.VACUUM_PAGES", 4)
    monkeypatch.setattr("collector.queue.sqlite.store.VACUUM_SECONDS", 0.0)
    put(store, *(batch("wiki", range(begin, begin + 100)) for begin in range(0, 10_000, 100)))
    transact(store, settlement(store, "wiki", 10_000))
    (before,) = store._execute("PRAGMA page_count").fetchone()
    store.shrink()
    assert before - 2 <= store._execute("PRAGMA page_count").fetchone()[0] < before


@pytest.mark.parametrize(("limit_bytes", "is_cut"), [(1000, True), (10**9, False)])
def test_the_log_is_cut_back_once_it_is_above_its_limit(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, limit_bytes: int, is_cut: bool
) -> None:
    monkeypatch.setattr("collector.queue.sqlite.store.WAL_LIMIT_BYTES", limit_bytes)
    put(store, batch("wiki", range(100)))
    wal = tmp_path / f"{FILE_NAME}-wal"
    assert wal.stat().st_size > 1000
    store.shrink()
    assert (wal.stat().st_size == 0) is is_cut
    assert waiting_numbers(tmp_path, "wiki") == list(range(100))


def test_lines_come_back_byte_for_byte(tmp_path: Path, store: Store) -> None:
    odd = [b'{"a":"\\u0000"}', '{"a":"\u2028 \U0001f600 \\" ,"}'.encode(), b"{}", b'{"a":"' + b"x" * 100_000 + b'"}']
    put(store, Batch("wiki", b"".join(key("wiki", number) for number in range(len(odd))), b"\n".join(odd)))
    transact(store, settlement(store, "wiki", 4, rest=[0, 1, 3], dead=[Burial(2, "empty")]))
    with opened(tmp_path) as connection:
        assert connection.execute("SELECT lines FROM segment").fetchall() == [(b"\n".join([odd[0], odd[1], odd[3]]),)]
        assert connection.execute("SELECT line FROM dead").fetchall() == [(b"{}",)]


def test_the_size_of_a_put_is_that_of_its_lines_and_a_settlement_has_none(store: Store) -> None:
    put(store, batch("wiki", [1, 2]))
    assert Put.of([batch("wiki", [1, 2]), batch("crm", [3])]).bytes == sum(
        len(text) + len("\n") for text in (line("wiki", 1), line("wiki", 2), line("crm", 3))
    )
    assert settlement(store, "wiki", 2, rest=[0]).bytes == 0


def test_what_was_done_says_by_how_many_bytes_more_or_less_is_waiting(store: Store) -> None:
    numbers = list(range(BATCH_EVENTS))
    all_bytes, rest_bytes = batch("wiki", numbers).bytes, batch("wiki", [3, 4]).bytes
    (done,) = transact(store, Put.of([batch("wiki", numbers)]))
    assert done.bytes == all_bytes
    (done,) = transact(store, settlement(store, "wiki", 10, rest=[3, 4], dead=[Burial(0, "no")]))
    assert done.bytes == rest_bytes - all_bytes
    (done,) = transact(store, settlement(store, "wiki", 2))
    assert done.bytes == -rest_bytes
