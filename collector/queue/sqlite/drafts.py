"""What the batches of a transaction become: which segments they make, and what their callers are told (pure)."""

from collections.abc import Sequence
from itertools import compress

from collector.events import KEY_BYTES, split_keys
from collector.queue.base import Batch, Verdict
from collector.queue.sqlite.database import MAX_FRESH_KEYS
from collector.queue.sqlite.operations import Done, Put


class Fates:
    """What becomes of batches, in their order: all that is in them is new until something else is said."""

    __slots__ = ("bytes", "segments", "verdicts")

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.verdicts = [Verdict(len(batch.keys) // KEY_BYTES) for batch in batches]
        self.bytes = [len(batch.lines) + 1 if batch.keys else 0 for batch in batches]
        """Of the lines that are new."""
        self.segments: list[int] | None = None
        """By batch, the number of the segment that holds what is new of it, or 0; None where none is told."""

    def done(self, puts: Sequence[Put]) -> list[Done]:
        """The same by the puts that the batches came in."""
        done, start = [], 0
        for put in puts:
            end = start + len(put.batches)
            segments = self.segments[start:end] if self.segments else ()
            done.append(Done(self.verdicts[start:end], sum(self.bytes[start:end]), segments if any(segments) else ()))
            start = end
        return done


class Draft:
    """A segment that is to be written: the positions of its batches, and how many events these hold."""

    __slots__ = ("events", "positions")

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.events = 0


def drafts_of(batches: Sequence[Batch], most_events: int) -> list[Draft]:
    """The segments that batches make: of one app each, as many as make at most so many events."""
    drafts: list[Draft] = []
    filling: dict[str, Draft] = {}  # by app: its last one so far
    for position, batch in enumerate(batches):
        events = len(batch.keys) // KEY_BYTES
        if events > MAX_FRESH_KEYS:
            raise ValueError(f"a batch of {events} events; expected at most {MAX_FRESH_KEYS}")
        if not events:
            continue
        draft = filling.get(batch.app_id)
        if draft is None or draft.events + events > most_events:
            draft = filling[batch.app_id] = Draft()
            drafts.append(draft)
        draft.positions.append(position)
        draft.events += events
    return drafts


def tell_apart(batch: Batch, known: set[bytes]) -> tuple[Verdict, bytes]:
    """The batch's verdict and the lines that are new. What is new enters `known`: its next occurrence is not."""
    keys = split_keys(batch.keys)
    if known.isdisjoint(keys) and len(set(keys)) == len(keys):
        known.update(keys)
        return Verdict(len(keys)), batch.lines
    is_new = []
    for key in keys:
        is_new.append(key not in known)
        known.add(key)
    duplicates = tuple([position for position, new in enumerate(is_new) if not new])
    return Verdict(len(keys) - len(duplicates), duplicates), b"\n".join(compress(batch.lines.split(b"\n"), is_new))
