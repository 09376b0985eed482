"""Callers that wait together are committed together, and none is forgotten, cancelled or not."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from collector.clock import Clock
from collector.errors import CollectorError, DiskFull, QueueUnavailable
from collector.queue.base import Batch, Verdict
from collector.queue.sqlite import store_thread
from collector.queue.sqlite.group_commit import GroupCommit, Verdicts
from collector.queue.sqlite.operations import Done, Operation, Put, Settle
from collector.queue.sqlite.step_thread import StepThread
from collector.queue.sqlite.store_thread import StoreThread
from collector.queue.sqlite.writer import MAX_GROUP_BYTES
from tests.patience import PATIENCE_SECONDS


class Disk:
    """Stands for the store: its first commits stay under way until they are let go, and what it was given is kept."""

    is_crowded = False

    def __init__(self, *, held: int) -> None:
        self.groups: list[list[str]] = []
        self.answer: Callable[[Operation], Done | CollectorError] = done
        self.failures: list[Exception] = []
        self.threads: set[int] = set()
        self._held = held
        self._entered = threading.Semaphore(0)
        self._release = threading.Semaphore(0)

    def reconnect(self) -> None:
        """Nobody forks."""

    def transact(self, operations: Sequence[Operation]) -> list[Done | CollectorError]:
        self.groups.append([name_of(operation) for operation in operations])
        self.threads.add(threading.get_ident())
        self._entered.release()
        if len(self.groups) <= self._held:
            assert self._release.acquire(timeout=PATIENCE_SECONDS)
        if self.failures:
            raise self.failures.pop(0)
        return [self.answer(operation) for operation in operations]

    async def entered(self) -> None:
        """The next commit is under way."""
        await asyncio.to_thread(self.wait_until_entered)

    def wait_until_entered(self) -> None:
        """The same, and the loop does nothing meanwhile."""
        assert self._entered.acquire(timeout=PATIENCE_SECONDS)

    def release(self) -> None:
        """The commit that is held, or the next that would be, goes through."""
        self._release.release()


class Books:
    """What the group commit reports beside its answers."""

    def __init__(self) -> None:
        self.applied: list[list[str]] = []
        self.observed: list[int] = []
        self.failures: list[BaseException] = []

    def apply(self, group: Sequence[tuple[Operation, Done]]) -> None:
        if names := [name_of(operation) for operation, _ in group]:
            self.applied.append(names)

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)

    def observe(self, seconds: float, callers: int) -> None:
        assert seconds >= 0
        self.observed.append(callers)


def put(name: str, size: int = 10) -> Put:
    return Put.of([Batch(name, b"", b"x" * (size - 1))])


def name_of(operation: Operation) -> str:
    return operation.app_id if isinstance(operation, Settle) else operation.batches[0].app_id


def done(operation: Operation) -> Done:
    """A verdict by which the caller can tell that the answer is his own."""
    return Done([verdict_of(name_of(operation))], 0)


def verdict_of(name: str) -> Verdict:
    return Verdict(int.from_bytes(name.encode(), "big"))


async def turns(count: int = 3) -> None:
    """Lets the loop run a little: what could happen without a commit has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def held() -> int:
    """How many commits stay under way until they are released; a test may say otherwise."""
    return 1


@pytest.fixture
def disk(held: int) -> Disk:
    return Disk(held=held)


@pytest.fixture
async def commits(disk: Disk, books: Books, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GroupCommit]:
    monkeypatch.setattr(store_thread, "Store", lambda *_args, **_kwargs: disk)
    thread = StepThread("test-writer")
    writer = StoreThread(thread)
    commits = GroupCommit(writer.give, applied=books.apply, failed=books.fail, observe_commit=books.observe)
    await writer.open(Path(), batch_events=1, clock=Clock(), committed=commits.heard)
    yield commits
    for _ in range(100):  # nothing that a failed test left behind may hold the thread
        disk.release()
    thread.shutdown()


async def submitted(commits: GroupCommit, *operations: Operation) -> list[Verdicts]:
    """Callers that wait, one for each operation, in this order."""
    callers = [commits.submit(operation) for operation in operations]
    await turns()
    return callers


