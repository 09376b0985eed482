"""Compressed bodies: the same however they come, refused where damaged, and never opened further than asked."""

import gzip
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import MalformedBody
from collector.sources import encodings
from collector.sources.encodings import ENCODINGS, PIECE_BYTES, STEP_BYTES, Decoder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READ_BYTES = 64 * 2**10


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def zstd_with_window(log: int) -> Callable[[bytes], bytes]:
    """A sender that asks for a window of 2**log bytes, as one does that does not know how much will come."""

    def compress(data: bytes) -> bytes:
        stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
        return stream.compress(data) + stream.flush()

    return compress


COMPRESSED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd.compress),
    "zstd of unknown size": ("zstd", zstd_with_window(23)),
}
EVERY_WAY = pytest.mark.parametrize(("encoding", "compress"), COMPRESSED.values(), ids=COMPRESSED)

CONTENT = b'{"timestamp":1700000000000,"email":"user@example.com","eventName":"page_viewed"}\n' * 3 + bytes(range(256))


def opened(encoding: str, parts: Iterable[bytes]) -> bytes:
    decoder = Decoder(encoding)
    pieces = [piece for part in parts for piece in decoder.pieces(part)]
    decoder.end()
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


def in_reads(data: bytes, size: int = READ_BYTES) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def test_these_encodings_are_understood() -> None:
    assert set(ENCODINGS) == {"identity", "gzip", "deflate", "zstd"}


def test_a_body_that_is_not_compressed_is_what_it_is() -> None:
    assert opened("identity", [b"a", b"bc"]) == b"abc"
    assert opened("identity", []) == b""


