"""The daemon, `collector run`, in a process that is rigged: `python -m tests.e2e.rigged`, with TEST_RIG in JSON.

It kills itself (SIGKILL) at the n-th beginning or end of a step of the way that events take through it; a disk can be
made full, clocks can be wrong, and what happens once in minutes can happen all the time. Nothing of this is in the
collector: functions and connections are wrapped from outside, and steps are read off the code, so that a step that is
new is a step that is killed. A step is

- a function or method of one of MODULES, such as `store.Store.prune`, or
- a statement that one of them gives to SQLite, by its name or by its words, such as `sql.put_fresh`, `sql.COMMIT`.
"""

import functools
import inspect
import os
import re
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

import collector.agent
import collector.cli
import collector.clock
from collector import flusher, forks, parcel, retry_schedule
from collector.queue.sqlite import (
    database,
    group_commit,
    queue,
    recent_keys,
    reserve,
    segments,
    store,
    store_process,
    writer,
)
from tests.queue.samples import EAGER

MODULES = (
    database,
    reserve,
    recent_keys,
    segments,
    store,
    writer,
    store_process,
    group_commit,
    queue,
    flusher,
    parcel,
    retry_schedule,
)
"""The way of an event: written, flushed, pruned; migrated and checkpointed."""

LITERAL_STATEMENT = re.compile(r'execute(?:script)?\(\s*f?"([A-Z][A-Za-z_]*(?: [A-Za-z_]+)?)')
MIGRATION_STATEMENT = re.compile(r"\s*(--.*\n\s*)*CREATE\b|\s*(--.*\n\s*)*INSERT INTO pruned\b")

BUSTLE = {
    "TICK_SECONDS": 0.02,
    "MIN_KEYS": 100,
    "VACUUM_PAGES": 1,
    "WAL_LIMIT_BYTES": 100_000,
    "AUTO_CHECKPOINT_PAGES": 50,
    **EAGER,
    "CLOSES_AFTER": 6,
    "CAPACITY": 1000,
    "STEP_KEYS": 100,
    "MAX_BUCKET_KEYS": 50,
}
"""Constants with which a second of the daemon's life has in it what else is in a day's."""


class Rig(msgspec.Struct, frozen=True):
    """What is wrong with a daemon."""

    step: str | None = None
    """Where it dies."""
    at_end: bool = False
    nth: int = 1
    constants: dict[str, float] = {}
    clock_shift_seconds: float = 0.0
    spare_pages: int | None = None
    """How much its file may grow; what is free inside goes first. Each fourth settlement has no room either."""
    census: str | None = None
    """A file that gets how often each step was taken, as JSON, when the process ends in order."""


