"""What clients have sent and been told, and what must therefore be true of every answer and of what upstream gets."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Identity(NamedTuple):
    """What an event is."""

    app_id: str
    timestamp: int
    email: str
    event_name: str


class Sent:
    """One event that some client has sent at least once."""

    def __init__(self, number: int, kept: dict[str, Any], stamp_us: int) -> None:
        self.number = number
        self.kept = kept
        self.requests = 0
        self.acknowledged = False
        self.earliest_stamp_us = stamp_us
        self.may_be_forgotten = False

    @property
    def is_known(self) -> bool:
        """The collector has it, and must remember that."""
        return self.acknowledged and not self.may_be_forgotten


class Post(NamedTuple):
    """A request's events: the valid ones, and how many there are besides."""

    valid: Sequence[Identity]
    invalid: int
    known_before: frozenset[Identity]
    """Those that were known when it was sent."""


class Books:
    """Everything that was ever sent. `wall_us` is the agent's wall clock, by which it forgets."""

    def __init__(self, retention_seconds: float, wall_us: Callable[[], int]) -> None:
        self._retention_us = int(retention_seconds * 1e6)
        self._wall_us = wall_us
        self.sent: dict[Identity, Sent] = {}

    def look_at_the_clock(self, *, has_jumped: bool = False) -> None:
        """What may be forgotten by now. To be called right before and after the wall clock jumps, and to be sure."""
        now_us = self._wall_us()
        for record in self.sent.values():
            if has_jumped and not record.acknowledged:
                record.earliest_stamp_us = min(record.earliest_stamp_us, now_us)
            if now_us - record.earliest_stamp_us > self._retention_us:
                record.may_be_forgotten = True

    def new(self, identity: Identity, kept: dict[str, Any]) -> None:
        """An event that a client has come to know of."""
        self.sent.setdefault(identity, Sent(len(self.sent) + 1, kept, self._wall_us()))

    def post(self, valid: Sequence[Identity], invalid: int) -> Post:
        """A request is being sent."""
        self.look_at_the_clock()
        for identity in set(valid):
            record = self.sent[identity]
            if not record.requests:
                record.earliest_stamp_us = self._wall_us()
            record.requests += 1
        return Post(valid, invalid, frozenset(identity for identity in valid if self.sent[identity].is_known))

    def answered(self, post: Post, accepted: int, duplicates: int, rejected: int, *, in_full: bool) -> None:
        """The agent has said what became of a request; `in_full`: of all of it."""
        self.look_at_the_clock()
        distinct = set(post.valid)
        known = {identity for identity in post.known_before if self.sent[identity].is_known}
        forgotten = sum(self.sent[identity].may_be_forgotten for identity in post.valid)
        most = forgotten + sum(not self.sent[identity].may_be_forgotten for identity in distinct - known)
        assert accepted <= most, f"accepted {accepted} of {len(distinct)} events, of which {len(known)} were known"
        if not in_full:
            return
        assert rejected == post.invalid, f"rejected {rejected}, but {post.invalid} are invalid"
        assert accepted + duplicates == len(post.valid), (
            f"accepted {accepted} and {duplicates} duplicates of {len(post.valid)} valid events"
        )
        new = sum(self.sent[identity].requests == 1 for identity in distinct)
        assert accepted >= new, f"accepted {accepted}, but {new} events were never sent before"
        for identity in distinct:
            self.sent[identity].acknowledged = True

    def check_delivery(self, app_id: str, events: Iterable[dict[str, Any]]) -> list[Identity]:
        """The identities of what upstream was sent: every one was sent by a client, with what was to be kept of it."""
        identities = []
        for event in events:
            identity = Identity(app_id, event["timestamp"], event["email"], event["eventName"])
            record = self.sent.get(identity)
            assert record is not None, f"upstream got an event that nobody has sent: {identity}"
            assert record.requests, f"upstream got an event before it was sent: {identity}"
            expected = {"timestamp": identity.timestamp, "email": identity.email, "eventName": identity.event_name}
            assert event == expected | record.kept, f"upstream got {event}, but {expected | record.kept} was sent"
            identities.append(identity)
        return identities

    def name(self, identities: Iterable[Identity]) -> str:
        """Events as a story tells of them: their numbers."""
        numbers = [self.sent[identity].number for identity in identities]
        shown = " ".join(f"#{number}" for number in numbers[:12])
        return f"{shown} … ({len(numbers)} events)" if len(numbers) > 12 else shown or "nothing"
