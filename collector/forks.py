"""What is done about locks, sockets, SQLite and the end of children where a program forks.

- A lock of flock(2) belongs to parent and child together, and so does a socket: the child would hold the lock, and the
  port, beyond its parent's end. It closes its own descriptors, which leaves what the parent has as it is.
- No connection to SQLite is open while a process forks. A child must not touch its parent's
  (https://sqlite.org/howtocorrupt.html, 2.6), and one of its own would be no better: which files are open and locked
  SQLite remembers for the whole process, and a child inherits that without the kernel's locks. It would take none, so
  that the parent, thinking itself alone, removes a log that the child goes on writing to. So whoever forks waits until
  nobody is amid a step and closes all connections; they are opened again when they are next used.
"""

import contextlib
import ctypes
import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from collector.errors import QueueBroken

Use = Any
"""A threading.RLock, which is no type."""


class Held(Protocol):
    """What the kernel keeps as long as somebody has it open: a lock, or sockets that listen."""

    def release(self) -> None:
        """This process has it open no more."""
        ...


class Connection(sqlite3.Connection):
    """A connection that a fork closes; pass it as `factory` to sqlite3.connect, with check_same_thread=False.

    Raises QueueBroken in a child that must not have one.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        if _inherits_connections:
            raise QueueBroken(
                "this process was forked, not by Python, while its parent had a collector running; start the collector "
                "after the fork, or stop it before"
            )
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # as sqlite3.connect passes them
        self.was_closed_by_fork = False
        _connections.add(self)


T = TypeVar("T")


class _Alive(Generic[T]):
    """Things, for as long as others have them.

    To add one, and to copy all, is one step for the interpreter: neither another thread nor a handler of signals comes
    in between, as they do with a WeakSet.
    """

    def __init__(self) -> None:
        self._references: set[weakref.ref[T]] = set()

    def add(self, thing: T) -> None:
        self._references.add(weakref.ref(thing, self._references.discard))

    def remove(self, thing: T) -> None:
        self._references.discard(weakref.ref(thing))

    def __iter__(self) -> Iterator[T]:
        return (thing for reference in self._references.copy() if (thing := reference()) is not None)


_held_alone: _Alive[Held] = _Alive()
_connections: _Alive[Connection] = _Alive()
_uses: _Alive[Use] = _Alive()
_inherits_connections = False

# A handler of signals may fork amid a fork.
_forking = threading.RLock()  # from before a fork until after it
_held: list[list[Use]] = []  # by the forks that are under way, one inside the other


def no_fork() -> contextlib.AbstractContextManager[object]:
    """Within it no other thread forks. Not for who holds a `use_of_connections`, for which a fork waits."""
    return _forking


def let_go_in_child(held: Held) -> None:
    """From now on a child releases it as its first act."""
    _held_alone.add(held)


def use_of_connections() -> Use:
    """Whoever uses connections in a thread of its own holds this meanwhile: then no fork happens."""
    use = threading.RLock()
    with _forking:  # else a fork would not wait for it
        _uses.add(use)
    return use


def never_free(thing: object) -> None:
    """Nothing that freeing it would do is ever done in this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def before_a_child_ends(act: Callable[[], object]) -> None:
    """Where this is a child of multiprocessing, `act` runs at its end: it leaves by os._exit, past what atexit has."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, act, exitpriority=0)


def _before_fork() -> None:
    _forking.acquire()
    held: list[Use] = []
    _held.append(held)
    for use in _uses:
        use.acquire()
        held.append(use)
    for connection in _connections:
        connection.close()
        connection.was_closed_by_fork = True
        _connections.remove(connection)


def _let_go() -> None:
    for use in _held.pop():
        use.release()


def _after_fork_in_parent() -> None:
    _let_go()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking, _inherits_connections  # noqa: PLW0603 - the process's
    while _held:
        _let_go()
    _forking = threading.RLock()
    for held in _held_alone:
        with contextlib.suppress(OSError):
            held.release()
    for connection in _connections:  # what forks without Python does not do what comes before
        _inherits_connections = True
        never_free(connection)
        _connections.remove(connection)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
