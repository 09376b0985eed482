"""A usage event and its identity (pure).

The contract (publishUsageEvents) says an event *is* the triple (timestamp, email, eventName). With the app it belongs
to, that is the key of deduplication: compared exactly as it was sent, never trimmed, case-folded or rounded.

A key is kept as 24 bytes: the timestamp as a big-endian signed 64-bit integer, so that live traffic lands in
neighbouring B-tree pages, then 16 bytes of BLAKE2b over (app, email, eventName). Two different events collide only
if they share a millisecond *and* a 128-bit digest: with a million events in one millisecond the chance is about
1 in 10^27. That is what "exact" means here.
"""

import functools
import hashlib
import struct
from collections.abc import Sequence
from operator import le
from typing import Annotated, Any

import msgspec

KEY_BYTES, TIMESTAMP_BYTES, DIGEST_BYTES = 24, 8, 16

# RFC 5321 4.5.3.1: 64 octets of local part, "@", 255 of domain.
EMAIL_MAX_CHARS = 320
# The contract states no limit. 1024 is far above any name of an action and keeps one event well under one datagram.
EVENT_NAME_MAX_CHARS = 1024
APP_ID_MAX_CHARS = 256
APP_ID_EXPECTED = f'text of 1 to {APP_ID_MAX_CHARS} characters other than "." and ".."'
# A thousand events of a batch stay below 20 MiB with it.
KEPT_MAX_BYTES = 16 * 1024

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Timestamp = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]
Email = Annotated[str, msgspec.Meta(min_length=3, max_length=EMAIL_MAX_CHARS)]
EventName = Annotated[str, msgspec.Meta(min_length=1, max_length=EVENT_NAME_MAX_CHARS)]
AppId = Annotated[str, msgspec.Meta(min_length=1, max_length=APP_ID_MAX_CHARS)]


DOT_SEGMENTS = frozenset({".", ".."})
"""Who normalises a URL removes these from its path, and the events would go to another address (RFC 3986, 5.2.4)."""


class UsageEvent(msgspec.Struct, rename="camel", gc=False):
    """One action of one person in one app.

    `timestamp` is in milliseconds since the epoch (int64), `email` and `event_name` are text of 3 to 320 and 1 to 1024
    characters. Without `app_id` the collector's configured default app is meant.
    """

    timestamp: Timestamp
    email: Email
    event_name: EventName
    app_id: AppId | msgspec.UnsetType = msgspec.UNSET


def is_app_id(text: str) -> bool:
    """Whether an app can have this ID."""
    return 1 <= len(text) <= APP_ID_MAX_CHARS and text not in DOT_SEGMENTS


_encode_identity = msgspec.msgpack.Encoder().encode


def identity_digest(app_id: str, email: str, event_name: str) -> bytes:
    """16 bytes that stand for (app, email, eventName); MessagePack keeps the three apart whatever they contain."""
    return hashlib.blake2b(_encode_identity((app_id, email, event_name)), digest_size=DIGEST_BYTES).digest()


# The same people do the same things again and again: a cache hit costs a tenth of the digest (0.1 us beside 1.2 us).
@functools.lru_cache(maxsize=16_384)
def sound_digest(app_id: str, email: str, event_name: str) -> bytes:
    """The identity's digest; nothing where the email has nothing before or behind its @."""
    return identity_digest(app_id, email, event_name) if 0 < email.find("@") < len(email) - 1 else b""


_pack_timestamp = struct.Struct(">q").pack


def event_key(app_id: str, timestamp: int, email: str, event_name: str) -> bytes:
    """The `KEY_BYTES` bytes by which the queue tells events apart."""
    return pack_keys([timestamp], [identity_digest(app_id, email, event_name)])


def pack_keys(timestamps: Sequence[int], digests: Sequence[bytes]) -> bytes:
    """The keys of as many events, one behind the other."""
    if len(timestamps) == 1:  # a sixth of the time
        return _pack_timestamp(timestamps[0]) + digests[0]
    fields: list[Any] = [None] * (2 * len(timestamps))
    fields[::2], fields[1::2] = timestamps, digests
    return _row_of(len(timestamps), f"q{DIGEST_BYTES}s").pack(*fields)


def split_keys(keys: bytes) -> tuple[bytes, ...]:
    """Each of the keys."""
    return _row_of(len(keys) // KEY_BYTES, f"{KEY_BYTES}s").unpack(keys)


def by_time(keys: bytes) -> bytes:
    """The same keys in the order of time, as live traffic mostly comes: neighbours meet in the same B-tree pages.

    Where they come so, those of one instant stay as they came.
    """
    timestamps = _row_of(len(keys) // KEY_BYTES, f"q{DIGEST_BYTES}x").unpack(keys)
    return keys if all(map(le, timestamps, timestamps[1:])) else b"".join(sorted(split_keys(keys)))


@functools.lru_cache(maxsize=64)
def _row_of(keys: int, key: str) -> struct.Struct:
    """The layout of so many keys, each laid out as `key`."""
    return struct.Struct(">" + key * keys)
