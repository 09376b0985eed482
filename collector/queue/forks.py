"""What a child of fork(2) must not share with its parent, though it inherits it.

- A lock of flock(2) belongs to parent and child together: the child would hold it beyond its parent's death. It closes
  its own descriptor, which leaves the parent's lock as it is.
- A SQLite connection must not be used in a child, and not even closed (https://sqlite.org/howtocorrupt.html, 2.6). It
  is never freed there.
"""

import ctypes
import os
import sqlite3
import weakref
from typing import Protocol


class Lock(Protocol):
    """A lock that the kernel keeps with an open file."""

    def release(self) -> None:
        """The file is closed."""
        ...


class Connection(sqlite3.Connection):
    """A connection that is left alone in a child; pass it as `factory` to sqlite3.connect."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # as sqlite3.connect passes them
        _connections.add(self)


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def let_go_in_child(lock: Lock) -> None:
    """From now on a child releases the lock as its first act."""
    _locks.add(lock)


def never_free(thing: object) -> None:
    """Nothing that freeing it would do is ever done in this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock.release()
    for connection in list(_connections):
        never_free(connection)
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
