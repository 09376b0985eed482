"""Who may post, and what a page in a browser on this machine tries in vain."""

import base64
from collections.abc import Mapping

import pytest

from collector.sources.access import Guard
from collector.sources.http_message import Refusal

TOKEN = "correct-horse-battery-staple"
OTHER = "another-one-for-the-other-team=="


def refusal_of_host(guard: Guard, headers: Mapping[str, str]) -> Refusal | None:
    try:
        guard.check_host(headers)
    except Refusal as refusal:
        return refusal
    return None


def refusal_of_sender(guard: Guard, headers: Mapping[str, str]) -> Refusal | None:
    try:
        guard.check_sender(headers)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8787",
        "localhost:",
        "[::1]:",
        "fe80::",
        "LocalHost:80",
        "collector.localhost",
        "a.b.localhost:1",
        "127.0.0.1",
        "127.0.0.1:8787",
        "10.1.2.3:80",
        "0.0.0.1",
        "[::1]",
        "[::1]:8787",
        "[2001:DB8::1]:80",
        "[::ffff:127.0.0.1]",
        "collector.internal",
        "Collector.Internal:8787",
    ],
)
def test_a_request_for_an_address_localhost_or_an_allowed_name_is_let_through(host: str) -> None:
    assert refusal_of_host(Guard(allowed_hosts=["COLLECTOR.internal"]), {"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":",
        ":80",
        ".",
        "[]",
        "example.com",
        "example.com:8787",
        "localhost.example.com",
        "localhost.",
        "notlocalhost",
        "127.0.0.1.example.com",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "256.0.0.1",
        "127.0.0.1:80:80",
        "127.0.0.1 example.com",
        "example.com 127.0.0.1",
        "localhost, example.com",
        "user@localhost",
        "localhost/",
        "http://localhost",
        "example.com#localhost",
        "::1",
        "[::1",
        "[::1]80",
        "[::g]",
        "collector.internal.example.com",
        "a.collector.internal",
        "\xe9",
        "\u0660.0.0.1",
        "x" * 5000,
    ],
)
def test_a_request_for_another_name_was_meant_for_somebody_else(host: str) -> None:
    refusal = refusal_of_host(Guard(allowed_hosts=["collector.internal"]), {"host": host})
    assert refusal is not None
    assert (refusal.status, refusal.label) == (421, "host")
    assert "access.allowed_hosts" in str(refusal)
    assert len(str(refusal)) < 250


def test_a_request_without_a_host_is_no_browsers() -> None:
    assert refusal_of_host(Guard(), {}) is None


def test_the_host_does_not_matter_where_a_token_is_asked_for() -> None:
    guard = Guard(tokens=[TOKEN])
    assert refusal_of_host(guard, {"host": "example.com"}) is None
    guard.use_tokens([])
    assert refusal_of_host(guard, {"host": "example.com"}) is not None


