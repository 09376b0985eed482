"""SQLite's write-ahead log, read without SQLite (https://sqlite.org/fileformat2.html#the_write_ahead_log).

SQLite takes the first frame that fails its checksum for the end of the log: right after a power cut, which tears the
transaction that was being written, and wrong after a flipped bit, for everything behind it was acknowledged and would
be dropped without a word. The two can be told apart: each frame's checksum continues that of the frame before, as
stored, so frames behind a bad one can be checked; and a transaction is written only after the one before is on disk.
"""

import struct
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096
"""Of our own files; see database.py."""

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682  # its last bit says in which byte order checksums are computed
_WORDS = 0xFFFFFFFF


class Frame(NamedTuple):
    """A page that a transaction wrote: its number, and where its content stands in the log."""

    page: int
    offset: int


class Log(NamedTuple):
    """What a log holds: the frames of all transactions that were finished, and how many pages the file had then."""

    frames: list[Frame]
    pages: int
    bad_frames: int
    """Frames among those that fail their checksum."""
    header_is_bad: bool
    torn_frames: int
    """Frames behind these, of a last transaction that is not whole although its end is there."""

    @property
    def is_damaged(self) -> bool:
        """Whether SQLite would drop transactions that were finished."""
        return bool(self.bad_frames or (self.header_is_bad and self.frames))


EMPTY = Log([], 0, 0, header_is_bad=False, torn_frames=0)


def read_log(file: Path) -> Log:
    """The log as it stands in its file; empty where there is none. About 70 microseconds a frame. Raises OSError."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return EMPTY
    frame_bytes = _FRAME.size + PAGE_BYTES
    offsets = range(_HEADER.size, len(content) - frame_bytes + 1, frame_bytes)
    if not offsets:
        return EMPTY
    magic, _, page_bytes, _, *salts, sum_0, sum_1 = _HEADER.unpack_from(content)
    words = ">" if magic & 1 else "<"
    header_sum = _checksum(words, content[:24], (0, 0))
    header_is_bad = header_sum != (sum_0, sum_1) or magic | 1 != _MAGIC | 1 or page_bytes != PAGE_BYTES
    if header_is_bad:
        words = "<" if magic & 1 == 0 else ">"
        salts = list(_FRAME.unpack_from(content, _HEADER.size)[2:4])
    frames = [_FRAME.unpack_from(content, offset) for offset in offsets]
    own = [number for number, frame in enumerate(frames) if list(frame[2:4]) == salts]
    sound: list[bool] = []
    before = (sum_0, sum_1)
    for number in range(own[-1] + 1 if own else 0):
        offset, frame = offsets[number], frames[number]
        total = _checksum(words, content[offset : offset + 8], before)
        total = _checksum(words, content[offset + _FRAME.size : offset + frame_bytes], total)
        # After a bad header there is nothing that the first frame's checksum could be held against.
        sound.append(list(frame[2:4]) == salts and (total == frame[4:6] or (header_is_bad and number == 0)))
        before = frame[4:6]
    return _finished(frames, set(own), sound, offsets, header_is_bad=header_is_bad)


def _finished(
    frames: list[tuple[int, ...]], own: set[int], sound: list[bool], offsets: range, *, header_is_bad: bool
) -> Log:
    """The transactions that were finished. A bad frame is forgiven only in the last one, which may be torn."""
    commits = [number for number in range(len(sound)) if number in own and frames[number][1]]
    end = commits[-1] + 1 if commits else 0
    before = commits[-2] + 1 if len(commits) > 1 else 0
    torn = 0
    if not all(sound[before:end]):
        end, torn = before, end - before
    return Log(
        [Frame(frames[number][0], offsets[number] + _FRAME.size) for number in range(end)],
        frames[end - 1][1] if end else 0,
        sound[:end].count(False),
        header_is_bad,
        torn,
    )


def _checksum(words: str, content: bytes, start: tuple[int, ...]) -> tuple[int, int]:
    first, second = start
    numbers = iter(struct.unpack(f"{words}{len(content) // 4}I", content))
    for number in numbers:
        first = (first + number + second) & _WORDS
        second = (second + next(numbers) + first) & _WORDS
    return first, second
