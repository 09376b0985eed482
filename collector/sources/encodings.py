"""Content-Encoding (RFC 9110 section 8.4.1): compressed bodies are opened piece by piece, none larger than another.

A few kilobytes can stand for gigabytes. Whoever reads the pieces counts them, and stops when they are too many; what
was not asked for has not been opened by then.
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from collector.errors import MalformedBody

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 256 * 2**10

STEP_BYTES = 16 * 2**10
"""So much is opened at one time: what follows the end of a stream is copied, and half a megabyte that was 260,000 empty
streams took 2.6 s when all of it was."""

ZSTD_WINDOW_LOG_MAX = 23
"""8 MiB: what RFC 9659 lets a sender of `zstd` ask of a receiver's memory."""


class _Opener(Protocol):
    """One compressed stream: a gzip member, a zlib stream, a zstd frame."""

    eof: bool
    unused_data: bytes

    def open_some(self, data: bytes) -> bytes:
        """At most a piece of what `data`, after what came before, stands for."""
        ...

    @property
    def wants_more(self) -> bool:
        """Nothing can be opened before more has come."""
        ...


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._stream = zlib.decompressobj(window_bits)
        self._is_full = False

    eof = property(lambda self: self._stream.eof)
    unused_data = property(lambda self: self._stream.unused_data)

    def open_some(self, data: bytes) -> bytes:
        piece = self._stream.decompress(self._stream.unconsumed_tail + data, PIECE_BYTES)
        self._is_full = len(piece) == PIECE_BYTES
        return piece

    @property
    def wants_more(self) -> bool:
        # A full piece may have left something inside the stream even where all input is consumed.
        return not self._is_full and not self._stream.unconsumed_tail


class _Zstd:
    def __init__(self) -> None:
        self._stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})

    eof = property(lambda self: self._stream.eof)
    unused_data = property(lambda self: self._stream.unused_data)

    def open_some(self, data: bytes) -> bytes:
        return self._stream.decompress(data, PIECE_BYTES)

    @property
    def wants_more(self) -> bool:
        return self._stream.needs_input


def _deflate(start: bytes) -> _Opener:
    """`deflate` is a zlib stream; those who took the name at its word send the bare one. The first bytes tell."""
    is_zlib = len(start) > 1 and start[0] & 0x0F == 8 and (start[0] << 8 | start[1]) % 31 == 0
    return _Zlib(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


_OPENERS: Mapping[str, Callable[[bytes], _Opener]] = {
    "gzip": lambda _: _Zlib(zlib.MAX_WBITS | 16),
    "deflate": _deflate,
    "zstd": lambda _: _Zstd(),
}
ENCODINGS = ("identity", *_OPENERS)
"""What `Decoder` understands."""


class Decoder:
    """One body. Several compressed streams one after the other are one body, as with `cat a.gz b.gz`."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._opener: _Opener | None = None
        self._start = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What comes out when `data` has come in, at most `PIECE_BYTES` at a time. Raises MalformedBody."""
        if self._encoding == "identity":
            yield data
            return
        for start in range(0, len(data), STEP_BYTES):
            yield from self._open(data[start : start + STEP_BYTES])

    def end(self) -> None:
        """The body has ended. Raises MalformedBody where a compressed stream has not."""
        if self._opener is not None or self._start:
            raise MalformedBody(f"the body is not {self._encoding}: it ends too early")

    def _open(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._opener is None:
                self._start += data
                if len(self._start) < 2:  # `_deflate` looks at two
                    return
                data, self._start = self._start, b""
                self._opener = _OPENERS[self._encoding](data)
            opener = self._opener
            try:
                while True:
                    piece = opener.open_some(data)
                    data = b""
                    if piece:
                        yield piece
                    if opener.eof or opener.wants_more:
                        break
            except (zlib.error, zstd.ZstdError) as error:
                raise MalformedBody(f"the body is not {self._encoding}: {error}") from error
            if opener.eof:
                data, self._opener = opener.unused_data, None
