"""A thread of another process that hangs: the kernel stops it alone, and its process goes on without it."""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17  # of ptrace(2)
WALL = 0x40000000  # of wait(2): also threads
ENDED_SECONDS = 30.0


def writer_of(process: int) -> int:
    """The queue's writing thread: of all threads that a collector starts, it is the first."""
    main, writer, *_ = sorted(int(task.name) for task in Path(f"/proc/{process}/task").iterdir())
    assert main == process
    return writer


@contextlib.contextmanager
def held(thread: int) -> Iterator[None]:
    """The thread does nothing for the length of the block; returns when somebody has killed it.

    Until it is waited for here, its process cannot end.
    """
    _ptrace(SEIZE, thread)
    _ptrace(INTERRUPT, thread)
    os.waitpid(thread, WALL)
    try:
        yield
    except BaseException:
        _ptrace(DETACH, thread)
        raise
    deadline = time.monotonic() + ENDED_SECONDS
    while time.monotonic() < deadline:
        waited, status = os.waitpid(thread, WALL | os.WNOHANG)
        if waited and (os.WIFSIGNALED(status) or os.WIFEXITED(status)):
            return
        time.sleep(0.01)
    raise AssertionError(f"thread {thread} is still there")


def _ptrace(request: int, thread: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if library.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {thread}")
