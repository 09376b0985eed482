"""Unix sockets in the file system: made with their mode and owner, and never taken from another live process."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collector.errors import Unusable

DRAFT_SUFFIX = ".new"

MAX_PATH_BYTES = 107 - len(f".{DRAFT_SUFFIX}")
"""The kernel takes 107 (unix(7)), and a socket is bound under a name that is a little longer than its last one."""


class UnixSocket:
    """A bound socket and its file, held by a lock beside it that the kernel frees when the process dies.

    The socket is bound under another name and moved to its place when its mode and owner are right: nobody can reach it
    before, and a file that a dead process left is replaced in one step.
    """

    def __init__(self, path: Path, kind: socket.SocketKind, *, mode: int, owner: str | None) -> None:
        """Raises Unusable, which names the file, where the socket cannot be had."""
        self.path = path
        if (size := len(os.fsencode(path))) > MAX_PATH_BYTES:
            raise Unusable(f"{path}: too long for a socket with {size} bytes; allowed: {MAX_PATH_BYTES}")
        try:
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (OSError, ValueError) as error:
            raise self._impossible(error) from error
        try:
            self._hold()
            self.socket = self._bind(kind, mode, owner)
        except BaseException:
            os.close(self._lock)
            raise

    def descriptors(self) -> Iterator[int]:
        """Those of the socket and of its lock, as long as they are open."""
        if self.socket.fileno() != -1:
            yield from (self.socket.fileno(), self._lock)

    def close(self) -> None:
        """The socket is closed, and its file gone if it still is ours."""
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except OSError:
            pass  # somebody has tidied up already
        self.socket.close()
        os.close(self._lock)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unusable(f"{self.path} is in use by another process; stop that one or choose another file") from error
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise Unusable(f"{self.path} is there and no socket; choose another file")
        if self._is_answered():
            raise Unusable(f"{self.path} is in use by another program; stop that one or choose another file")

    def _is_answered(self) -> bool:
        """Whether some process, of whatever program, has the socket open.

        A socket of another kind answers EPROTOTYPE, also before it listens, and its owner does not notice.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            return probe.connect_ex(str(self.path)) not in {errno.ECONNREFUSED, errno.ENOENT}

    def _bind(self, kind: socket.SocketKind, mode: int, owner: str | None) -> socket.socket:
        draft = self.path.with_name(f".{self.path.name}{DRAFT_SUFFIX}")  # ours alone, while the lock is
        bound = socket.socket(socket.AF_UNIX, kind)
        try:
            draft.unlink(missing_ok=True)
            bound.bind(str(draft))
            draft.chmod(mode)
            if owner is not None:
                user, _, group = owner.partition(":")
                shutil.chown(draft, _name_or_number(user), _name_or_number(group))
            self._inode = draft.stat().st_ino
            draft.rename(self.path)
        except (OSError, LookupError, ValueError) as error:
            bound.close()
            with contextlib.suppress(OSError):
                draft.unlink()
            raise self._impossible(error) from error
        return bound

    def _impossible(self, error: Exception) -> Unusable:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Unusable(f"{self.path}: no socket can be made there: {reason}")


def _name_or_number(text: str) -> Any:
    """A user or group as shutil.chown takes it: None where there is none."""
    return int(text) if text.isdecimal() else text or None
