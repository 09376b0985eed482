"""Requests whose head has come before, byte by byte: they are not parsed again (pure).

An app that posts an event at a time sends the same few heads all day. What the parser and we make of a head takes as
long as all that is done for the event; to look it up takes a fiftieth of that (bench/README.md). Where heads differ, as
with a trace's number in each, they are parsed.

It is safe because parsing depends on nothing but the bytes, and on limits that forget all heads when they change: a
message of which the parser has found that its head ends here, and that it has a body of so many bytes, is found to be
the same whenever it comes at the beginning of a message.
What changes between requests is asked each time: who may send, how much is in memory, whether we are stopping.
"""

from collections.abc import Callable
from typing import NamedTuple

from collector.sources.http_message import Answer

HEAD_END = b"\r\n\r\n"

MAX_HEADS, MAX_HEAD_BYTES, MAX_BODY_BYTES = 256, 2 * 2**10, 16 * 2**10
"""What is remembered, at most a megabyte. A larger body takes so long that its head does not matter."""

MAX_SEEN = 4096
"""Heads of which it is remembered that they came once. Those that never come again, having a number of their own or one
of many lengths, thus drive out none that do."""

Answered = Callable[[Answer | None], None]
"""Hears the answer to a request, or None where there will be none: then the connection ends."""

Begin = Callable[[bytes, bool, Answered], None]
"""What answers a whole body, of a client that is local or not, at once or later. Raises nothing."""


class _Known(NamedTuple):
    body_bytes: int
    begin: Begin


class KnownHeads:
    """Of one server's requests, over all its connections."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._seen: set[int] = set()  # hashes of heads: two that share one cost nothing but the second look

    def find(self, data: bytes) -> tuple[Begin, bytes] | None:
        """What answers the message, and its body, where `data` is one whole message with a known head."""
        end = data.find(HEAD_END) + len(HEAD_END)
        known = self._known.get(data[:end])
        if known is None or len(data) - end != known.body_bytes:
            return None
        return known.begin, data[end:]

    def learn(self, data: bytes, body: bytes, begin: Begin) -> None:
        """`begin` answers a request of HTTP/1.1 that has this body. It may be what `data` is, head and body, or not."""
        end = data.find(HEAD_END) + len(HEAD_END)
        head = data[:end]
        if end > MAX_HEAD_BYTES or data[end:] != body:
            return
        if hash(head) not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(hash(head))
            return
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[head] = _Known(len(body), begin)

    def forget(self) -> None:
        """Every head is parsed again when it comes."""
        self._known.clear()
