"""Requests whose head has come before, byte by byte: they are not parsed again (pure).

An app that posts an event at a time sends the same few heads all day. What the parser and we make of a head takes as
long as all that is done for the event; to look it up takes a fiftieth of that (bench/README.md). Where each request has
a number of its own, as tracing gives it, heads are alike but for that field.

It is safe because parsing depends on nothing but the bytes, and on limits that forget all heads when they change: a
message of which the parser has found that its head ends here, and that it has a body of so many bytes, is found to be
the same whenever it comes at the beginning of a message. A field that nobody reads, and whose value is plain, changes
nothing of that.
What changes between requests is asked each time: who may send, how much is in memory, whether we are stopping.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from collector.sources.http_message import Answer

HEAD_END = b"\r\n\r\n"

START = b"POST "
"""What a known head begins with. Empty lines before it could make an end of the first of those fields."""

MAX_HEADS, MAX_HEAD_BYTES, MAX_BODY_BYTES = 256, 2 * 2**10, 16 * 2**10
"""What is remembered, at most a megabyte. A larger body takes so long that its head does not matter."""

VARYING = re.compile(
    rb"\r\n(?:traceparent|tracestate|baggage|b3|x-b3-[a-z]+|x-datadog-[a-z-]+|sentry-trace|uber-trace-id"
    rb"|x-amzn-trace-id|x-cloud-trace-context|x-request-id|x-correlation-id|idempotency-key)"
    rb": ?[!-~][ -~]*(?=\r\n[^ \t])",
    re.IGNORECASE,
)
"""Fields in which requests that are otherwise alike have their own numbers: each with its value, whole and alone."""

MAX_SEEN = 4096
"""Heads of which it is remembered that they came once. Those that never come again thus drive out none that do."""

Answered = Callable[[Answer | None], None]
"""Hears the answer to a request, or None where there will be none: then the connection ends."""

Begin = Callable[[bytes, bool, Answered], None]
"""What answers a whole body, of a client that is local or not, at once or later. Raises nothing."""


class _Known(NamedTuple):
    body_bytes: int
    begin: Begin


class KnownHeads:
    """Of one server's requests, over all its connections."""

    def __init__(self, head_bytes: int) -> None:
        self._known: dict[bytes, _Known] = {}
        self._seen: set[int] = set()  # hashes of heads: two that share one cost nothing but the second look
        self.use_limit(head_bytes)

    def use_limit(self, head_bytes: int) -> None:
        """From now on no head may be larger. Each is parsed again when it comes."""
        self._most_bytes = min(head_bytes, MAX_HEAD_BYTES)
        self._known.clear()

    def find(self, data: bytes) -> tuple[Begin, bytes] | None:
        """What answers the message, and its body, where `data` is one whole message with a known head."""
        end = data.find(HEAD_END) + len(HEAD_END)
        if end > self._most_bytes:
            return None
        head = data[:end]
        known = self._known.get(head) or self._known.get(VARYING.sub(b"", head))
        if known is None or len(data) - end != known.body_bytes:
            return None
        return known.begin, data[end:]

    def learn(self, data: bytes, body: bytes, begin: Begin) -> None:
        """`begin` answers a request of HTTP/1.1 that has this body. It may be what `data` is, head and body, or not."""
        end = data.find(HEAD_END) + len(HEAD_END)
        if end > self._most_bytes or data[end:] != body or not data.startswith(START):
            return
        head = VARYING.sub(b"", data[:end])
        if hash(head) not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(hash(head))
            return
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[head] = _Known(len(body), begin)
