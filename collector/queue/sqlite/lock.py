"""Who does what with a queue directory: locks that the kernel frees when their holder dies.

A role is held by one process at a time. Presence is shared by all that have the file open; only who is alone may put
another file in its place, for what the others wrote from then on would be gone with them.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from collector.errors import CollectorError, QueueBroken, QueueInUse, QueueUnavailable
from collector.forks import let_go_in_child

PRESENCE = "open.lock"


class _FileLock:
    """A lock on a file of the directory. The file stays; only the kernel's lock on it counts."""

    def __init__(self, directory: Path, name: str) -> None:
        self._file = directory / name
        self._descriptor: int | None = None

    def release(self) -> None:
        """Gives the lock up; harmless where it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        """The file, made if need be. Raises Unusable or QueueUnavailable."""
        try:
            self._file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            return os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _no_lock(self._file, error) from error

    def _keep(self, descriptor: int) -> None:
        """The lock on the open file is held, until `release` or the death of this process alone."""
        self._descriptor = descriptor
        let_go_in_child(self)


class RoleLock(_FileLock):
    """The lock of one role, as `<role>.lock` in the directory.

    It is the role that is locked, not the queue: any process may put events; only one may deliver them.
    """

    def __init__(self, directory: Path, role: str) -> None:
        super().__init__(directory, f"{role}.lock")
        self._role = role

    @property
    def is_held(self) -> bool:
        """This process has the role."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Holds the role until `release` or death. Raises QueueInUse with the holder's process number."""
        descriptor = self._open()
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
        self._keep(descriptor)


class Presence(_FileLock):
    """This connection's share of `open.lock`, from `enter` until `release` or death."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PRESENCE)

    def enter(self, *, alone: Callable[[], None], patience_seconds: float) -> None:
        """Present. Where nobody else was, `alone` has run before, and nobody else came meanwhile.

        Raises QueueUnavailable where another process is alone for longer than that, and what `alone` raises, which is
        no OSError.
        """
        descriptor = self._open()
        try:
            if _waited_for(descriptor, self._file.parent, patience_seconds):
                alone()
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            os.close(descriptor)
            raise QueueUnavailable(f"{self._file} cannot be locked: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._keep(descriptor)


@contextlib.contextmanager
def nobody_present(directory: Path, *, patience_seconds: float) -> Iterator[bool]:
    """Whether nobody has the queue's file open, nor will within the block; False also where that is not ours to know.

    Raises QueueUnavailable where another process is alone for longer than that.
    """
    with contextlib.ExitStack() as held:
        try:
            descriptor = os.open(directory / PRESENCE, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            is_alone = _waited_for(descriptor, directory, patience_seconds)
        except FileNotFoundError:
            is_alone = True
        except OSError:
            is_alone = False
        yield is_alone


def _waited_for(descriptor: int, directory: Path, patience_seconds: float) -> bool:
    """Holds the lock, alone (True) or with others."""
    deadline = time.monotonic() + patience_seconds
    while True:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    raise
            else:
                return kind == fcntl.LOCK_EX
        if time.monotonic() > deadline:
            raise QueueUnavailable(f"{directory} is being checked or recovered by another process; wait")
        time.sleep(0.01)


def _no_lock(file: Path, error: OSError) -> CollectorError:
    """Why a lock's file cannot be opened."""
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return forbidden(file if os.access(file, os.F_OK) else file.parent)
    if error.errno in {errno.EEXIST, errno.ENOTDIR}:
        return QueueBroken(f"queue.path: {file.parent} is not a directory")
    if error.errno in {errno.ENOENT, errno.EINVAL}:
        return QueueBroken(f"queue.path: {file.parent} cannot be made: {error.strerror}")
    return QueueUnavailable(f"{file}: {error.strerror}")


def is_there(file: Path) -> bool:
    """Whether the queue has this file. Raises QueueBroken where that is not ours to know."""
    try:
        return file.exists()
    except OSError:
        raise forbidden(file.parent) from None


def forbidden(path: Path) -> QueueBroken:
    """That a file or directory of the queue is not ours to use: who we are, whose it is, and the remedy."""
    path = next((each for each in (path, *path.parents) if os.access(each, os.F_OK)), path)
    try:
        status = path.stat()
    except OSError as error:
        return QueueBroken(f"{path}: {error.strerror}; give {_user(os.geteuid())} the right to read and write it")
    we, owner = _user(os.geteuid()), _user(status.st_uid)
    remedy = f"run the collector as {owner}, or give {we} all files of the queue (chown -R {we} on queue.path)"
    if we == owner:
        remedy = "give the right back (chmod -R u+rwX on queue.path); is the file system mounted read-only?"
    return QueueBroken(
        f"{path} cannot be read and written by {we}: it belongs to {owner}, mode {stat.S_IMODE(status.st_mode):04o}; "
        f"{remedy}"
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
