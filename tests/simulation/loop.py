"""An event loop on virtual time, in which a process can die at any instant.

Nothing ever sleeps: where no callback is ready, time jumps to the next timer. All order is that of numbers, never that
of addresses, so that what happens depends on the seed alone.

A *life* is one run of the agent's process. What it starts inherits it by context; when the life ends, whatever still
belongs to it is never called again: no `finally`, no `except`, as after `kill -9`.
"""

import asyncio
import contextlib
import contextvars
import heapq
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

MAX_TURNS_AT_ONE_INSTANT = 20_000
"""Of the loop. More is a loop that spins: it would burn a processor and never let time pass."""

MAX_TURNS = 1_000_000


class Spinning(AssertionError):
    """The agent did not come to rest at one instant."""


class Stuck(AssertionError):
    """Nothing is ready and nothing ever will be."""


class Died(Exception):
    """The process was killed before the answer."""


class Life:
    """One run of the agent's process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_dead = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_life.set, self)
        self._waiting: list[asyncio.Future[Any]] = []

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work`, done inside this life, returns or raises. Raises Died where the life ends before."""
        if self.is_dead:
            work.close()
            raise Died
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[asyncio.Task[T]] = loop.create_future()
        task = loop.create_task(work, context=self.context.copy())
        task.add_done_callback(lambda task: _settle(ended, task), context=contextvars.Context())
        self._waiting.append(ended)
        try:
            return (await ended).result()
        except asyncio.CancelledError:
            loop.call_soon(task.cancel, context=self.context)
            raise

    def end(self) -> None:
        """Nothing of this life is called any more."""
        self.is_dead = True
        for ended in self._waiting:
            if not ended.done():
                ended.set_exception(Died())

    def bury(self) -> None:
        """Lets go of what a dead life was doing, quietly."""
        said, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                for _ in range(100):  # a `finally` that awaits has to be closed again
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
                        break
        self.tasks.clear()
        sys.unraisablehook = said


_life: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


def this_life() -> Life | None:
    """The life that the running code belongs to; None for the world outside the agent."""
    return _life.get()


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        life = self._context.get(_life)  # type: ignore[attr-defined]
        if life is None or not life.is_dead:
            asyncio.Handle._run(self)


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("number",)
    number: int

    def __lt__(self, other: "_TimerHandle") -> bool:  # type: ignore[override]
        return (self._when, self.number) < (other._when, other.number)  # type: ignore[attr-defined]

    def _run(self) -> None:
        life = self._context.get(_life)  # type: ignore[attr-defined]
        if life is None or not life.is_dead:
            asyncio.Handle._run(self)


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order in which the tasks were made."""

    def __init__(self, *arguments: Any, number: int, **options: Any) -> None:
        self.number = number
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks as fast as it can, and timers in the order of virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._numbers = 0
        self._turns = self._turns_at_once = 0
        self._selector = self
        self._clock_resolution = 1e-9
        self.complaints: list[str] = []
        self.listen: Callable[[Callable[[], asyncio.Protocol], str, int], object] | None = None
        self.set_task_factory(self._new_task)
        self.set_exception_handler(lambda _, context: self.complaints.append(_complaint(context)))

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        timer.number = self._numbers
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def select(self, timeout: float | None) -> list[Any]:
        """What a selector would do, but that nothing comes from outside: time passes up to the next timer."""
        self._turns += 1
        self._turns_at_once += 1
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
            self._turns_at_once = 0
        if self._turns_at_once > MAX_TURNS_AT_ONE_INSTANT or self._turns > MAX_TURNS:
            raise Spinning(f"{self._turns_at_once} turns of the loop at one instant, {self._turns} in all")
        return []

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        """Listens on the network of the simulation."""
        assert self.listen is not None
        return self.listen(protocol_factory, host, port)

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Nobody closes the generators of a dead process, and when memory is collected must not matter."""
        self._asyncgens.discard(agen)  # type: ignore[attr-defined]

    def _process_events(self, _events: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _new_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        self._numbers += 1
        task = _Task(work, loop=loop, number=self._numbers, **options)
        life = options["context"].get(_life) if options.get("context") is not None else _life.get()
        if life is not None:
            life.tasks.append(task)
        return task


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _complaint(context: dict[str, Any]) -> str:
    return f"{context.get('message')}: {context.get('exception')!r} {context.get('task', '')}"
