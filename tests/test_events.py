"""Two events are one exactly if app, timestamp, email and name are the same text and the same number."""

import unicodedata
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.events import INT64_MAX, INT64_MIN, KEY_BYTES, by_time, event_key, identity_digest, pack_keys, split_keys

Identity = tuple[str, int, str, str]

TIMESTAMPS = st.integers(INT64_MIN, INT64_MAX)
# Few characters, so that texts often meet, and such as are used as separators, escapes and ends of text.
TEXTS = st.text(alphabet='ab@\x00\x1f\n,"\\|/ ', max_size=6) | st.text(max_size=40)
IDENTITIES = st.tuples(TEXTS, TIMESTAMPS, TEXTS, TEXTS)


@given(IDENTITIES)
def test_a_key_has_24_bytes_whatever_the_event_holds(identity: Identity) -> None:
    assert len(event_key(*identity)) == KEY_BYTES == 24


@given(IDENTITIES)
def test_the_same_event_has_the_same_key_each_time(identity: Identity) -> None:
    app_id, timestamp, email, event_name = identity
    # Texts made anew: equal, but not the same objects, as from two requests.
    again = (app_id.encode().decode(), timestamp, email.encode().decode(), event_name.encode().decode())
    assert event_key(*identity) == event_key(*again)


@given(IDENTITIES, IDENTITIES)
@example(("a", 1, "b\x00c", "d"), ("a", 1, "b", "c\x00d"))
@example(("a\x00b", 1, "c", "d"), ("a", 1, "b\x00c", "d"))
@example(("", 1, "a", ""), ("a", 1, "", ""))
def test_different_events_have_different_keys(one: Identity, other: Identity) -> None:
    assert (event_key(*one) == event_key(*other)) == (one == other)


@given(st.integers(0, INT64_MAX), TEXTS, TEXTS, TEXTS, st.sampled_from(["", "\x00", "\n", ",", "|", '","', "ab"]))
def test_a_key_keeps_app_email_and_name_apart_whatever_they_contain(
    timestamp: int, app_id: str, email: str, event_name: str, separator: str
) -> None:
    """All ways to cut one and the same text in three are different events."""
    whole = separator.join((app_id, email, event_name))
    cuts = {
        (whole[:start], whole[start:end], whole[end:])
        for start in range(min(len(whole), 12) + 1)
        for end in range(start, min(len(whole), 12) + 1)
    }
    assert len({event_key(app, timestamp, mail, name) for app, mail, name in cuts}) == len(cuts)


@given(st.lists(st.tuples(TEXTS, st.integers(0, INT64_MAX), TEXTS, TEXTS), max_size=20))
def test_keys_sort_by_time_so_that_live_traffic_lands_in_neighbouring_pages(identities: list[Identity]) -> None:
    by_key = sorted(identities, key=lambda identity: event_key(*identity))
    assert [timestamp for _, timestamp, _, _ in by_key] == sorted(timestamp for _, timestamp, _, _ in identities)


@given(st.lists(IDENTITIES, max_size=20))
def test_keys_in_a_row_are_those_of_each_event(identities: list[Identity]) -> None:
    timestamps = [timestamp for _, timestamp, _, _ in identities]
    row = pack_keys(timestamps, [identity_digest(app, email, name) for app, _, email, name in identities])
    assert list(split_keys(row)) == [event_key(*identity) for identity in identities]


@given(st.lists(st.tuples(TEXTS, st.integers(0, 5) | st.integers(0, INT64_MAX), TEXTS, TEXTS), max_size=20))
def test_keys_ordered_by_time_are_all_still_there(identities: list[Identity]) -> None:
    keys = [event_key(*identity) for identity in identities]
    row = by_time(b"".join(keys))
    assert sorted(split_keys(row)) == sorted(keys)
    assert [key[:8] for key in split_keys(row)] == sorted(key[:8] for key in keys)
    assert by_time(row) is row  # which is most of what comes


@pytest.mark.parametrize("timestamp", [INT64_MIN, -1, 0, 1, INT64_MAX])
def test_every_int64_is_a_timestamp_of_its_own(timestamp: int) -> None:
    key = event_key("app", timestamp, "user@example.com", "login")
    assert int.from_bytes(key[:8], "big", signed=True) == timestamp


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user@example.com", "User@example.com"),
        ("user@example.com", "user@EXAMPLE.com"),
        ("user@example.com", " user@example.com"),
        ("user@example.com", "user@example.com "),
        ("user@example.com", "user@example.com\x00"),
        ("user@example.com", "user@example.com\n"),
        ("caf\u00e9@example.com", "cafe\u0301@example.com"),
        ("\u212b@example.com", "\u00c5@example.com"),
        ("stra\u00dfe@example.com", "strasse@example.com"),
        ("a\u200bb@example.com", "ab@example.com"),
    ],
)
def test_text_is_never_normalised_before_it_is_compared(one: str, other: str) -> None:
    for identities in (
        [(text, 1, "user@example.com", "login") for text in (one, other)],
        [("app", 1, text, "login") for text in (one, other)],
        [("app", 1, "user@example.com", text) for text in (one, other)],
    ):
        assert len({event_key(*identity) for identity in identities}) == 2


@given(st.text(max_size=20), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_normal_forms_of_a_text_are_one_event_only_where_they_are_one_text(
    text: str, form: Literal["NFC", "NFD", "NFKC", "NFKD"]
) -> None:
    normal = unicodedata.normalize(form, text)
    keys = {event_key("app", 1, text, "login"), event_key("app", 1, normal, "login")}
    assert len(keys) == len({text, normal})
