"""What the batches of a transaction become: which segments they make, and what their callers are told (pure)."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from collector.events import split_keys
from collector.queue.base import Batch, Verdict
from collector.queue.database import MAX_FRESH_KEYS
from collector.queue.operations import Done, Put


class Stored(NamedTuple):
    """What became of a batch: its verdict, the bytes of its lines that were new, and, where told, its segment."""

    verdict: Verdict
    bytes: int
    segment: int = 0


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
        events = batch.events
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


def all_new(batch: Batch, segment: int = 0) -> Stored:
    """What became of a batch of which nothing was known."""
    return Stored(Verdict(batch.events), batch.bytes if batch.keys else 0, segment)


def done_of(puts: Sequence[Put], stored: Iterable[Stored]) -> list[Done]:
    """What became of puts, by what became of all their batches in a row."""
    found = iter(stored)
    done = []
    for put in puts:
        of_put = list(itertools.islice(found, len(put.batches)))
        segments = [each.segment for each in of_put]
        done.append(
            Done(
                [each.verdict for each in of_put],
                sum([each.bytes for each in of_put]),
                segments if any(segments) else (),
            )
        )
    return done


def tell_apart(batch: Batch, known: set[bytes]) -> tuple[Verdict, bytes]:
    """The batch's verdict and the lines that are new. What is new enters `known`: its next occurrence is not."""
    duplicates, new = [], []
    for position, (key, line) in enumerate(zip(split_keys(batch.keys), batch.lines.split(b"\n"), strict=True)):
        if key in known:
            duplicates.append(position)
        else:
            known.add(key)
            new.append(line)
    return Verdict(len(new), tuple(duplicates)), b"\n".join(new)
