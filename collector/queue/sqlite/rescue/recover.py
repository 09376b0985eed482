"""A queue's file examined and recovered by hand, as each start does it by itself."""

from pathlib import Path

from collector.errors import QueueInUse
from collector.queue.sqlite.database import BUSY_TIMEOUT_MS, FILE_NAME, missing, translated
from collector.queue.sqlite.lock import Presence, RoleLock, is_there
from collector.queue.sqlite.rescue.ready import damage, finish_interrupted, problems_of
from collector.queue.sqlite.rescue.salvage import COMPLETE, Salvaged, salvage


def examine(directory: Path) -> list[str]:
    """What is wrong with the file; nothing where it is sound.

    Raises QueueBroken where there is none or it is not ours, and QueueUnavailable where it cannot be read.
    """
    file = _existing(directory)
    found: list[str] | None = None

    def look() -> None:
        nonlocal found
        with translated(file):
            found = damage(file)

    presence = Presence(directory)
    presence.enter(alone=look, patience_seconds=BUSY_TIMEOUT_MS / 1000)
    try:
        with translated(file):
            return problems_of(file) if found is None else found
    finally:
        presence.release()


def recover(directory: Path, *, always: bool) -> Salvaged | None:
    """What was salvaged; None where nothing had to be.

    Raises QueueInUse where another process has the file open, and QueueUnavailable (DiskFull) with the file as it was.
    """
    file = _existing(directory)
    done: list[Salvaged | None] = []

    def mend() -> None:
        with translated(file):
            finish_interrupted(file)
            done.append(salvage(file) if damage(file) or always else None)

    role, presence = RoleLock(directory, "flusher"), Presence(directory)
    role.acquire()
    try:
        presence.enter(alone=mend, patience_seconds=BUSY_TIMEOUT_MS / 1000)
        presence.release()
    finally:
        role.release()
    if not done:
        raise QueueInUse(f"{file} is open in another process; stop every program that puts events into it, then repeat")
    return done[0]


def _existing(directory: Path) -> Path:
    """The queue's file, of which at least something is there."""
    file = directory / FILE_NAME
    if not any(is_there(file.with_name(name)) for name in (FILE_NAME, f"{FILE_NAME}-wal", COMPLETE)):
        raise missing(file)
    return file