@pytest.mark.parametrize(
    ("headers", "is_welcome"),
    [
        ({}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none, cross-site"}, False),
        ({"sec-fetch-site": ""}, False),
        ({"sec-fetch-site": "what comes next"}, False),
        ({"origin": "https://example.com"}, False),
        ({"origin": "http://127.0.0.1:8787"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "https://example.com", "sec-fetch-site": "same-origin"}, False),
    ],
)
@pytest.mark.parametrize("tokens", [[], [TOKEN]], ids=["open", "with tokens"])
def test_a_web_page_may_not_post_whatever_it_knows(
    headers: dict[str, str], is_welcome: bool, tokens: list[str]
) -> None:
    refusal = refusal_of_sender(Guard(tokens=tokens), {**headers, "authorization": f"Bearer {TOKEN}"})
    if is_welcome:
        assert refusal is None
    else:
        assert refusal is not None
        assert (refusal.status, refusal.label, refusal.headers) == (403, "origin", {})


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {TOKEN}",
        f"Bearer {OTHER}",
        f"bearer {TOKEN}",
        f"BEARER {TOKEN}",
        f"Bearer   {TOKEN} ",
    ],
)
def test_who_has_one_of_the_tokens_may_post(authorization: str) -> None:
    assert refusal_of_sender(Guard(tokens=[TOKEN, OTHER]), {"authorization": authorization}) is None


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer  ",
        TOKEN,
        f" {TOKEN}",
        f"Basic {TOKEN}",
        f"Bearer{TOKEN}",
        f"Bearer:{TOKEN}",
        f"Token {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {OTHER}",
        f"Bearer {TOKEN}, Bearer {OTHER}",
        f"Bearer {TOKEN},{OTHER}",
        f"Bearer {OTHER[:-1]}",
        f"Basic x, Bearer {TOKEN}",
        "Bearer \xe9\xff",
        "\xe9 " + TOKEN,
        "Bearer " + "x" * 100_000,
    ],
)
def test_who_has_none_of_the_tokens_may_not_post_and_is_told_how(authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    refusal = refusal_of_sender(Guard(tokens=[TOKEN, OTHER]), headers)
    assert refusal is not None
    assert (refusal.status, refusal.label, refusal.headers) == (401, "token", {"WWW-Authenticate": "Bearer"})
    assert "tokens_file" in str(refusal)
    assert TOKEN not in str(refusal)


def test_where_no_token_is_asked_for_any_and_none_will_do() -> None:
    for headers in ({}, {"authorization": "Bearer whatever"}, {"authorization": "Basic x"}):
        assert refusal_of_sender(Guard(), headers) is None


def test_new_tokens_take_the_place_of_the_old_ones() -> None:
    guard = Guard(tokens=[TOKEN])
    guard.use_tokens([OTHER])
    assert refusal_of_sender(guard, {"authorization": f"Bearer {TOKEN}"}) is not None
    assert refusal_of_sender(guard, {"authorization": f"Bearer {OTHER}"}) is None


@pytest.mark.parametrize("token", ["пароль-от-всего", "schlüssel", "\U0001f511" * 16])
def test_a_token_of_other_letters_is_meant_as_utf_8_and_is_no_other(token: str) -> None:
    guard = Guard(tokens=[token])
    sent = token.encode().decode("latin-1")  # as header fields are read
    assert refusal_of_sender(guard, {"authorization": f"Bearer {sent}"}) is None
    for other in ("?" * len(token), token.encode("ascii", "replace").decode()):
        assert refusal_of_sender(guard, {"authorization": f"Bearer {other}"}) is not None


def test_a_guard_shows_no_token() -> None:
    guard = Guard(tokens=[TOKEN])
    assert TOKEN not in repr(guard)
    assert TOKEN not in repr(vars(guard))


# -- who may look ------------------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", basic("", TOKEN), basic("anybody", TOKEN)])
def test_a_viewer_shows_a_token_or_gives_it_as_password(authorization: str) -> None:
    Guard(tokens=[OTHER, TOKEN]).check_viewer({"authorization": authorization})


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer wrong",
        TOKEN,
        basic(TOKEN, ""),
        basic("x", "wrong"),
        f"Basic {TOKEN}",
        "Basic !",
        "Basic é",
        "Basic",
        "Basic =",
    ],
)
def test_a_viewer_without_a_token_is_asked_for_one(authorization: str) -> None:
    with pytest.raises(Refusal) as refused:
        Guard(tokens=[TOKEN]).check_viewer({"authorization": authorization})
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic ")


def test_where_no_token_is_asked_for_everybody_may_look() -> None:
    Guard().check_viewer({})


def test_a_browsers_password_is_not_enough_to_post() -> None:
    refusal = refusal_of_sender(Guard(tokens=[TOKEN]), {"authorization": basic("x", TOKEN)})
    assert refusal is not None
    assert refusal.status == 401