async def outcomes(callers: Sequence[Verdicts]) -> list[Sequence[Verdict] | BaseException]:
    """What becomes of callers, their exceptions included."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.gather(*callers, return_exceptions=True)


async def test_what_arrives_during_a_commit_goes_into_one_next_group(commits: GroupCommit, disk: Disk) -> None:
    first = await submitted(commits, put("a"))
    await disk.entered()
    later = await submitted(commits, put("b"), put("c"))
    later += await submitted(commits, Settle("d", 1, 1, 1))
    assert disk.groups == [["a"]]
    disk.release()
    assert await outcomes(first + later) == [[verdict_of(name)] for name in "abcd"]
    assert disk.groups == [["a"], ["b", "c", "d"]]


async def test_the_next_group_is_committed_before_the_loop_has_heard_of_the_first(
    commits: GroupCommit, disk: Disk, books: Books
) -> None:
    callers = await submitted(commits, put("a"))
    await disk.entered()
    callers += await submitted(commits, put("b"), put("c"))
    disk.release()
    disk.wait_until_entered()
    assert disk.groups == [["a"], ["b", "c"]]
    assert books.applied == []
    assert await outcomes(callers) == [[verdict_of(name)] for name in "abc"]
    assert books.applied == disk.groups


@pytest.mark.parametrize("held", [0])
async def test_what_one_turn_of_the_loop_brings_is_one_group(commits: GroupCommit, disk: Disk, books: Books) -> None:
    await outcomes([commits.submit(put(name)) for name in "abcde"])
    assert disk.groups == [list("abcde")]
    assert books.observed == [5]


async def test_a_caller_alone_does_not_wait_for_company(commits: GroupCommit, disk: Disk) -> None:
    callers = await submitted(commits, put("a"))
    await disk.entered()
    assert disk.groups == [["a"]]
    disk.release()
    assert await outcomes(callers) == [[verdict_of("a")]]


@pytest.mark.parametrize("held", [0])
@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        pytest.param([MAX_GROUP_BYTES // 2] * 3, ["ab", "c"], id="two fit"),
        pytest.param([MAX_GROUP_BYTES, 1, 1], ["a", "bc"], id="one is as large as a group may be"),
        pytest.param([3 * MAX_GROUP_BYTES, 1, 3 * MAX_GROUP_BYTES], ["a", "b", "c"], id="larger than a group"),
    ],
)
async def test_a_group_holds_no_more_bytes_than_allowed_but_at_least_one_operation(
    commits: GroupCommit, disk: Disk, sizes: list[int], groups: list[str]
) -> None:
    callers = await submitted(commits, *(put(name, size) for name, size in zip("abc", sizes, strict=True)))
    assert await outcomes(callers) == [[verdict_of(name)] for name in "abc"]
    assert disk.groups == [list(group) for group in groups]


@pytest.mark.parametrize("held", [0])
async def test_all_commits_run_in_the_thread_that_was_given_and_one_at_a_time(commits: GroupCommit, disk: Disk) -> None:
    for name in "abc":
        await outcomes(await submitted(commits, put(name)))
    assert len(disk.threads) == 1
    assert disk.threads != {threading.get_ident()}


@pytest.mark.parametrize("is_under_way", [True, False])
async def test_what_a_cancelled_caller_submitted_is_committed_and_applied_all_the_same(
    commits: GroupCommit, disk: Disk, books: Books, is_under_way: bool
) -> None:
    before = [] if is_under_way else await submitted(commits, put("x"))
    if before:
        await disk.entered()
    cancelled, other = await submitted(commits, put("a"), put("b"))
    if is_under_way:
        await disk.entered()
    cancelled.cancel()
    await turns()
    assert cancelled.cancelled()
    disk.release()
    assert await outcomes([*before, other]) == [[verdict_of(name)] for name in ("xb" if before else "b")]
    assert disk.groups == ([["x"]] if before else []) + [["a", "b"]]
    assert books.applied == disk.groups
    assert commits.uncommitted_bytes == 0


async def test_a_group_whose_callers_were_all_cancelled_is_committed_and_the_next_one_too(
    commits: GroupCommit, disk: Disk, books: Books
) -> None:
    for caller in await submitted(commits, put("a"), put("b")):
        caller.cancel()
    await disk.entered()
    later = await submitted(commits, put("c"))
    disk.release()
    assert await outcomes(later) == [[verdict_of("c")]]
    assert books.applied == [["a", "b"], ["c"]]


async def test_an_exception_of_the_commit_reaches_every_caller_of_its_group_and_no_other(
    commits: GroupCommit, disk: Disk, books: Books
) -> None:
    failure = RuntimeError("the commit broke")
    disk.failures = [failure]
    group = await submitted(commits, put("a"), put("b"), Settle("c", 1, 1, 1))
    await disk.entered()
    later = await submitted(commits, put("d"))
    disk.release()
    assert await outcomes(group + later) == [failure, failure, failure, [verdict_of("d")]]
    assert books.applied == [["d"]]
    assert commits.uncommitted_bytes == 0


@pytest.mark.parametrize("held", [0])
async def test_a_refusal_reaches_the_caller_whose_operation_was_refused_alone(
    commits: GroupCommit, disk: Disk, books: Books
) -> None:
    refusal = DiskFull("no room")
    disk.answer = lambda operation: refusal if name_of(operation) == "b" else done(operation)
    callers = await submitted(commits, put("a"), put("b"), put("c"))
    assert await outcomes(callers) == [[verdict_of("a")], refusal, [verdict_of("c")]]
    assert books.failures == [refusal]
    assert books.applied == [["a", "c"]]
    assert commits.uncommitted_bytes == 0


async def test_a_failure_whose_caller_was_cancelled_troubles_nobody(commits: GroupCommit, disk: Disk) -> None:
    disk.failures = [RuntimeError("the commit broke")]
    (caller,) = await submitted(commits, put("a"))
    await disk.entered()
    caller.cancel()
    disk.release()
    await commits.close()
    assert caller.cancelled()
    assert commits.uncommitted_bytes == 0


@pytest.mark.parametrize("held", [0])
async def test_the_whole_group_is_applied_before_any_of_its_callers_goes_on(commits: GroupCommit, books: Books) -> None:
    seen = []

    async def call(name: str) -> None:
        await commits.submit(put(name))
        seen.append(list(books.applied))

    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(call(name) for name in "abc"))
    assert seen == [[["a", "b", "c"]]] * 3


async def test_closing_waits_for_all_that_was_submitted_and_refuses_what_comes_later(
    commits: GroupCommit, disk: Disk, books: Books
) -> None:
    callers = await submitted(commits, put("a"))
    await disk.entered()
    callers += await submitted(commits, put("b"), put("c", MAX_GROUP_BYTES))
    closing = asyncio.create_task(commits.close())
    await turns()
    assert not closing.done()
    with pytest.raises(QueueUnavailable, match="closed"):
        commits.submit(put("late"))
    disk.release()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await closing
    assert disk.groups == [["a"], ["b"], ["c"]]
    assert books.applied == disk.groups
    assert await outcomes(callers) == [[verdict_of(name)] for name in "abc"]


async def test_closing_waits_for_what_was_submitted_in_the_same_turn(commits: GroupCommit, disk: Disk) -> None:
    caller = commits.submit(put("a"))
    disk.release()
    await commits.close()
    assert disk.groups == [["a"]]
    assert await outcomes([caller]) == [[verdict_of("a")]]


async def test_closing_what_is_idle_returns_at_once_and_again(commits: GroupCommit, disk: Disk) -> None:
    await commits.close()
    await commits.close()
    assert disk.groups == []


async def test_uncommitted_bytes_are_those_that_wait_or_are_under_way(commits: GroupCommit, disk: Disk) -> None:
    assert commits.uncommitted_bytes == 0
    first = await submitted(commits, put("a", 100), Settle("s", 1, 1, 1))
    await disk.entered()
    second = await submitted(commits, put("b", 23), put("c", 45))
    assert commits.uncommitted_bytes == 168
    disk.release()
    await outcomes(first + second)
    assert commits.uncommitted_bytes == 0


async def test_each_commit_is_observed_once_with_the_number_of_its_callers(
    commits: GroupCommit, disk: Disk, books: Books
) -> None:
    disk.failures = [RuntimeError("also one that fails")]
    callers = await submitted(commits, put("a"))
    await disk.entered()
    callers += await submitted(commits, put("b"), put("c"))
    disk.release()
    await outcomes(callers)
    assert books.observed == [1, 2]
