"""The body of one request: read and decompressed within its limits; what is in memory of all bodies is counted."""

from collections.abc import AsyncIterator

import msgspec

from collector.errors import TooLarge
from collector.intake import STREAM_PIECE_BYTES
from collector.sources.encodings import PIECE_BYTES, Decoder
from collector.sources.http_message import Refusal, Request

STREAM_HELD_BYTES = STREAM_PIECE_BYTES + PIECE_BYTES
"""No stream holds more than this, however long it is: lines are stored whenever there is a piece of them."""


class BodyLimits(msgspec.Struct, frozen=True):
    """What one body may be, as it is sent and decompressed, and what all bodies together may take of memory."""

    sent_bytes: int
    decompressed_bytes: int
    stream_bytes: int
    held_bytes: int

    def check_whole(self, size: int) -> None:
        """Raises TooLarge for a body of so many bytes that is not compressed."""
        self.check_sent(size)
        self.check_decompressed(size)

    def check_sent(self, size: int) -> None:
        """Raises TooLarge for a body of so many bytes, as it is sent."""
        if size > self.sent_bytes:
            raise _too_large("max_request_bytes", self.sent_bytes)

    def check_decompressed(self, size: int) -> None:
        """Raises TooLarge for a body of so many bytes, as it is read."""
        if size > self.decompressed_bytes:
            raise _too_large("max_decompressed_bytes", self.decompressed_bytes)


class Memory:
    """Bytes of all bodies whose events are not stored yet."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def hold(self, size: int) -> None:
        """So much more is held. Raises Refusal where that is too much; what was held before stays so."""
        if self.held_bytes + size > self.limit_bytes:
            reason = f"request bodies take all of http.max_held_bytes = {self.limit_bytes} bytes"
            raise Refusal(503, reason, "memory", {"Retry-After": "1"})
        self.held_bytes += size

    def release(self, size: int) -> None:
        """So much less is held."""
        self.held_bytes -= size


class Body:
    """Reads a request's body, as a whole or in pieces; `release` it when its events are stored or refused."""

    def __init__(self, request: Request, encoding: str, limits: BodyLimits, memory: Memory) -> None:
        self._request = request
        self._decoder = Decoder(encoding)
        self._limits = limits
        self._memory = memory
        self._held_bytes = 0

    async def whole(self) -> bytes:
        """All of it. Raises TooLarge as soon as it is, MalformedBody, and Refusal."""
        limits = self._limits
        said = self._request.headers.get("content-length", "").lstrip("0")  # the parser takes nothing but digits
        limits.check_sent(int(said or 0))
        parts: list[bytes] = []
        sent_bytes = 0
        while part := await self._request.read():
            sent_bytes += len(part)
            limits.check_sent(sent_bytes)
            for piece in self._decoder.pieces(part):
                limits.check_decompressed(self._held_bytes + len(piece))
                self._hold(len(piece))
                parts.append(piece)
        self._decoder.end()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def pieces(self) -> AsyncIterator[bytes]:
        """It as it comes. Raises what `whole` does, but for the limits of what is held whole."""
        taken_bytes = 0
        while part := await self._request.read():
            for piece in self._decoder.pieces(part):
                taken_bytes += len(piece)
                if taken_bytes > self._limits.stream_bytes:
                    raise _too_large("max_stream_bytes", self._limits.stream_bytes)
                self._hold(min(len(piece), STREAM_HELD_BYTES - self._held_bytes))
                yield piece
        self._decoder.end()

    def release(self) -> None:
        """Nothing of it is held any more."""
        self._memory.release(self._held_bytes)
        self._held_bytes = 0

    def _hold(self, size: int) -> None:
        self._memory.hold(size)
        self._held_bytes += size


def _too_large(key: str, limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than http.{key} = {limit} bytes")