@EVERY_WAY
def test_a_body_is_the_same_wherever_its_bytes_are_split(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    sent = compress(CONTENT)
    for at in range(len(sent) + 1):
        assert opened(encoding, [part for part in (sent[:at], sent[at:]) if part]) == CONTENT
    assert opened(encoding, in_reads(sent, 1)) == CONTENT


@EVERY_WAY
def test_streams_one_after_the_other_are_one_body(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    sent = compress(CONTENT) + compress(b"") + compress(b"!") + compress(CONTENT)
    for at in range(1, len(sent)):
        assert opened(encoding, [sent[:at], sent[at:]]) == CONTENT + b"!" + CONTENT
    assert opened(encoding, in_reads(sent, 1)) == CONTENT + b"!" + CONTENT


@EVERY_WAY
@given(
    contents=st.lists(st.binary(max_size=50) | st.integers(0, 3 * PIECE_BYTES).map(bytes), min_size=1, max_size=4),
    size=st.integers(1, 2000),
)
def test_whatever_was_compressed_comes_out(
    encoding: str, compress: Callable[[bytes], bytes], contents: list[bytes], size: int
) -> None:
    assert opened(encoding, in_reads(b"".join(map(compress, contents)), size)) == b"".join(contents)


@EVERY_WAY
@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 8 * PIECE_BYTES, 5_000_000])
def test_a_large_body_comes_out_in_pieces(encoding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    content = bytes(size)
    assert opened(encoding, [compress(content)]) == content
    content = (CONTENT * (size // len(CONTENT) + 1))[:size]
    assert opened(encoding, [compress(content)]) == content


@EVERY_WAY
def test_a_body_that_ends_too_early_is_malformed(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    sent = compress(CONTENT)
    for size in range(1, len(sent)):
        with pytest.raises(MalformedBody, match=f"the body is not {encoding}"):
            opened(encoding, [sent[:size]])
        with pytest.raises(MalformedBody, match=f"the body is not {encoding}"):
            opened(encoding, [sent, sent[:size]])


@EVERY_WAY
@pytest.mark.parametrize("garbage", [b"\x00", b"\xff", b"\n", b"garbage", b"\xff" * 1000])
def test_what_follows_a_body_and_is_none_is_malformed(
    encoding: str, compress: Callable[[bytes], bytes], garbage: bytes
) -> None:
    for parts in (
        [compress(CONTENT) + garbage],
        [compress(CONTENT), garbage],
        in_reads(compress(CONTENT) + garbage, 1),
    ):
        with pytest.raises(MalformedBody, match=f"the body is not {encoding}"):
            opened(encoding, parts)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("garbage", [b"x", b"{}", b"garbage", b"[" + CONTENT + b"]", b"\xff" * 100_000])
def test_a_body_that_is_not_compressed_although_it_says_so_is_malformed(encoding: str, garbage: bytes) -> None:
    for size in (1, len(garbage)):
        with pytest.raises(MalformedBody, match=f"the body is not {encoding}"):
            opened(encoding, in_reads(garbage, size))


@pytest.mark.parametrize(
    ("name", "other"), [("gzip", "deflate"), ("gzip", "zstd"), ("zstd", "gzip"), ("zstd", "deflate")]
)
def test_one_encoding_is_not_taken_for_another(name: str, other: str) -> None:
    _, compress = COMPRESSED[name]
    with pytest.raises(MalformedBody, match=f"the body is not {other}"):
        opened(other, [compress(CONTENT)])


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_body_whose_check_sum_is_wrong_is_malformed(name: str) -> None:
    encoding, compress = COMPRESSED[name]
    sent = bytearray(compress(CONTENT))
    sent[-5 if encoding == "gzip" else -1] ^= 1
    with pytest.raises(MalformedBody, match="check"):
        opened(encoding, [bytes(sent)])


@given(data=st.binary(max_size=200), name=st.sampled_from(sorted(COMPRESSED)), places=st.lists(st.integers(0, 400)))
def test_damage_is_malformed_or_harmless_and_nothing_else(data: bytes, name: str, places: list[int]) -> None:
    encoding, compress = COMPRESSED[name]
    sent = bytearray(compress(CONTENT))
    for place, byte in zip(places, data, strict=False):
        sent[place % len(sent)] = byte
    for damaged in (bytes(sent), data):
        try:
            opened(encoding, [damaged] if damaged else [])
        except MalformedBody as error:
            assert str(error).startswith(f"the body is not {encoding}: ")  # noqa: PT017 - or there was none


@pytest.mark.parametrize(("log", "is_taken"), [(10, True), (23, True), (24, False), (27, False)])
def test_a_zstd_window_above_8_mib_is_refused(log: int, *, is_taken: bool) -> None:
    sent = zstd_with_window(log)(CONTENT)
    if is_taken:
        assert opened("zstd", [sent]) == CONTENT
    else:
        with pytest.raises(MalformedBody, match="too much memory"):
            opened("zstd", [sent])


def test_zstd_frames_that_are_to_be_skipped_are() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    assert opened("zstd", [skipped + zstd.compress(b"a") + skipped + zstd.compress(b"b")]) == b"ab"


# Bombs


def deflate_bomb() -> bytes:
    """10 MB that stand for 10 GB: one block of zeros, which refers to nothing before it, again and again."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    start = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return start * (10_000_000 // len(start))


def zstd_bomb() -> bytes:
    frame = zstd.compress(bytes(2**24))
    return frame * (10_000_000 // len(frame))


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("gzip", gzip.compress(b"")[:10] + deflate_bomb()),
        ("deflate", b"\x78\x9c" + deflate_bomb()),
        ("deflate", deflate_bomb()),
        ("zstd", zstd_bomb()),
    ],
    ids=["gzip", "deflate", "bare deflate", "zstd"],
)
def test_a_bomb_is_opened_no_further_than_it_is_asked_to(encoding: str, sent: bytes) -> None:
    """However much is sent at one time."""
    most = 64 * 2**20
    for size in (READ_BYTES, len(sent)):
        decoder, taken, count = Decoder(encoding), 0, 0
        tracemalloc.start()
        for piece in (piece for part in in_reads(sent, size) for piece in decoder.pieces(part)):
            taken += len(piece)
            count += 1
            if taken > most:
                break
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken <= most + PIECE_BYTES
        assert count >= most // PIECE_BYTES
        assert peak_bytes < 4 * PIECE_BYTES + READ_BYTES


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_work_for_the_smallest_streams_grows_with_their_number_and_no_faster(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, compress = COMPRESSED[name]
    handed = 0
    opener = encodings._Zstd if encoding == "zstd" else encodings._Zlib
    open_some: Callable[[Any, bytes], bytes] = opener.open_some

    def count(stream: Any, data: bytes) -> bytes:
        nonlocal handed
        handed += len(data)
        return open_some(stream, data)

    monkeypatch.setattr(opener, "open_some", count)
    handed_bytes = []
    for size in (3 * STEP_BYTES, 12 * STEP_BYTES):
        handed = 0
        assert opened(encoding, [compress(b"") * (size // len(compress(b"")))]) == b""
        handed_bytes.append(handed)
    assert handed_bytes[1] < 5 * handed_bytes[0]
