"""What can go wrong, sorted by what the caller must do about it.

`Retryable`: try the same thing again later. `Rejected`: this input will never succeed, however often it is tried.
`Unusable`: a person must act first (wrong secret, broken file, bad configuration). Foreign exceptions are translated
into these once, at the edge where they appear.
"""

import os
from collections.abc import Mapping

import msgspec

UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON; its ValidationError, a DecodeError, is about JSON of another type."""


class CollectorError(Exception):
    """Root of everything the collector raises on purpose."""


class Retryable(CollectorError):
    """The same call may succeed later; `retry_after_seconds` is the other side's own wish, where it stated one."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotDone(Retryable):
    """The other side has certainly not acted on the request: it never got it whole, or refused it unread."""


class Unanswered(Retryable):
    """No answer came, whole and in time: the other side may have acted or not. A smaller request may get one."""


class QueueFull(Retryable):
    """The queue holds as many bytes of waiting events as `queue.max_bytes` allows; delivery frees room."""


class QueueBusy(Retryable):
    """More events wait for their commit than `queue.max_uncommitted` allows; the disk is slower than the senders."""


class QueueUnavailable(Retryable):
    """The disk or another process kept the queue from committing; nothing of the call was stored."""


class DiskFull(QueueUnavailable):
    """The file system (or SQLite's page limit) has no room; nothing of the call was stored."""


class OutcomeUnknown(CollectorError):
    """Nobody knows whether the other side has acted, and acting twice does harm: look first, as the message says."""


class ChunkFailed(CollectorError):
    """One of several requests that together carry a long list failed, for the reason that is its cause.

    The first `done` items are upstream; items `done + 1` to `last` are not, or nobody knows.
    """

    def __init__(self, message: str, *, done: int, last: int) -> None:
        super().__init__(message)
        self.done = done
        self.last = last


class Rejected(CollectorError):
    """This input is refused for good, with the reason as the message."""


class MalformedBody(Rejected):
    """A request body that cannot be parsed at all; nothing of it was stored."""


class TooLarge(Rejected):
    """Refused for its size alone: a smaller part of it may succeed."""


class PartlyRejected(CollectorError):
    """Of the events of one request these are refused for good, by their position in it; all others were taken.

    `seconds` is how long the other side took for its answer.
    """

    def __init__(self, reasons: Mapping[int, str], *, seconds: float) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons
        self.seconds = seconds


class Unusable(CollectorError):
    """A person must act; until then the work waits and nothing is dropped."""


class AppUnusable(Unusable):
    """Upstream does not take events for this one app (unknown, forbidden); other apps are not affected."""


class CredentialsRefused(Unusable):
    """Upstream refused the client's credentials or its token, also a fresh one."""


class MalformedAnswer(Unusable):
    """Upstream answered 200 with something else than the contract says; the message names operation and field."""


class QueueInUse(Unusable):
    """Another live process holds the role that was asked for on this queue directory."""


class QueueBroken(Unusable):
    """The queue's file is not a queue this version can use; the message names the file and the remedy."""


class QueueDamaged(QueueBroken):
    """The queue's own file is damaged: the next start, or `collector queue recover`, salvages what can be read."""


class DeadLettersFull(Unusable):
    """Dead letters take as many bytes as `queue.max_dead_bytes` allows; nothing more is buried until a person acts."""


class ConfigInvalid(Unusable):
    """The configuration has problems; the message lists all of them, one a line."""


def why_unbound(error: OSError) -> str:
    """The system's word for why nothing listens; asyncio has a sentence of its own in its place."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
