"""Events that upstream refused for good, in short: what a queue tells of them, and the status document shows."""

import msgspec

REASON_LETTERS = 1000
"""Dead letters are counted by reason over the latest so many, so that a look costs the same however many there are."""
SHOWN_REASONS = 10
SHOWN_LETTERS = 10


class Reason(msgspec.Struct, frozen=True, rename="camel"):
    """Why events became dead letters, and how many of the latest ones."""

    reason: str
    events: int
    latest_ms: int


class DeadLetter(msgspec.Struct, frozen=True, rename="camel"):
    """One dead letter, without the event."""

    app_id: str
    buried_ms: int
    reason: str


class DeadLetters(msgspec.Struct, frozen=True, rename="camel"):
    """The most frequent reasons of the latest `REASON_LETTERS`, and the latest letters, newest first."""

    reasons: list[Reason] = []
    latest: list[DeadLetter] = []
