"""Steps run one after the other in a thread of their own, and each answers whoever still waits for it."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import pytest

from collector.queue.sqlite.step_thread import StepThread
from tests.patience import PATIENCE_SECONDS

NAME = "test-steps"

T = TypeVar("T")


class Gate:
    """A step that does not end before it is let go."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()

    def step(self) -> None:
        self._entered.set()
        assert self._open.wait(PATIENCE_SECONDS)

    async def entered(self) -> None:
        """The step has begun."""
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_SECONDS)

    def release(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def thread(gate: Gate) -> AsyncIterator[StepThread]:
    """A thread that has ended after the test, without a complaint of the loop about any callback."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    thread = StepThread(NAME)
    yield thread
    gate.release()
    thread.shutdown()
    assert not is_running()
    assert complaints == []


def is_running() -> bool:
    """Whether a thread of that name is alive."""
    return NAME in {each.name for each in threading.enumerate()}


async def heard(*answers: Awaitable[T]) -> list[T]:
    """What steps answer their callers, who do not wait forever."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.gather(*answers)


def fails_with(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


async def test_a_step_gives_its_caller_what_it_returns(thread: StepThread) -> None:
    assert await heard(thread.run(lambda: "done")) == ["done"]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()], ids=repr)
async def test_what_a_step_raises_reaches_its_caller_and_the_next_one_runs(
    thread: StepThread, error: BaseException
) -> None:
    failing = thread.run(fails_with(error))
    assert await heard(thread.run(lambda: "next")) == ["next"]
    assert failing.exception() is error


async def test_steps_run_one_at_a_time_in_the_order_they_came_and_never_in_the_loops_thread(
    thread: StepThread, gate: Gate
) -> None:
    ran: list[tuple[int, int]] = []

    def note(number: int) -> None:
        ran.append((number, threading.get_ident()))

    blocking = thread.run(gate.step)
    waiting = [thread.run(partial(note, number)) for number in range(50)]
    await gate.entered()
    assert ran == []
    gate.release()
    await heard(blocking, *waiting)
    assert [number for number, _ in ran] == list(range(50))
    [ident] = {ident for _, ident in ran}
    assert ident != threading.get_ident()


async def test_callers_wake_in_the_order_of_their_steps(thread: StepThread) -> None:
    woken: list[int] = []

    async def call(number: int) -> None:
        await thread.run(lambda: None)
        woken.append(number)

    await heard(*map(call, range(20)))
    assert woken == list(range(20))


@pytest.mark.parametrize("is_under_way", [True, False])
@pytest.mark.parametrize("error", [None, ValueError("nobody hears of it")], ids=["returns", "raises"])
async def test_a_cancelled_caller_does_not_stop_its_step(
    thread: StepThread, gate: Gate, is_under_way: bool, error: Exception | None
) -> None:
    ran: list[str] = []

    def step() -> None:
        if is_under_way:
            gate.step()
        ran.append("the step of the cancelled caller")
        if error:
            raise error

    if not is_under_way:
        thread.run(gate.step)
    cancelled = thread.run(step)
    await gate.entered()
    cancelled.cancel()
    after = thread.run(lambda: list(ran))
    gate.release()
    assert await heard(after) == [["the step of the cancelled caller"]]
    assert cancelled.cancelled()


async def test_the_thread_starts_with_the_first_step_and_serves_all_that_follow(thread: StepThread) -> None:
    assert not is_running()
    first = await heard(thread.run(threading.get_ident))
    assert is_running()
    assert await heard(*(thread.run(threading.get_ident) for _ in range(3))) == first * 3


async def test_the_thread_keeps_no_program_from_ending(thread: StepThread) -> None:
    assert await heard(thread.run(lambda: threading.current_thread().daemon)) == [True]


async def test_shutdown_returns_when_all_that_was_queued_has_run_and_the_thread_has_ended(thread: StepThread) -> None:
    ran: list[int] = []
    futures = [thread.run(partial(ran.append, number)) for number in range(50)]
    thread.shutdown()
    assert ran == list(range(50))
    assert not is_running()
    await heard(*futures)  # the callers hear of it all the same


async def test_shutdown_of_what_never_began_or_has_ended_returns_at_once(thread: StepThread) -> None:
    thread.shutdown()
    await heard(thread.run(lambda: None))
    thread.shutdown()
    thread.shutdown()


def test_a_loop_that_closed_meanwhile_does_no_harm_to_the_thread_or_to_the_next_loop(gate: Gate) -> None:
    thread = StepThread(NAME)

    async def leave() -> None:
        thread.run(gate.step)
        await gate.entered()

    async def come() -> list[str]:
        gate.release()
        return await heard(thread.run(lambda: "served"))

    try:
        asyncio.run(leave())
        assert asyncio.run(come()) == ["served"]
    finally:
        gate.release()
        thread.shutdown()


async def test_nothing_of_a_step_that_is_done_is_kept_until_the_next(thread: StepThread) -> None:
    class Result:
        """Large, it may be."""

    gone = threading.Event()
    [result] = await heard(thread.run(Result))
    weakref.finalize(result, gone.set)
    del result
    assert await asyncio.to_thread(gone.wait, PATIENCE_SECONDS)