def functions() -> Iterator[tuple[str, Any, str]]:
    """Each step that is a function: its name, and the module or class that has it under which attribute."""
    for module in MODULES:
        short = module.__name__.rpartition(".")[2]
        for name, member in vars(module).items():
            if getattr(member, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(member):
                yield f"{short}.{name}", module, name
            elif inspect.isclass(member) and not (
                issubclass(member, msgspec.Struct | tuple | Enum) or getattr(member, "_is_protocol", False)
            ):
                for attribute, value in vars(member).items():
                    if inspect.isfunction(value) and not attribute.startswith("__"):
                        yield f"{short}.{name}.{attribute}", member, attribute


def statements() -> set[str]:
    """Each step that is a statement."""
    literal = {match for module in MODULES for match in LITERAL_STATEMENT.findall(inspect.getsource(module))}
    return {f"sql.{name}" for name in {*database.SQL, *literal, "migration"}}


def steps() -> list[str]:
    """All of them."""
    return sorted({name for name, _, _ in functions()} | statements())


def _die() -> None:
    """The daemon and the process that writes its queue die in one instant, as with their machine."""
    os.killpg(0, signal.SIGKILL)


class _Rigged:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.taken: Counter[str] = Counter()
        self.names = {text: f"sql.{name}" for name, text in database.SQL.items()}

    def begin(self, step: str) -> None:
        self.taken[step] += 1
        if step == self.rig.step and not self.rig.at_end and self.taken[step] == self.rig.nth:
            _die()

    def end(self, step: str) -> None:
        if step == self.rig.step and self.rig.at_end and self.taken[step] >= self.rig.nth:
            _die()

    def wrapped(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                self.begin(step)
                try:
                    return await function(*args, **kwargs)
                finally:
                    self.end(step)

            return run_async

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.begin(step)
            try:
                return function(*args, **kwargs)
            finally:
                self.end(step)

        return run

    def step_of(self, statement: str) -> str | None:
        if statement in self.names:
            return self.names[statement]
        if MIGRATION_STATEMENT.match(statement):
            return "sql.migration"
        match = LITERAL_STATEMENT.match(f'execute("{statement}')
        return f"sql.{match[1]}" if match else None


def arm(rig: Rig) -> _Rigged:
    """From now on this process is rigged."""
    rigged = _Rigged(rig)
    ours = [module for name, module in sys.modules.items() if name.startswith("collector.")]
    for name, value in rig.constants.items():
        places = [module for module in ours if hasattr(module, name)]
        assert places, f"no module has a constant {name}"
        for module in places:
            setattr(module, name, type(getattr(module, name))(value))
    real = {name: getattr(owner, attribute) for name, owner, attribute in functions()}
    for step, owner, attribute in list(functions()):
        wrapped = rigged.wrapped(step, real[step])
        for place in ours if inspect.ismodule(owner) else [owner]:
            if vars(place).get(attribute) is real[step]:
                setattr(place, attribute, wrapped)

    class Connection(forks.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            step = rigged.step_of(sql)
            if step is None:
                return super().execute(sql, parameters)
            if step == "sql.drop_range" and rig.spare_pages is not None and rigged.taken[step] % 4 == 3:
                rigged.taken[step] += 1
                raise _full()
            cursor: sqlite3.Cursor = rigged.wrapped(step, super().execute)(sql, parameters)
            return cursor

        def executescript(self, sql: str, /) -> sqlite3.Cursor:
            step = rigged.step_of(sql)
            run = super().executescript
            cursor: sqlite3.Cursor = rigged.wrapped(step, run)(sql) if step is not None else run(sql)
            return cursor

    class Sqlite:
        """The module `sqlite3` with our connections."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sqlite3, name)

        @staticmethod
        def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = sqlite3.connect(*args, **kwargs | {"factory": Connection})
            return connection

    setattr(database, "sqlite3", Sqlite())  # noqa: B010 - no type checker shall think that this is what it is
    if rig.spare_pages is not None:
        _fill(rig.spare_pages)
    if rig.clock_shift_seconds:
        shift_us = int(rig.clock_shift_seconds * 1e6)
        now_us = collector.clock.Clock.now_us
        collector.clock.Clock.now_us = lambda self: now_us(self) + shift_us  # type: ignore[method-assign]
    return rigged


def _count_in_child(rigged: _Rigged, census: Path) -> None:
    """The process that writes the queue leaves behind how often it has taken each step."""
    serve = store_process._Child.serve

    def counted(self: Any) -> None:
        rigged.taken.clear()
        serve(self)
        census.write_bytes(msgspec.json.encode(rigged.taken))

    setattr(store_process._Child, "serve", counted)  # noqa: B010 - as above


def _full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def _fill(spare_pages: int) -> None:
    open_writer = vars(store)["open_writer"]

    def open_full(directory: Path) -> sqlite3.Connection:
        connection: sqlite3.Connection = open_writer(directory)
        execute = functools.partial(sqlite3.Connection.execute, connection)  # no step of the daemon's
        sqlite3.Connection.executescript(connection, "PRAGMA incremental_vacuum")
        (pages,) = execute("PRAGMA page_count").fetchone()
        execute(f"PRAGMA max_page_count = {pages + spare_pages}").fetchone()
        return connection

    setattr(store, "open_writer", open_full)  # noqa: B010 - it is there by import only


def main() -> None:
    rig = msgspec.json.decode(os.environ["TEST_RIG"], type=Rig)
    os.setpgid(0, 0)
    rigged = arm(rig)
    of_child = Path(f"{rig.census}.child")
    if rig.census is not None:
        _count_in_child(rigged, of_child)
    sys.argv = ["collector", "run"]
    try:
        collector.cli.main()
    finally:
        if rig.census is not None:
            taken = rigged.taken + Counter(msgspec.json.decode(of_child.read_bytes(), type=dict[str, int]))
            Path(rig.census).write_bytes(msgspec.json.encode(taken))


if __name__ == "__main__":
    main()
