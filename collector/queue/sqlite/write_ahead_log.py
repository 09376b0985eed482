"""SQLite's write-ahead log, read without SQLite (https://sqlite.org/fileformat2.html#the_write_ahead_log).

SQLite takes the first frame that fails its checksum for the end of the log. That is right behind a commit that was
interrupted or failed, whose frames may stand there; and wrong after a flipped bit, for everything behind it was
acknowledged and would be dropped without a word. The log alone does not tell the two apart: each frame's checksum
continues that of the frame before, and so it does in what a failed commit has left. But the index (the -shm file,
https://sqlite.org/walformat.html#the_wal_index_file_format) says how many frames are finished, and outlives the process
that wrote it. What it does not know of, as after a power cut, is left to SQLite.
"""

import struct
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096
"""Of our own files; see database.py."""

AUTO_CHECKPOINT_PAGES = 4000
"""A log of so many is due to be folded into the database."""

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682  # its last bit says in which byte order checksums are computed
_WORDS = 0xFFFFFFFF
_INDEX = struct.Struct("=I12xI12x8s2I")  # of 48 bytes: version, frames that are finished, salts, checksum
_INDEX_VERSION = 3007000


class Frame(NamedTuple):
    """A page that a transaction wrote: its number, and where its content stands in the log."""

    page: int
    offset: int


class Log(NamedTuple):
    """What a log holds: the frames of all transactions that were finished, and how many pages the file had then."""

    frames: list[Frame]
    pages: int
    bad_frames: int
    """Frames among those that fail their checksum, or are missing."""
    header_is_bad: bool
    torn_frames: int
    """Frames behind these up to the end of some transaction that failed, was interrupted, or is damaged."""

    @property
    def is_damaged(self) -> bool:
        """Whether SQLite would drop transactions that were finished."""
        return bool(self.bad_frames or (self.header_is_bad and self.frames))

    @property
    def damage(self) -> str:
        """What is wrong with a damaged log, for people."""
        return f"its log has {self.bad_frames} bad pages amid finished commits, or a bad head"


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
    known = _known_to_index(file.with_name(file.name.removesuffix("-wal") + "-shm"), content[16:24])
    return _finished(frames, set(own), sound, offsets, known, header_is_bad=header_is_bad)


def _known_to_index(file: Path, salts: bytes) -> int:
    """How many frames of the log with these salts are finished, as far as the index knows."""
    try:
        with file.open("rb") as index:
            header, copy = index.read(_INDEX.size), index.read(_INDEX.size)
    except OSError:
        return 0
    if header != copy or len(copy) < _INDEX.size:
        return 0
    version, finished, its_salts, *total = _INDEX.unpack(header)
    is_sound = version == _INDEX_VERSION and its_salts == salts and _checksum("=", header[:40], (0, 0)) == tuple(total)
    return int(finished) if is_sound else 0


def _finished(
    frames: list[tuple[int, ...]],
    own: set[int],
    sound: list[bool],
    offsets: range,
    known: int,
    *,
    header_is_bad: bool,
) -> Log:
    """The transactions that were finished: those that SQLite would take, and all that are known to be."""
    commits = [number for number in range(len(sound)) if number in own and frames[number][1]]
    chain = sound.index(False) if False in sound else len(sound)
    end = max([known, *(number + 1 for number in commits if number < chain)])
    there = min(end, len(sound))
    return Log(
        [Frame(frames[number][0], offsets[number] + _FRAME.size) for number in range(there)],
        next((frames[number][1] for number in reversed(commits) if number < there), 0),
        sound[:there].count(False) + end - there,
        header_is_bad,
        max(0, commits[-1] + 1 - end) if commits else 0,
    )


def _checksum(words: str, content: bytes, start: tuple[int, ...]) -> tuple[int, int]:
    first, second = start
    numbers = iter(struct.unpack(f"{words}{len(content) // 4}I", content))
    for number in numbers:
        first = (first + number + second) & _WORDS
        second = (second + next(numbers) + first) & _WORDS
    return first, second
