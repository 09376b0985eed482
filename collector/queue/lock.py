"""A role on a queue directory that one process holds at a time, and that the kernel frees when it dies."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from collector.errors import QueueInUse, QueueUnavailable


class RoleLock:
    """The lock of one role, as `<role>.lock` in the directory. The file stays; only the kernel's lock on it counts.

    It is the role that is locked, not the queue: any process may put events; only one may deliver them.
    """

    def __init__(self, directory: Path, role: str) -> None:
        self._file = directory / f"{role}.lock"
        self._role = role
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Holds the role until `release` or death. Raises QueueInUse with the holder's process number."""
        try:
            self._file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise QueueUnavailable(f"{self._file}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise QueueUnavailable(
                    f"{self._file} cannot be locked: {error.strerror}; is it a network file system?"
                ) from error
            raise QueueInUse(
                f"{self._file.parent} is in use: process {holder} is its {self._role}; "
                "stop that one, or give this one another queue.path"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the number is for people, the lock holds without it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the role up; harmless where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
