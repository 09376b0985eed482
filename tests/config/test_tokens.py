"""The file of tokens. No error tells a token."""

import traceback
from pathlib import Path

import pytest

from collector.config.tokens import MIN_TOKEN_CHARS, read_tokens
from collector.errors import ConfigInvalid

A, B = "AbC-._~+/0123456789==", "second-token-of-some-length"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def read(file: Path, content: bytes) -> list[str]:
    file.write_bytes(content)
    return [token.reveal() for token in read_tokens(file)]


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        pytest.param(f"{A}", [A], id="one"),
        pytest.param(f"{A}\n", [A], id="one and a line end"),
        pytest.param(f"{A}\n{B}\n", [A, B], id="several"),
        pytest.param(f"{A}\r\n{B}\r\n", [A, B], id="lines of Windows"),
        pytest.param(f"\n  {A} \t\n\n\n{B}", [A, B], id="blank lines and spaces"),
        pytest.param(f"# the web shop's\n{A}\n  # {B}\n#{B}\n", [A], id="comments"),
        pytest.param(
            f"# f\u00fcr M\u00fcller: \u2028{B}\n# \x0c{B}\n# \x85{B}\n{A}\n", [A], id="odd signs in comments"
        ),
        pytest.param(f"{A}\n{A}\n", [A, A], id="one twice"),
        pytest.param("x" * MIN_TOKEN_CHARS, ["x" * MIN_TOKEN_CHARS], id="the shortest"),
        pytest.param("x" * 4_000, ["x" * 4_000], id="a long one"),
    ],
)
def test_each_line_is_a_token_but_for_blank_ones_and_comments(file: Path, content: str, tokens: list[str]) -> None:
    assert read(file, content.encode()) == tokens


def test_a_comment_may_be_in_any_encoding(file: Path) -> None:
    assert read(file, b"# f\xfcr M\xfcller\n" + A.encode()) == [A]


SECRET = "hunter2"


@pytest.mark.parametrize(
    "line",
    [
        SECRET,
        "x" * (MIN_TOKEN_CHARS - len(SECRET) - 1) + SECRET,
        f"Bearer {SECRET}-of-some-length",
        f'"{SECRET}-of-some-length"',
        f"{SECRET}-of-some-length # the web shop's",
        f"{SECRET}=of-some-length",
        f"token:{SECRET}-of-some-length",
        f"{SECRET}-of-some-l\u00e4ngth",
        f"{SECRET}-of-some\x00-length",
        f"{SECRET}-of\x0c{SECRET}-some-length",
        "================" + SECRET,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_line_that_is_no_token_is_told_by_its_place_and_not_by_its_content(
    file: Path, line: str, encoding: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        read(file, f"# tokens\n{A}\n\n{line}\n{B}\n".encode(encoding))
    error = caught.value
    assert str(error).startswith(f"access.tokens_file: {str(file)!r}, line 4: not a token; allowed: at least 16 ")
    shown = "".join(traceback.format_exception_only(error)) + f"{error!r} {error.__cause__!r} {error.__context__!r}"
    assert SECRET not in shown
    assert A not in shown


@pytest.mark.parametrize("content", ["", "\n\n", "# none yet\n", f"#{A}"])
def test_a_file_without_a_token_is_a_mistake_and_not_an_open_door(file: Path, content: str) -> None:
    with pytest.raises(ConfigInvalid, match="holds no token") as caught:
        read(file, content.encode())
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file or directory"), (".", "Is a directory"), ("a\0b", "NUL in its name")]
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"cannot be read \({reason}\)") as caught:
        read_tokens(tmp_path / name)
    assert str(caught.value).startswith(f"access.tokens_file: {str(tmp_path / name)!r} ")


def test_tokens_do_not_show_themselves(file: Path) -> None:
    file.write_text(A, encoding="ascii")
    tokens = read_tokens(file)
    assert A not in f"{tokens} {tokens!r} {tokens[0]}"
